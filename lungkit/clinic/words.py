"""Numbers in words, as screens and reports show them."""


def percent(probability: float) -> str:
    """0.873 as "87 %"; what is not certain never reads as 0 % or 100 %."""
    if 0 < probability < 0.01:
        return "< 1 %"
    if 0.99 < probability < 1:
        return "> 99 %"
    return f"{probability * 100:.0f} %"


def with_interval(value: float | None, interval: list | None = None) -> str:
    """A metric of a model card: "0.912 (0.881–0.938)"; "–" where it is undefined, no brackets without an interval."""
    if not isinstance(value, int | float):
        return "–"
    if not interval or None in interval:
        return f"{value:.3f}"
    return f"{value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"


SPLITS = {"train": "training", "val": "validation", "test": "test"}  # of a data set, as people call them


def counted(measured: dict) -> str:
    """How much a split's figures rest on: "200 images of 80 patients"; empty where the card does not say."""
    if not {"n", "patients"} <= set(measured):
        return ""
    return f"{measured['n']} images of {measured['patients']} patients"
