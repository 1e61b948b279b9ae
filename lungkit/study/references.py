"""The sources of the methods that a report cites."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A publication. link: its DOI or its address."""

    authors: str
    title: str
    where: str
    link: str = ""

    @property
    def text(self) -> str:
        """In one line, without the link."""
        return f"{self.authors.rstrip('.')}. {self.title}. {self.where}."


REFERENCES = {
    "adebayo2018": Reference(
        "Adebayo J, Gilmer J, Muelly M, Goodfellow I, Hardt M, Kim B", "Sanity checks for saliency maps",
        "Advances in Neural Information Processing Systems 31, 2018", "https://arxiv.org/abs/1810.03292"),
    "clopper1934": Reference(
        "Clopper CJ, Pearson ES", "The use of confidence or fiducial limits illustrated in the case of the binomial",
        "Biometrika 26(4): 404–413, 1934", "https://doi.org/10.1093/biomet/26.4.404"),
    "cohen1968": Reference(
        "Cohen J", "Weighted kappa: nominal scale agreement with provision for scaled disagreement or partial credit",
        "Psychological Bulletin 70(4): 213–220, 1968", "https://doi.org/10.1037/h0026256"),
    "collins2024": Reference(
        "Collins GS, Moons KGM, Dhiman P, et al.", "TRIPOD+AI statement: updated guidance for reporting clinical "
        "prediction models that use regression or machine learning methods", "BMJ 385: e078378, 2024",
        "https://doi.org/10.1136/bmj-2023-078378"),
    "efron1993": Reference(
        "Efron B, Tibshirani RJ", "An introduction to the bootstrap", "Chapman & Hall, New York, 1993",
        "https://doi.org/10.1201/9780429246593"),
    "gebru2021": Reference(
        "Gebru T, Morgenstern J, Vecchione B, et al.", "Datasheets for datasets",
        "Communications of the ACM 64(12): 86–92, 2021", "https://doi.org/10.1145/3458723"),
    "guo2017": Reference(
        "Guo C, Pleiss G, Sun Y, Weinberger KQ", "On calibration of modern neural networks",
        "Proceedings of Machine Learning Research 70: 1321–1330, 2017", "https://arxiv.org/abs/1706.04599"),
    "king2001": Reference(
        "King G, Zeng L", "Logistic regression in rare events data", "Political Analysis 9(2): 137–163, 2001",
        "https://doi.org/10.1093/oxfordjournals.pan.a004868"),
    "kingma2015": Reference(
        "Kingma DP, Ba J", "Adam: a method for stochastic optimization",
        "International Conference on Learning Representations, 2015", "https://arxiv.org/abs/1412.6980"),
    "korn1998": Reference(
        "Korn EL, Graubard BI", "Confidence intervals for proportions with small expected number of positive counts "
        "estimated from survey data", "Survey Methodology 24(2): 193–201, 1998"),
    "ledoit2004": Reference(
        "Ledoit O, Wolf M", "A well-conditioned estimator for large-dimensional covariance matrices",
        "Journal of Multivariate Analysis 88(2): 365–411, 2004", "https://doi.org/10.1016/S0047-259X(03)00096-4"),
    "lee2018": Reference(
        "Lee K, Lee K, Lee H, Shin J", "A simple unified framework for detecting out-of-distribution samples and "
        "adversarial attacks", "Advances in Neural Information Processing Systems 31, 2018",
        "https://arxiv.org/abs/1807.03888"),
    "li2018": Reference(
        "Li L, Jamieson K, DeSalvo G, Rostamizadeh A, Talwalkar A",
        "Hyperband: a novel bandit-based approach to hyperparameter optimization",
        "Journal of Machine Learning Research 18(185): 1–52, 2018", "https://jmlr.org/papers/v18/16-558.html"),
    "loshchilov2019": Reference(
        "Loshchilov I, Hutter F", "Decoupled weight decay regularization",
        "International Conference on Learning Representations, 2019", "https://arxiv.org/abs/1711.05101"),
    "lu2022": Reference(
        "Lu C, Angelopoulos AN, Pomerantz S", "Improving trustworthiness of AI disease severity rating in medical "
        "imaging with ordinal conformal prediction sets", "MICCAI 2022", "https://arxiv.org/abs/2207.02238"),
    "ronneberger2015": Reference(
        "Ronneberger O, Fischer P, Brox T", "U-Net: convolutional networks for biomedical image segmentation",
        "MICCAI 2015: 234–241", "https://doi.org/10.1007/978-3-319-24574-4_28"),
    "sadinle2019": Reference(
        "Sadinle M, Lei J, Wasserman L", "Least ambiguous set-valued classifiers with bounded error levels",
        "Journal of the American Statistical Association 114(525): 223–234, 2019",
        "https://doi.org/10.1080/01621459.2017.1395341"),
    "selvaraju2017": Reference(
        "Selvaraju RR, Cogswell M, Das A, Vedantam R, Parikh D, Batra D",
        "Grad-CAM: visual explanations from deep networks via gradient-based localization",
        "IEEE International Conference on Computer Vision: 618–626, 2017", "https://doi.org/10.1109/ICCV.2017.74"),
    "tan2019": Reference(
        "Tan M, Le QV", "EfficientNet: rethinking model scaling for convolutional neural networks",
        "Proceedings of Machine Learning Research 97: 6105–6114, 2019", "https://arxiv.org/abs/1905.11946"),
    "tejani2024": Reference(
        "Tejani AS, Klontzas ME, Gatti AA, et al.", "Checklist for artificial intelligence in medical imaging "
        "(CLAIM): 2024 update", "Radiology: Artificial Intelligence 6(4): e240300, 2024",
        "https://doi.org/10.1148/ryai.240300"),
    "youden1950": Reference(
        "Youden WJ", "Index for rating diagnostic tests", "Cancer 3(1): 32–35, 1950",
        "https://doi.org/10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3"),
    "zhang2018": Reference(
        "Zhang J, Bargal SA, Lin Z, Brandt J, Shen X, Sclaroff S", "Top-down neural attention by excitation backprop",
        "International Journal of Computer Vision 126: 1084–1102, 2018",
        "https://doi.org/10.1007/s11263-017-1059-x"),
    "zhou2016": Reference(
        "Zhou B, Khosla A, Lapedriza A, Oliva A, Torralba A", "Learning deep features for discriminative localization",
        "IEEE Conference on Computer Vision and Pattern Recognition: 2921–2929, 2016",
        "https://doi.org/10.1109/CVPR.2016.319"),
}  # fmt: skip
