"""The part "trust" of a chest X-ray model's card: does it work elsewhere, and does it read the lungs?

Three probes, none of which touches the test part of the model's own data. Each figure has a 95 % bootstrap interval by
patient; "AUC" is always of 1 - P(normal), normal images against all others, whatever the others are called.

- out_of_source: on adults' frontal X-rays of other hospitals, and how many of them the input checks flag.
- shortcuts: with the lungs hidden, with all but the lungs hidden, with the border hidden. A model that still tells the
  classes apart without the lungs reads something else (Maguolo and Nanni, "A critic evaluation of methods for COVID-19
  automatic detection from X-ray images", Information Fusion 2021; DeGrave et al., "AI for radiographic COVID-19
  detection selects shortcuts over signal", Nature Machine Intelligence 2021).
- heat_in_lungs: the share of Grad-CAM's heat that lies in the lungs, next to what a uniform map would get.

What is hidden takes the mean brightness of what is left of the picture. The same area of lungs is hidden in every
picture: an outline of each patient's own lungs would itself tell the sick from the healthy, and in covid_chestxray only
the sick have one. It reaches as far as nearly any patient's lungs, so what the model still tells apart is not lung.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image

from lungkit import wording
from lungkit.data import dataset, images, preprocess
from lungkit.data.image import placed
from lungkit.errors import LungkitError
from lungkit.models.rule import DecisionRule
from lungkit.progress import bar
from lungkit.training import evaluation, gradcam
from lungkit.training.release import Candidate

FRONTAL = ("PA", "AP", "AP Supine")
NORMAL = "normal"  # the class's name, whatever its case, in models and collections
LUNGS_REACH = 0.02  # of the masks: where so many show lung, a picture's lungs may reach; hidden with them
LUNGS_LIE = 0.5  # of the masks: where so many show lung, it is lung in most pictures; shown alone
BORDER = 0.1  # of the picture's height and width, on each side
VIEWS = ("as_is", "lungs_hidden", "only_lungs_shown", "border_hidden")
FigureJson = dict[str, Any]  # of "value", "low" and "high", which are None where undefined
_COLUMNS = ("file", "label", "patient_id", "modality", "view", "lung_mask_v7")
_GRID = 128  # rows and columns of the area of lungs


def chest_xray(candidate: Candidate, own: dataset.Dataset, outside: Path) -> dict[str, Any]:
    """All three probes, JSON-ready, for release.register(probes=partial(chest_xray, own=…, outside=…)).

    own: the model's own data, of which the validation part alone is looked at. outside: a folder laid out as
    covid_chestxray. "says": what the figures mean, in sentences, by the rules in `says`.
    LungkitError where the folder is not what is expected, or where the model knows no class "normal".
    """
    trust: dict[str, Any] = {
        "out_of_source": out_of_source(candidate, outside),
        "shortcuts": shortcuts(candidate, own, outside),
        "heat_in_lungs": heat_in_lungs(candidate, outside),
    }
    return trust | {"says": says(trust)}


def out_of_source(candidate: Candidate, folder: Path) -> dict[str, Any]:
    """How the model does on a folder's frontal X-rays, "normal" against the rest, and how many its checks flag.

    "labels": images, patients and the share flagged, by the folder's labels. "unflagged": the same figures on what the
    checks let pass; its AUC is null where one of the two groups is gone.
    """
    rows = frontal(folder)
    normal, patients = _is_normal(rows["label"]), rows["patient_id"].to_numpy(str)
    pictures = _pictures(candidate, rows["file"], "X-rays of other hospitals")
    scores = np.concatenate([_abnormal(candidate, tensor[None]) for tensor, _ in pictures])
    flagged = candidate.flagged(rows["file"].tolist())
    passed = ~flagged
    return {
        "collection": Path(folder).name,
        **_counts(rows),
        "labels": {
            str(label): _counts(group) | {"flagged": float(flagged[group.index].mean())}
            for label, group in rows.groupby("label")
        },
        "auc": _auc(normal, scores, patients),
        "flagged": float(flagged.mean()),
        "unflagged": _counts(rows[passed]) | {"auc": _auc(normal[passed], scores[passed], patients[passed])},
    }


def shortcuts(candidate: Candidate, own: dataset.Dataset, folder: Path) -> dict[str, Any]:
    """The AUC of each of VIEWS, "elsewhere" (the folder's frontal X-rays) and on the model's "own_validation" images.

    The area of lungs is measured on the folder's masks and laid over every picture in the picture's own proportions.
    """
    rows, validation = frontal(folder), own.part("val")
    validation = validation.assign(file=pd.Series(own.files("val"), validation.index))
    area = lung_area(rows["mask"].dropna().tolist())
    return {
        "elsewhere": _by_view(candidate, rows, area, "parts hidden, elsewhere"),
        "own_validation": _by_view(candidate, validation, area, "parts hidden, validation"),
    }


def heat_in_lungs(candidate: Candidate, folder: Path) -> dict[str, Any]:
    """Where the heat of the predicted class lies on the folder's frontal X-rays that have a mask of the lungs.

    "energy_inside": the share of the heat on the picture that lies in the lungs. "uniform": what a uniform map would
    get, the lungs' share of the picture. "above_uniform": the mean difference of the two. "labels": which of the
    folder's labels these images have.
    """
    rows = frontal(folder).dropna(subset="mask")
    plain = preprocess.Preprocessing(size=candidate.card.preprocessing.size)
    pictures = _pictures(candidate, rows["file"], "heat in the lungs")
    measures = []
    for (tensor, place), mask_file in zip(pictures, rows["mask"], strict=True):
        outputs = candidate.read(tensor[None])
        heat = outputs["heat"][0, candidate.card.rule.decide(outputs["probabilities"])[0]]
        mask = preprocess.prepare(images.read(mask_file), plain).tensor[..., 0] > 0.5
        if placed(images.probe(mask_file)[1::-1], plain.size) != place:
            raise LungkitError(f"{mask_file} is not of its image's proportions: a lung mask must be of the same size")
        measures.append(gradcam.localisation(heat[place][None], mask[place][None]))
    measured, patients = pd.concat(measures, ignore_index=True), rows["patient_id"].to_numpy(str)
    shares = {
        "energy_inside": measured["energy_inside"],
        "uniform": measured["mask_share"],
        "above_uniform": measured["energy_inside"] - measured["mask_share"],
    }
    means = {name: _figure(*evaluation.mean_with_interval(values, patients)) for name, values in shares.items()}
    return _counts(rows) | {"labels": sorted(set(rows["label"]))} | means


def says(trust: Mapping[str, Any]) -> list[str]:
    """What the figures of `chest_xray` mean, in sentences for clinicians, by rules:

    - it tells normal from the rest elsewhere where the interval of its AUC lies above 0.5;
    - part of its score comes from outside the lungs where the interval of its AUC without them lies above 0.5;
    - it does worse without the border where its AUC lies above the interval of that with the border hidden;
      neither is stated where it does not tell the images apart as they are;
    - its heat favours the lungs where the interval of what it has above a uniform map lies above 0.
    """
    elsewhere, heat = trust["out_of_source"], trust["heat_in_lungs"]
    sentences = [_says_elsewhere(elsewhere)]
    for place, where in (("elsewhere", f"On {elsewhere['collection']}"), ("own_validation", "On its own validation")):
        auc = trust["shortcuts"][place]["auc"]
        texts = [_says_of_lungs(auc), _says_of_border(auc)] if _tells_apart(auc["as_is"]) else [_SAYS_NOTHING]
        sentences += [f"{where}: {text}" for text in texts]
    return [*sentences, _says_of_heat(heat)]


def table(part: Mapping[str, Any]) -> pd.DataFrame:
    """A card's "trust" or "about" for people: one column, a row for each figure or word in it, however deep it lies.

    Figures stand with their interval; "says" is left out.
    """
    rows = dict(_rows_of({name: value for name, value in part.items() if name != "says"}))
    return pd.DataFrame.from_dict(rows, orient="index", columns=[""])


# --- the images


def frontal(folder: Path) -> pd.DataFrame:
    """The frontal X-rays of a folder: file and mask (paths; None without one), label, patient_id."""
    folder = Path(folder)
    try:
        rows = pd.read_csv(folder / "labels.csv", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' own errors and a wrong encoding are ValueErrors
        raise LungkitError(f"{folder} needs a labels.csv such as that of covid_chestxray: {error}") from None
    if missing := [name for name in _COLUMNS if name not in rows]:
        raise LungkitError(
            f"{folder / 'labels.csv'} has no column {', '.join(missing)}; it needs {', '.join(_COLUMNS)}"
        )
    rows = rows[(rows["modality"] == "X-ray") & rows["view"].isin(FRONTAL)]
    normal = _is_normal(rows["label"])
    if not normal.any() or normal.all():
        raise LungkitError(
            f"{folder} has {normal.sum()} normal and {(~normal).sum()} other frontal X-rays (modality X-ray, view "
            f"{', '.join(FRONTAL)}); images of both groups are needed"
        )
    masks = rows["lung_mask_v7"].map(lambda mask: folder / mask if mask else None).astype(object)
    if masks.isna().all():
        raise LungkitError(f"{folder} has no lung mask for a frontal X-ray: lung_mask_v7 is empty")
    patients = rows["patient_id"].mask(rows["patient_id"] == "", rows["file"])  # unknown: each image is its own patient
    rows = rows.assign(file=rows["file"].map(lambda file: folder / file), mask=masks, patient_id=patients)
    return rows[["file", "mask", "label", "patient_id"]].reset_index(drop=True)


def _pictures(
    candidate: Candidate, files: Iterable[Path], label: str
) -> Iterator[tuple[np.ndarray, tuple[slice, slice]]]:
    """Each file's tensor (height, width, 1), and the rows and columns of it that the picture takes up."""
    spec = candidate.card.preprocessing
    for file in bar(list(files), label=label, unit="image"):
        image = preprocess.prepare(file, spec)
        yield image.tensor, placed(image.shape, spec.size)


def lung_area(masks: Sequence[Path]) -> np.ndarray:
    """The share of these masks that show lung, at each place of a picture of any proportions: float32 (128, 128)."""
    total = np.zeros((_GRID, _GRID), np.float32)
    for file in masks:
        mask = PIL.Image.fromarray(images.read(file).pixels)
        total += np.asarray(mask.resize((_GRID, _GRID), PIL.Image.Resampling.BILINEAR)) > 0.5
    share = total / len(masks)
    if not (share >= LUNGS_LIE).any() or (share >= LUNGS_REACH).all():
        raise LungkitError("the lung masks do not agree on where lungs lie, or show nothing else: 255 is lung, 0 none")
    return share


def _views(tensor: np.ndarray, place: tuple[slice, slice], area: np.ndarray) -> np.ndarray:
    """The image as each of VIEWS shows it: (views, height, width, 1)."""
    rows, columns = place
    height, width = rows.stop - rows.start, columns.stop - columns.start
    picture, middle = (np.zeros(tensor.shape[:2], bool) for _ in range(2))
    picture[place] = True
    lung = np.zeros(tensor.shape[:2], np.float32)
    fitted = PIL.Image.fromarray(area).resize((width, height), PIL.Image.Resampling.BILINEAR)
    lung[place] = np.asarray(fitted)
    down, right = (max(1, round(BORDER * side)) for side in (height, width))
    middle[rows.start + down : rows.stop - down, columns.start + right : columns.stop - right] = True
    # The black bars next to a picture show its proportions: they go with all that is not lung, and with the border.
    return np.stack(
        [tensor, *(_hidden(tensor, what, picture) for what in (lung >= LUNGS_REACH, lung < LUNGS_LIE, ~middle))]
    )


def _hidden(tensor: np.ndarray, what: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The image with a part of it (bool, height, width) at the mean brightness of what is left of the picture."""
    filled = tensor.copy()
    filled[what] = tensor[picture & ~what].mean()
    return filled


# --- the figures


def _by_view(candidate: Candidate, rows: pd.DataFrame, area: np.ndarray, label: str) -> dict[str, Any]:
    """Counts, and the AUC of each view, of rows with file, label and patient_id."""
    pictures = _pictures(candidate, rows["file"], label)
    scores = np.stack([_abnormal(candidate, _views(tensor, place, area)) for tensor, place in pictures])
    normal, patients = _is_normal(rows["label"]), rows["patient_id"].to_numpy(str)
    return _counts(rows) | {
        "normal": _counts(rows[normal]),
        "auc": {view: _auc(normal, of_view, patients) for view, of_view in zip(VIEWS, scores.T, strict=True)},
    }


def _abnormal(candidate: Candidate, tensors: np.ndarray) -> np.ndarray:
    """1 - P(normal) of images (n, height, width, 1): float64 (n,)."""
    classes = candidate.card.classes
    normal = np.flatnonzero(_is_normal(classes))
    if len(normal) != 1:
        raise LungkitError(f"the model's classes are {', '.join(classes)}; these probes need one that is called normal")
    probabilities = candidate.read(tensors)["probabilities"].astype(np.float64)
    return np.clip(1 - probabilities[:, normal[0]], 0, 1)


def _is_normal(labels: Iterable[str]) -> np.ndarray:
    return np.array([label.casefold() == NORMAL for label in labels], bool)


def _auc(normal: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> FigureJson:
    """Of telling the others from the normal: null where one of the two groups is empty."""
    if normal.all() or not normal.any():
        return _figure(np.nan, np.nan, np.nan)
    both = np.column_stack([1 - scores, scores])
    measured = evaluation.evaluate((~normal).astype(int), both, patients, (NORMAL, "rest"), DecisionRule(kind="argmax"))
    return _figure(*measured.value("auc"))


def _figure(value: float, low: float, high: float) -> FigureJson:
    """JSON-ready: undefined values are null."""
    figures = {"value": value, "low": low, "high": high}
    return {name: None if np.isnan(figure) else float(figure) for name, figure in figures.items()}


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    return {"images": len(rows), "patients": int(rows["patient_id"].nunique())}


# --- the words


_SAYS_NOTHING = "it is not shown to tell the images apart as they are, so hiding parts of them shows nothing."


def _tells_apart(auc: FigureJson) -> bool:
    return (auc["low"] or 0) > 0.5


def _says_elsewhere(elsewhere: Mapping[str, Any]) -> str:
    normal = next(counts for label, counts in elsewhere["labels"].items() if label.casefold() == NORMAL)
    return (
        f"On {elsewhere['collection']}, frontal X-rays of other hospitals, it "
        f"{'tells' if _tells_apart(elsewhere['auc']) else 'is not shown to tell'} normal from the rest: AUC "
        f"{wording.figure(**elsewhere['auc'])}, with {normal['images']} normal images of {normal['patients']} patients "
        f"among {elsewhere['images']}. Its input checks flag {wording.percent(elsewhere['flagged'])} of them."
    )


def _says_of_lungs(auc: Mapping[str, FigureJson]) -> str:
    whole, without = auc["as_is"], auc["lungs_hidden"]
    from_outside = without["low"] > 0.5
    return (
        f"{'part of its score comes' if from_outside else 'nothing of its score is seen to come'} from outside the "
        f"lungs: AUC {wording.figure(**without)} with the lungs hidden, {wording.figure(**whole)} as the images are."
    )


def _says_of_border(auc: Mapping[str, FigureJson]) -> str:
    whole, without = auc["as_is"], auc["border_hidden"]
    how = "worse" if whole["value"] > without["high"] else "no worse"
    return (
        f"it does {how} with the outer {wording.percent(BORDER)} of each side hidden: AUC {wording.figure(**without)}."
    )


def _says_of_heat(heat: Mapping[str, Any]) -> str:
    above, how = heat["above_uniform"], "no more than chance would have it"
    if above["low"] is not None and not above["low"] <= 0 <= above["high"]:
        how = f"{'more' if above['low'] > 0 else 'less'} than chance would have it"
    return (
        f"Its heat lies in the lungs {how}: a share of {wording.figure(**heat['energy_inside'])}, where a uniform map "
        f"has {wording.figure(**heat['uniform'])} ({heat['images']} images with a lung mask: "
        f"{', '.join(heat['labels'])})."
    )


def _rows_of(part: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(its path, its value in words) of each value."""
    if {"images", "patients"} <= part.keys():
        yield above or "images", f"{part['images']} images of {part['patients']} patients"
    for name, value in part.items():
        path = " · ".join(filter(None, [above, name.replace("_", " ")]))
        if isinstance(value, Mapping) and not {"value", "low", "high"} <= value.keys():
            yield from _rows_of(value, path)
        elif isinstance(value, Mapping):
            yield path, wording.figure(**value)
        elif name not in ("images", "patients"):
            yield path, wording.figure(value) if isinstance(value, float | None) else wording.plain(value)
