"""How a model was made and measured, in sentences, from its card: the method of a report.

Only what the card, the run's record and its CSV files say is said. docs/methods.md explains the methods.
"""

import re

import pandas as pd

from lungkit.models.card import ModelCard
from lungkit.models.rule import DecisionRule, UncertaintyBand
from lungkit.study.document import Bullets, Cite, Paragraph, Section, Text
from lungkit.study.material import Material
from lungkit.wording import count, listed, percent

_OPTIMIZERS = {"adam": ("Adam", Cite("kingma2015")), "adamw": ("AdamW", Cite("loshchilov2019"))}
_AUGMENTED = {  # how a card's augmentation is called, with its unit
    "rotation": "rotation by up to {:g} degrees",
    "translation": "shifts by up to {}",
    "scaling": "scaling by up to {}",
    "stretch": "stretching by up to {}",
    "brightness": "brightness",
    "contrast": "contrast",
    "gamma": "gamma",
    "sharpness": "sharpness",
    "noise": "noise",
    "flip": "mirroring",
}


def sections(material: Material) -> tuple[Section, ...]:
    """The parts of the method; one sentence that says so where no model is known."""
    split = Section("split", "Split by patient", _split(material))
    intervals = Section("intervals", "Figures and intervals", _intervals(material))
    card = material.card
    if card is None:
        none = Paragraph(
            ("No model was registered or scored in this run, so there is no method of a model to report.",)
        )
        return (Section("model", "Model", (none,)), split)
    return (
        Section("preprocessing", "Preprocessing", (Paragraph(preprocessing(card)),)),
        split,
        Section("model", "Model and training", _training(material, card)),
        Section("rule", "Calibration and decision rule", _decision(card)),
        intervals,
        *([Section("checks", "Input checks", (Paragraph(_checks(card)),))] if card.checks else []),
        *([Section("heat", "Heat maps", (Paragraph(_heat(material)),))] if material.ran("05") else []),
    )


def preprocessing(card: ModelCard) -> Text:
    """From a file to the network's input."""
    spec = card.preprocessing
    level, width = spec.window
    ct = f"Hounsfield units were shown through a window with level {_minus(level)} and width {width:g} HU"
    grey = "stored grey values were scaled to 0 to 1"
    if spec.intensity_window:
        low, high = spec.intensity_window
        grey = f"of stored grey values, {low:g} became black and {high:g} white"
    units = card.checks.units if card.checks else None
    shown = {"HU": ct, "intensity": grey}.get(units or "", f"{ct}; {grey}")
    return (
        f"Every image was read by one function, the same in training, in the test and in use. {shown[0].upper()}"
        f"{shown[1:]}. The picture was scaled to {spec.size[0]} × {spec.size[1]} pixels with its aspect kept and the "
        f"rest black, and standardised with the mean {spec.mean:.3f} and the standard deviation {spec.std:.3f} of the "
        "training pixels.",
    )


def _split(material: Material) -> tuple[Paragraph, ...]:
    card, seed = material.card, material.parameter("seed", 7)
    recipe = card.data.recipe if card else (material.data.recipe if material.data else {})
    if recipe.get("by") == "image":
        text = "The set was split by image and not by patient: a patient can be in training and test."
    else:
        text = (
            "Patients were assigned whole, with all their images, to training, validation and test. A published split "
            "was kept; without one, patients were assigned at random within each class, about 70 %, 15 % and 15 % "
            f"(seed {recipe.get('seed', seed)}). A split with a patient in two parts is refused."
        )
    fold = f" The test is fold {recipe['fold']}." if recipe.get("fold") else ""
    chosen = (
        " Settings, weights, temperature, operating point and the limits of the input checks were chosen on training "
        "and validation patients only. The test patients were scored, and nothing was chosen on them."
    )
    return (Paragraph((text + fold + (chosen if card else ""),)),)


# --- network, training, search


def _training(material: Material, card: ModelCard) -> tuple[Paragraph | Bullets, ...]:
    found = [_network(card), _fitting(card), _searched(material)]
    return tuple(Paragraph(text) for text in found if text)


def _network(card: ModelCard) -> Text:
    what = dict(card.architecture or {})
    if not what:
        return ("The card does not describe the network.",)
    parameters = f" It has {what['parameters']:,} parameters." if "parameters" in what else ""
    if what.get("name") == "cnn":
        return (
            f"The network is a compact convolutional network: a strided stem, {what.get('blocks', '?')} blocks of "
            f"convolution, batch normalisation, ReLU and max pooling that begin with {what.get('filters', '?')} "
            f"channels, global average pooling, dropout of {what.get('dropout', 0):g} and one dense layer.{parameters} "
            "Its weights began at random.",
        )
    name, members = str(what.get("network", what.get("name", "not stated"))), int(what.get("members", 1))
    efficient = (Cite("tan2019"),) if name.startswith("efficientnet") else ()
    averaged = f" The probabilities of {members} networks were averaged." if members > 1 else ""
    mirrored = " Each image was also read mirrored, and both answers were averaged." if what.get("mirrored") else ""
    started = " Its weights began from a network that was trained on other images (transfer learning)."
    lungs: Text = ()
    if (card.training or {}).get("lungs"):
        lungs = (" A U-Net", Cite("ronneberger2015"), " found the lungs first; the network saw the square around them.")
    return (f"The network is {name}", *efficient, f".{started}{averaged}{mirrored}{parameters}", *lungs)


def _fitting(card: ModelCard) -> Text:
    how, what = dict(card.training or {}), dict(card.architecture or {})
    if not how:
        return ("The card does not describe the training.",)
    name, cite = _OPTIMIZERS.get(str(what.get("optimizer", "adamw" if "weight_decay" in how else "")), ("", None))
    rate = what.get("learning_rate", how.get("learning_rate"))
    by = (f" by {name}", cite) if name and cite else ()
    parts: list[str] = [f"a learning rate of {rate:.2g}"] if rate else []
    parts += [f"batches of {how['batch_size']}"] if "batch_size" in how else []
    parts += [f"mixup of {how['mixup']:g}"] if how.get("mixup") else []
    parts += [f"label smoothing of {how['label_smoothing']:g}"] if how.get("label_smoothing") else []
    with_ = f" with {listed(parts, 'and')}" if parts else ""
    best = how.get("best_epoch")
    kept = f"; the weights after epoch {best}, with the lowest validation loss, were kept" if best else ""
    epochs = how.get("epochs")
    span = "The layers below the last were left as they were" if epochs == 0 else f"Training took {epochs} epochs"
    weighted = how.get("class_weights")
    weights: Text = ()
    if weighted:
        even = max(weighted.values()) - min(weighted.values()) < 1e-9
        told = "All classes weigh alike in the loss, as they are equally frequent"
        weights = (
            (f" {told}.",)
            if even
            else (" Classes were weighted in the loss by their inverse frequency", Cite("king2001"), ".")
        )
    varied = [
        _AUGMENTED[key].format(percent(value) if key in ("translation", "scaling", "stretch") else value)
        for key, value in how.get("augmentation", {}).items()
        if key in _AUGMENTED and value
    ]
    changed = f" Training images were varied: {listed(varied, 'and')}." if varied else ""
    changed = changed or ("" if "augmentation" in how else " The card does not state how training images were varied.")
    return (f"{span}{kept}. The loss was cross-entropy, minimised", *by, f"{with_}.", *weights, changed)


def _searched(material: Material) -> Text:
    trials, repeats = material.trials, material.csv("repeats.csv")
    if trials is None or not (material.card and (material.card.architecture or {}).get("name") == "cnn"):
        return ()
    strategy = str(material.parameter("strategy", "hyperband", "03"))
    how: Text = ("Hyperband", Cite("li2018")) if strategy == "hyperband" else ("a Gaussian process",)
    failed = int((trials["status"] == "FAILED").sum()) if "status" in trials else 0
    lost = f" ({count(failed, 'trial')} failed)" if failed else ""
    again = ""
    if repeats is not None and {"trial", "seed"} <= set(repeats):
        again = (
            f" The {count(repeats['trial'].nunique(), 'setting', 'settings')} with the lowest validation loss were "
            f"trained again from {count(repeats['seed'].nunique(), 'other start')} each, and the one with the lowest "
            "mean was trained in full."
        )
    text = "Its settings were searched by "
    return (text, *how, f": {count(len(trials), 'trial')}{lost}, compared by their validation loss.{again}")


# --- decision and figures


def _decision(card: ModelCard) -> tuple[Paragraph, ...]:
    texts = [_temperature(card.rule), _point(card), _band(card.rule), _sets(card.rule)]
    return tuple(Paragraph(text) for text in texts if text)


def _temperature(rule: DecisionRule) -> Text:
    if rule.temperature is None:
        return ("Probabilities were not calibrated.",)
    text = f"Logits were divided by a temperature of {rule.temperature:.3g} before the softmax"
    return (text, Cite("guo2017"), ". It minimises the log loss on the validation images.")


def _point(card: ModelCard) -> Text:
    rule, on = card.rule, _chosen_on(card.rule.chosen_on)
    if rule.grades:
        return ("The answer is the middle grade, at which half of the probability is reached.",)
    if rule.threshold is None:
        return ("The answer is the likeliest class.",)
    by = (" It has the highest balanced accuracy (Youden's J", Cite("youden1950"), f") {on}.")
    start = f"The answer is {rule.positive or card.classes[-1]} from a probability of {rule.threshold:.3f} on."
    return (start, *(by if rule.criterion == "Youden's J" else (f" It was chosen by {rule.criterion} {on}.",)))


def _chosen_on(text: str | None) -> str:
    """As a sentence says it. "validation under change": the images as they are and as other devices could have taken
    them."""
    if text == "validation under change":
        return "on the validation images, as they are and with greys, contrast, detail, noise and position changed"
    return f"on {text or 'images that the card does not name'}"


def _band(rule: DecisionRule) -> Text:
    if rule.band is None:
        return ()
    reviewed = f", which is {percent(rule.band.reviewed)} of these images" if rule.band.reviewed is not None else ""
    return (
        'Answers near the operating point are left to a person ("uncertain: review"). The band was chosen '
        f"{_chosen_on(rule.band.chosen_on)}: {_width(rule.band) or f'it {rule.band.criterion or _NONE}{reviewed}'}.",
    )


_NONE = "has no criterion"
_HELD = re.compile(r"holds (\d+)% of the errors, but (\d+)% to (\d+)% of the images")  # lungkit.training.calibration


def _width(band: UncertaintyBand) -> str:
    """What the band was made wide enough for, and whether the limit on the images left to a person was reached."""
    stated = _HELD.fullmatch(band.criterion or "")
    if stated is None or band.reviewed is None or band.errors_held is None:
        return ""
    wanted, least, most = map(int, stated.groups())
    held = f"it holds {percent(band.errors_held)} of the errors and {percent(band.reviewed)} of the images"
    wide = f"it is wide enough for {wanted} % of the validation errors, but"
    if band.errors_held < wanted / 100:
        return f"{wide} for at most {most} % of the images; that limit was reached here, and {held}"
    return f"{wide} for at least {least} % and at most {most} % of the images; here, {held}"


def _sets(rule: DecisionRule) -> Text:
    if rule.conformal is None:
        return ()
    cite = Cite("lu2022") if rule.grades else Cite("sadinle2019")
    return (
        "Conformal prediction", cite, f" names every class that cannot be ruled out at a level of "
        f"{percent(rule.conformal.level)}. Its threshold was chosen on {rule.conformal.n or 'the'} validation images.",
    )  # fmt: skip


def _intervals(material: Material) -> tuple[Paragraph, ...]:
    kappa: Text = ()
    if material.measured and "kappa" in material.measured.figures:
        kappa = (" Grades are compared by the quadratic kappa", Cite("cohen1968"), ".")
    return (
        Paragraph((
            "Every figure has a 95 % interval by patient. The bootstrap", Cite("efron1993"), " draws patients with all "
            "their images. Shares of images have the exact interval of Clopper and Pearson", Cite("clopper1934"),
            " for as many independent images as explain the bootstrap's variance", Cite("korn1998"), "; other figures "
            "have percentiles of the bootstrap. Models on the same patients are compared by the difference in each "
            "resample. An interval says how far a figure could move with other patients of the same source. It says "
            "nothing about another hospital.", *kappa,
        )),
    )  # fmt: skip


def _checks(card: ModelCard) -> Text:
    checks = card.checks
    flagged = ""
    if checks and checks.flagged is not None:
        flagged = f" They flag {100 * checks.flagged:.1f} % of the validation images."
    return (
        "An image is flagged if its features", Cite("lee2018"), " or its grey values are far from those of the "
        "training images (Mahalanobis distances with a shrunk covariance", Cite("ledoit2004"),
        f"), if its shorter side is below {checks.size if checks else '?'} pixels, or if its units differ.{flagged}",
    )  # fmt: skip


def _heat(material: Material) -> Text:
    random: Text = ()
    if material.csv("randomisation.csv") is not None:
        random = (" They were compared with the maps of the same network with random weights", Cite("adebayo2018"), ".")
    masks: Text = ()
    where: pd.DataFrame | None = material.csv("localisation.csv")
    if where is not None and "pointing_game" in where and where["pointing_game"].notna().any():
        masks = (
            f" In {count(int(where['pointing_game'].notna().sum()), 'image')} with a lesion mask, it was measured "
            "whether the hottest point lies in the lesion", Cite("zhang2018"), ".",
        )  # fmt: skip
    return ("Heat maps are Grad-CAM", Cite("selvaraju2017"), ". The network ends in average pooling and one dense "
            "layer, so the gradient is that layer's weights", Cite("zhou2016"), ".", *masks, *random)  # fmt: skip


def _minus(value: float) -> str:
    return f"{value:g}".replace("-", "−")
