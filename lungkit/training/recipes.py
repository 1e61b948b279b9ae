"""How the models that ship with lungkit are trained: each a name, a data set, and every setting.

Settings were chosen on validation patients (bench/README.md says which were tried); no test split took part.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lungkit.data import dataset, sources
from lungkit.data.notes import alike
from lungkit.data.relabel import Labels
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.card import Ages
from lungkit.models.grades import Grades
from lungkit.wording import listed

# What a recipe's `backbone` may be: lungkit's small network, or one of models.backbones.
NETWORKS = (
    *("cnn", "efficientnet_lite0", "efficientnet_lite0_ct", "efficientnet_b0"),
    *("mobilenet_v2", "densenet121", "resnet50", "vgg16"),
)
LUNG_MODALITIES = ("X-ray", "CT")  # as models.lungs has networks that find them


@dataclass(frozen=True)
class Recipe:
    """All that `lungkit train` needs besides the images."""

    name: str = ""  # of the model in the registry
    modality: str = ""  # "X-ray", "CT" or "MRI"
    question: str = ""  # what the model answers, for clinicians
    population: str = ""  # whose images it learned from, for clinicians
    ages: Ages | None = None  # of these patients
    views: tuple[str, ...] = ()  # of X-rays, as DICOM's ViewPosition has them
    body_part: str = "chest"
    data: str = ""  # the folder's name among the public sets
    images: dict[str, int] = field(default_factory=dict)  # of each class in that set; of a phantom any number (0)
    licence: str = ""  # of those images, as their publishers state it
    label_column: str | None = None
    grades: Grades | None = None  # its classes are grades, in the order of `images`
    merged: dict[str, list[str]] = field(default_factory=dict)  # class to the labels that become one in it
    labels: Labels = field(default_factory=Labels)  # of sets that it joins: which of its classes each means …
    label_columns: tuple[str, ...] = ()  # … and the columns that they are in, where a set has one of them
    fold: str | None = None  # of splits.assign; None: the published split
    by: str = "patient"
    only_fold: bool = False  # measured on that fold's test patients alone: the backbone has seen the others
    decisions: str | None = None  # of a person about single images, as dataset.load_split takes them
    leave_out: str | None = None  # a source that it neither learns from nor is chosen on
    balanced_sources: bool = False  # each class weighs alike in training, and within it each source; else classes alone
    leak: bool = False  # also measure what a split by image would have shown
    scored_before: int = 0  # times that an earlier version, not shipped, was scored on the same test images
    backbone: str = "efficientnet_lite0"  # one of NETWORKS; "cnn" starts from random weights
    until: str = "stage5"  # as in backbones.build
    side: int = 224  # pixels, of the square that images are fitted into
    sees: int = 0  # pixels, of the side at which the network sees that square; it divides `side`; 0: as it is
    lungs: bool = False  # sees the square of the lungs alone, and averages its feature maps within them
    epochs: int = 6  # with `unfrozen` and what follows it trained
    unfrozen: str = "stage3"
    batch_size: int = 32
    learning_rate: float = 3e-4
    layer_factor: float = 0.6  # on the rate, from each stage to the one before it
    tuned_share: float = 1.0  # of the fine-tuned weights, the rest of those before it
    head_under_change: bool = False  # the solved head's penalty suits validation images as they are and changed
    weight_decay: float = 1e-2
    dropout: float = 0.3
    label_smoothing: float = 0.1
    mixup: float = 0.2
    cutmix: float = 0.0
    ema: float = 0.0  # momentum of the weights' moving average
    equalised: bool = False  # sees images with their histogram equalised
    augmentation: dict[str, Any] = field(default_factory=lambda: {"brightness": 0.15, "contrast": 0.3, "gamma": 0.4})
    seeds: tuple[int, ...] = (1,)
    members: tuple[dict[str, Any], ...] = ({},)  # of each seed: in which settings each differs from the recipe
    mirrored: bool = True  # also reads the mirrored image
    max_images: int | None = None  # more are thinned: fewer images of each patient
    real: dict[str, Any] = field(default_factory=dict)  # of a phantom's recipe: what differs for real images

    @property
    def folds(self) -> int:
        """How many folds a model of this recipe is measured on; 0: on the test part of its only split."""
        return int(self.fold.partition("/")[2]) if self.fold and not self.only_fold else 0

    def settings(self) -> dict[str, Any]:
        """What decides how a member's training goes, JSON-ready; `tuned_share` comes after it.

        What is in _NEWER is named only where it is on: trainings that began before there was a choice can continue.
        """
        left_out = {*_NO_SETTINGS, *(name for name in _NEWER if not getattr(self, name))}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def each_member(self) -> list[tuple["Recipe", int]]:
        """The recipe of each member, and its seed; all members see images that were made ready in the same way."""
        for changed in self.members:
            if other := sorted(set(changed) - set(_OF_A_MEMBER)):
                allowed = listed(sorted(_OF_A_MEMBER), "and")
                raise LungkitError(f"{self.name}: a member cannot differ in {listed(other, 'and')}, only in {allowed}")
        return [(replace(self, members=({},), **changed), seed) for seed in self.seeds for changed in self.members]

    @property
    def features(self) -> tuple[Any, ...]:
        """What decides the features of a network before its fine-tuning, and so its solved head."""
        seen = (self.backbone, self.until, self.sees, self.equalised, repr(self.augmentation))
        return (*seen, self.balanced_sources, self.head_under_change)

    def check(self, data: dataset.Dataset) -> None:
        """Refuse a set that is labelled with other classes, or whose files say that they are of another modality."""
        if self.images and not self.fits(data.classes):
            raise LungkitError(
                f"{self.name} tells apart {', '.join(self.images)}, but {data.name} is labelled "
                f"{', '.join(data.classes)}; nothing was trained. Name its classes as the recipe does, choose another "
                "recipe (`lungkit train list`), or train a model of your own classes: `lungkit run 03 --data FOLDER`"
            )
        if self.grades and [*map(alike, self.images)] != [*map(alike, data.classes)]:
            raise LungkitError(
                f"{self.name} answers with grades in the order {', '.join(self.images)}, but {data.name} has them in "
                f"the order {', '.join(data.classes)}; nothing was trained. State the right order in its dataset.json"
            )
        stated = {modality_name(text) for text in data.manifest["modality"] if text}
        if self.modality and (other := sorted(stated - {self.modality})):
            raise LungkitError(
                f"{self.name} reads {self.modality} images, but {data.name} holds {', '.join(other)} images, as its "
                "files say; nothing was trained. Leave them out, or choose another recipe (`lungkit train list`)"
            )

    def fits(self, classes: Sequence[str]) -> bool:
        """Whether these are the recipe's classes, in any spelling."""
        return {alike(name) for name in self.images} == {alike(name) for name in classes}

    def owns(self, data: dataset.Dataset) -> bool:
        """Whether this is the set that the recipe was made for: of its name and with as many images of each class.

        Of a phantom, which has any number of images: whether the set says that it is one.
        """
        if not any(self.images.values()):
            return self.data == "phantom" and data.synthetic and data.name.startswith("phantom")
        counted = data.manifest.drop_duplicates("file")["label"].value_counts().to_dict()
        column = f"-{self.label_column}" if self.label_column else ""
        return data.name == f"{self.data}{column}" and counted == self.images

    def about(
        self,
        data: dataset.Dataset,
        command: str = "",
        population: str = "",
        licence: str = "",
        ages: Ages | None = None,
        views: Sequence[str] = (),
    ) -> dict[str, Any]:
        """What people should know of the model before they use it, and the command that made and measured it.

        data: what it was trained on. Of another set than the recipe's own the recipe knows neither population nor
        licence: they are "not stated", where they are not given. ages, views: of these patients and images, where they
        are not the recipe's own.
        """
        own = self.owns(data)
        return {
            "question": self.question if own else f"{self.modality}: {listed(data.classes, 'or')}?",
            "population": population or (self._population() if own else NOT_STATED),
            "licence": licence or (self.licence if own else NOT_STATED),
            **(self.reads(ages, views) if own and not population else _stated(ages, views)),
            "command": command,
        }

    def reads(self, ages: Ages | None = None, views: Sequence[str] = ()) -> dict[str, Any]:
        """Ages, views and body part for the card; those given take the place of the recipe's own."""
        part = {"body_part": self.body_part} if self.body_part else {}
        return _stated(ages or self.ages, views or self.views) | part

    def _population(self) -> str:
        return f"{self.population}, without {self.leave_out}" if self.leave_out else self.population


def _stated(ages: Ages | None, views: Sequence[str]) -> dict[str, Any]:
    return ({"ages": list(ages)} if ages else {}) | ({"views": list(views)} if views else {})


def without(recipe: Recipe, source: str) -> Recipe:
    """The recipe without a source of its data; its model gets another name, which ends in the source's."""
    return replace(recipe, leave_out=source, name=f"{recipe.name}-without-{registry.plain_name(source)}"[:100])


def suited(recipe: Recipe, source: str | Path) -> Recipe:
    """The recipe for the images of `source`: that of a phantom has other settings for real images of its classes."""
    if not recipe.real or source == "phantom":
        return recipe
    listing = sources.read(source, recipe.label_column, None, 7)
    if listing.synthetic or not recipe.fits(listing.classes):
        return recipe
    return replace(recipe, **recipe.real, real={})


def with_backbone(recipe: Recipe, backbone: str) -> Recipe:
    """The recipe with another network; its model gets another name, which ends in the network's."""
    if backbone not in NETWORKS:
        raise LungkitError(f"no network '{backbone}'; there are: {', '.join(NETWORKS)}")
    if backbone == recipe.backbone:
        return recipe
    return replace(recipe, backbone=backbone, name=f"{recipe.name}-{backbone}")


def with_lungs(recipe: Recipe) -> Recipe:
    """The recipe whose network sees the square of the lungs alone, with maps of a 16th of it or finer."""
    if recipe.modality not in LUNG_MODALITIES:
        raise LungkitError(
            f"{recipe.name} reads {recipe.modality} images; lungs can be found on {listed(LUNG_MODALITIES, 'and')}"
        )
    return replace(recipe, lungs=True, until="stage4" if recipe.until == "stage5" else recipe.until)


def modality_name(text: str) -> str:
    """What a modality is called here: "X-ray" for "DX", "MRI" for "mr"; an unknown one as it is."""
    return {"CT": "CT", "MR": "MRI", "MRI": "MRI"}.get(text.upper(), "X-ray" if text.upper() in _XRAYS else text)


def command(
    name: str,
    source: str | Path | Sequence[str],
    *,
    backbone: str = "",
    outside: str | Path = "",
    compact: bool = False,
    int8: bool = False,
    workers: int | None = None,
    leave_out: str = "",
    balance_sources: bool = False,
    lungs: bool = False,
    decisions: str | Path = "",
    population: str = "",
    licence: str = "",
    ages: str = "",
    views: str = "",
) -> str:
    """The command line for these arguments of `lungkit train`, without the folders that lie only on this machine.

    source: one data set, or the ones that are joined.
    """
    words = ["lungkit", "train", name]
    for each in [source] if isinstance(source, str | Path) else source:
        words += ["--data", _named(each)]
    options: dict[str, Any] = {
        "backbone": backbone,
        "outside": outside and _named(outside),
        "compact": compact,
        "int8": int8,
        "workers": workers,
        "leave-out": leave_out,
        "balance-sources": balance_sources,
        "lungs": lungs,
        "decisions": decisions and _named(decisions),
        "population": population,
        "licence": licence,
        "ages": ages,
        "views": views,
    }
    for option, value in options.items():
        words += [f"--{option}", *([] if value is True else [str(value)])] if value else []
    return shlex.join(words)


def ages_in(text: str) -> Ages | None:
    """What a person states: "1-5", or "18-" for 18 years and more; None for nothing. Raises LungkitError."""
    if not text:
        return None
    youngest, dash, oldest = (part.strip() for part in text.partition("-"))
    figures = [part for part in (youngest, oldest) if part]
    if not (dash and youngest and all(part.isascii() and part.isdecimal() for part in figures)):
        raise LungkitError(f"--ages {text!r}: accepted are the youngest and the oldest in years, as 1-5, or 18-")
    ages = float(youngest), float(oldest) if oldest else None
    if ages[1] is not None and ages[1] < ages[0]:
        raise LungkitError(f"--ages {text!r}: the oldest comes second")
    return ages


def views_in(text: str) -> tuple[str, ...]:
    """What a person states: "PA,AP". Raises LungkitError."""
    names = tuple(part.strip().upper() for part in text.split(",")) if text else ()
    if not all(name.isascii() and name.isalpha() for name in names):
        raise LungkitError(f"--views {text!r}: accepted are views as DICOM names them, with commas between: PA,AP")
    return names


def _named(source: str | Path) -> str:
    """A data set by its name: what lies in a folder of somewhere is FOLDER/name."""
    path = Path(source)
    return str(source) if str(source) == "phantom" or not path.name else f"FOLDER/{path.name}"


NOT_STATED = "not stated"
_XRAYS = ("CR", "DX", "DR", "RG", "XR", "CXR", "XRAY", "X-RAY", "RADIOGRAPH")
_NEWER = ("balanced_sources", "lungs", "head_under_change", "sees")
_OF_A_MEMBER = (
    *("backbone", "until", "sees", "epochs", "unfrozen", "learning_rate", "layer_factor", "tuned_share"),
    *("label_smoothing", "mixup", "cutmix", "ema", "dropout", "equalised", "augmentation"),
)
_NO_SETTINGS = {
    *("name", "modality", "question", "population", "ages", "views", "body_part", "licence", "data", "images"),
    "label_column",
    *("labels", "label_columns", "grades", "merged", "members"),
    *(
        "fold",
        "by",
        "only_fold",
        "decisions",
        "leave_out",
        "leak",
        "scored_before",
        "tuned_share",
        "seeds",
        "max_images",
        "real",
    ),
}

# The children's X-rays were squashed into squares, the sick from other proportions than the healthy; and what differs
# in their detectors' detail is no disease either. A network that sees all proportions and details cannot use them.
_SHAPELESS = {
    "rotation": 12.0,
    "translation": 0.08,
    "scaling": 0.2,
    "stretch": 0.2,
    "sharpness": 1.0,
    "noise": 0.05,
    "brightness": 0.15,
    "contrast": 0.3,
    "gamma": 0.4,
}

_CHILDREN = "children of 1 to 5 years, one hospital in Guangzhou, frontal chest X-rays"
_chest = partial(
    Recipe,
    modality="X-ray",
    population=_CHILDREN,
    ages=(1, 5),
    views=("PA", "AP"),
    data="chest_xray_paediatric_224",
    licence="CC BY 4.0",
    augmentation=_SHAPELESS,
    lungs=True,
    until="stage4",
    members=({}, {"sees": 112}, {"epochs": 0}, {"sees": 112, "epochs": 0}),
    head_under_change=True,
    scored_before=18,  # of which 16 were of networks that see the square of the lungs
)

# The network that learned from chest CT, as it is: fine-tuned, it was no better on validation patients of sources that
# it had not learned from. It has seen the images of all folds but the first's test patients.
_TAUGHT_CT: dict[str, Any] = {
    "backbone": "efficientnet_lite0_ct",
    "lungs": True,
    "until": "stage4",
    "fold": "1/4",
    "only_fold": True,
    "head_under_change": True,
    "epochs": 0,
}

# Real CT slices, of any public set of three classes; the settings were chosen on slices from papers (COVID-CT).
# Sets such as COVIDx CT have hundreds of thousands, of many sources that differ in their classes.
_REAL_CT = {
    "name": "ct-infection-real",
    "data": "",
    "population": "",
    "licence": "",
    "backbone": "efficientnet_lite0",
    "until": "stage3",
    "unfrozen": "stage2",
    "tuned_share": 0.5,
    "side": 224,
    "epochs": 6,
    "learning_rate": 3e-4,
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "augmentation": {"brightness": 0.15, "contrast": 0.3, "gamma": 0.4},
    "mirrored": True,
    "balanced_sources": True,
    "max_images": 20_000,
}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        _chest(
            name="chest-xray-pneumonia",
            question="Chest X-ray: normal or pneumonia?",
            images={"NORMAL": 1203, "PNEUMONIA": 3268},
            epochs=8,
            learning_rate=1e-3,
        ),
        _chest(
            name="chest-xray-infection",
            question="Chest X-ray: normal, bacterial or viral pneumonia?",
            images={"NORMAL": 1203, "BACTERIAL": 2149, "VIRAL": 1119},
            label_column="subtype",
            label_smoothing=0.0,
            mixup=0.0,
        ),
        Recipe(
            name="pneumoniamnist-28",
            modality="X-ray",
            question="Chest X-ray in 28 x 28 pixels (PneumoniaMNIST): normal or pneumonia?",
            population=f"{_CHILDREN}, reduced to 28 x 28 pixels",
            ages=(1, 5),
            views=("PA", "AP"),
            data="pneumoniamnist",
            images={"normal": 1583, "pneumonia": 4273},
            licence="CC BY 4.0",
            side=112,
            augmentation=_SHAPELESS | {"sharpness": 0.0},
            epochs=5,
            learning_rate=1e-3,
            scored_before=3,  # one of them with two networks until stage 4, which were worse
        ),
        Recipe(
            name="ct-covid",
            modality="CT",
            question="Chest CT slice: COVID-19 or not?",
            population="adults: slices from figures of papers and from teaching collections, of hospitals in Moscow "
            "(one slice a patient, those of mild disease left out) and of hospitals in Sao Paulo",
            ages=(18, None),
            data="ct_covid_three",
            images={"NonCOVID": 964, "COVID": 778},
            licence="COVID-CT: of the papers that the images come from; MosMedData: CC BY-NC-ND 3.0; SARS-CoV-2 "
            "CT-scan dataset: CC BY-NC-SA 4.0; research only, images are not republished",
            labels=Labels(
                classes={
                    "NonCOVID": ("CT-0", "Not COVID-19", "Healthy"),
                    "COVID": ("CT-2", "CT-3", "CT-4", "COVID-19"),
                },
                omitted=("CT-1",),  # many of these slices show no lesion
            ),
            label_columns=("severity",),
            balanced_sources=True,
            members=({}, {"sees": 112}),
            scored_before=7,  # of which three of the slices of papers alone
            **_TAUGHT_CT,
        ),
        Recipe(
            name="ct-covid-extent",
            modality="CT",
            question="Chest CT slice: how much of the lungs does viral pneumonia affect?",
            population="patients of Moscow's hospitals, spring 2020, one slice of each study. CT-0 is without viral "
            "pneumonia, not healthy. The grade is of the whole study, and many CT-1 slices show no lesion. CT-4 has "
            "two patients, so CT-3 and CT-4 are one grade",
            ages=(18, 97),  # Morozov et al., arXiv 2005.06465
            data="mosmed_ct",
            images={"CT-0": 196, "CT-1": 515, "CT-2": 94, "CT-3/4": 34},
            licence="CC BY-NC-ND 3.0 as the paper of the set states; research only, images are not republished",
            label_column="severity",
            merged={"CT-3/4": ["CT-3", "CT-4"]},
            grades=Grades(
                extents=((0, 0), (0, 25), (25, 50), (50, 100)),
                of="the lungs",
                caution="One slice is not the whole scan: the grade is of all slices, and others can show more or less",
            ),
            scored_before=2,
            **_TAUGHT_CT,
        ),
        Recipe(
            name="ct-lung-cancer",
            modality="CT",
            question="Chest CT slice: normal, benign or malignant?",
            population="adults of two oncology centres in Iraq",
            ages=(18, None),
            data="iqoth_nccd",
            images={"Normal": 312, "Benign": 87, "Malignant": 419},
            licence="not stated in the copy used; believed CC BY 4.0",
            fold="1/4",
            leak=True,
            until="stage3",
            scored_before=3,  # one of them with the network that learned from CT, which was no better on these patients
            side=160,
            epochs=0,
        ),
        Recipe(
            name="mri-brain-tumour",
            modality="MRI",
            question="Brain MRI slice: no tumour, glioma, meningioma or pituitary tumour?",
            population="adults; merged from three collections, patients not published",
            ages=(18, None),
            body_part="brain",
            data="brain_tumour_mri",
            images={"notumor": 304, "glioma": 350, "meningioma": 326, "pituitary": 350},
            licence="CC0, as stated on its page",
            fold="1/4",
            side=160,
            epochs=10,
            learning_rate=1e-3,
        ),
        Recipe(
            name="ct-infection",
            modality="CT",
            question="Chest CT slice: normal, pneumonia or COVID-19?",
            population="no patient: slices drawn by a computer",
            body_part="",
            data="phantom",
            images={"Normal": 0, "Pneumonia": 0, "COVID-19": 0},
            licence="made by lungkit, as the rest of it",
            backbone="cnn",
            side=96,
            epochs=24,
            learning_rate=3e-3,
            label_smoothing=0.0,
            mixup=0.0,
            augmentation={},
            mirrored=False,
            real=_REAL_CT,
        ),
    )
}


def find(name: str) -> Recipe:
    """The recipe of this name; an unknown one is refused with the list."""
    if name not in RECIPES:
        raise LungkitError(f"no recipe '{name}'; there are: {', '.join(RECIPES)}")
    return RECIPES[name]
