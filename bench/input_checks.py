"""Does the clinic see that an image is turned, and that a patient is of another age? What does that cost its own?

    python -m bench.input_checks NAME[@vN] --data FOLDER [--data FOLDER …] [--adults FOLDER …] [--most N]

One Markdown table. Turned images are the version's own validation images; no test image is read, and nothing is
trained. adults: sets of X-rays whose labels.csv states ages; those of 18 years and more are read. Shares have a 95 %
interval by patient. --data again for a version that learned from several sets.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lungkit import wording
from lungkit.clinic import decode
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.data import dataset, images, joined, turning
from lungkit.data.image import Image
from lungkit.models import card_text, population, registry
from lungkit.models.prediction import Prediction
from lungkit.progress import bar
from lungkit.training import evaluation, recipes, release

LIES = [(mirrored, quarters) for mirrored, quarters in turning.LIES if not (mirrored and quarters)]
ADULT = 18  # years
Row = tuple[str, ...]


def _some(patients: list[str], most: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(len(patients))[:most])


def _read(predictor: Predictor, image: Image, *ages: float | None) -> list[Prediction]:
    """What the clinic says of an image at each of these ages; the graph runs once."""
    tensor, facts = decode.prepare(image, predictor.spec)
    outputs = {name: values[0] for name, values in predictor.graph(tensor[np.newaxis]).items()}
    return [predictor.reading(replace(facts, by_year=age), outputs, time.perf_counter()) for age in ages]


def _share(values: list[bool], patients: list[str]) -> str:
    if not values:
        return ""
    return wording.figure(*evaluation.mean_with_interval(np.array(values, float), patients, share=True))


def _turned(predictor: Predictor, own: dataset.Dataset, most: int) -> Iterator[Row]:
    some = _some(list(own.patients("val")), most)
    files, patients = [own.files("val")[i] for i in some], [str(own.patients("val")[i]) for i in some]
    for mirrored, quarters in LIES:
        said, lie = [], turning.lie_words((mirrored, quarters))
        for file in bar(files, label=lie, unit="image"):
            image = images.read(file)
            pixels = np.rot90(image.pixels[:, ::-1] if mirrored else image.pixels, quarters)
            turned = replace(image, pixels=np.ascontiguousarray(pixels))
            said += _read(predictor, turned, population.fitting_age(predictor.card))
        seen = [not check.passed for reading in said for check in reading.checks if check.name == "orientation"]
        decided = [reading.decision != REVIEW for reading in said]
        yield f"own validation images, {lie}", f"{len(said)}", _share(seen, patients), _share(decided, patients)


def _adults(predictor: Predictor, folder: Path, most: int) -> Iterator[Row]:
    table = pd.read_csv(folder / "labels.csv", dtype=str, keep_default_na=False)
    years = pd.to_numeric(table["age"], errors="coerce")
    of_kind = table["modality"].str.contains("X-ray") if "modality" in table else True
    table = table.assign(years=years)[(years >= ADULT) & of_kind].drop_duplicates("file").reset_index()
    table = table.iloc[_some(list(table["file"]), most)]
    said: list[list[Prediction]] = []
    for file, age in bar(list(zip(table["file"], table["years"], strict=True)), label=folder.name, unit="image"):
        said.append(_read(predictor, images.read(folder / file), age, None, population.fitting_age(predictor.card)))
    for number, known in enumerate(("age known", "age not known", "a child's age entered by mistake")):
        decided = [of[number].decision != REVIEW for of in said]
        patients = list(table["patient_id"])
        seen = [bool({"age", "age known"} & {c.name for c in of[number].checks if not c.passed}) for of in said]
        yield f"adults of {folder.name}, {known}", f"{len(said)}", _share(seen, patients), _share(decided, patients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--adults", action="append", default=[])
    parser.add_argument("--most", type=int, default=300, help="images of a kind")
    asked = parser.parse_args()
    version = registry.find(asked.model)
    source = asked.data[0]
    if len(asked.data) > 1:
        recipe = recipes.find(version.model)
        source, _ = joined.kept(recipe.data, asked.data, recipe.labels, recipe.label_columns)
    predictor = Predictor(version, heat=False)
    rows = [*_turned(predictor, release.data_for(version, str(source)), asked.most)]
    rows += [row for folder in asked.adults for row in _adults(predictor, Path(folder), asked.most)]
    head = (f"{version}", "images", "the check says so", "get a finding")
    print(card_text.markdown_table(head, rows), end="")


if __name__ == "__main__":
    main()
