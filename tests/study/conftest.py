"""Two finished runs: a study with a graph that reads (`study`), and one with all that a report can show (`run`)."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
import pandas as pd
import pytest
from matplotlib.figure import Figure
from openvino import opset13 as ops

from lungkit import config, files
from lungkit.data import dataset, preprocess
from lungkit.models import graph, registry
from lungkit.models.card import ModelCard
from lungkit.study.provenance import RunRecord, Stage
from lungkit.training import evaluation, exhibits, release
from tests.cards import VALUES, model_card

RECIPE = {"label_column": None, "limit": None, "seed": 7}


@dataclass(frozen=True)
class Study:
    """Where the study lies: data, artifacts and reports below home, and the folder of the run."""

    home: Path
    run: Path
    images: Path


def write_graph(folder: Path, noise: float) -> None:
    """A graph of 32 x 32 pixels: the right half's brightness against the left half's, with some noise."""
    weights = np.random.default_rng(3).normal(0, noise, (1024, 2)).astype(np.float32)
    side = np.tile(np.repeat([-0.02, 0.02], 16), 32)
    weights += np.stack([-side, side], axis=1)
    image = ops.parameter([-1, 32, 32, 1], np.float32, name="image")
    flat = ops.reshape(image, np.array([0, 1024], np.int64), special_zero=True)
    probabilities = ops.softmax(ops.matmul(flat, ops.constant(weights.astype(np.float32)), False, False), 1)
    probabilities.output(0).get_tensor().set_names({"probabilities"})
    graph.save(openvino.Model([probabilities], [image], "squares"), folder)


def register(name: str, data: dataset.Dataset, noise: float) -> registry.Version:
    """A version that counts as trained on the set's train and val parts."""

    def write(folder: Path) -> None:
        write_graph(folder, noise)
        seen = sorted({*data.part("train")["sha256"], *data.part("val")["sha256"]})
        (folder / release.TRAINED_ON).write_text("".join(f"{sha256}\n" for sha256 in seen))

    spec = preprocess.Preprocessing(size=(32, 32), mean=0.2, std=0.2)
    facts = {"name": data.name, "fingerprint": data.fingerprint, "recipe": RECIPE}
    values = {"classes": list(data.classes), "preprocessing": spec.to_dict(), "data": facts, "synthetic": False}
    rule = {"kind": "threshold", "threshold": 0.5, "positive": data.classes[-1]}
    return registry.add(name, ModelCard.from_dict(VALUES | values | {"operating_point": rule}), write)


def _executed(run: Path) -> dict:
    """A notebook as papermill leaves it, with a picture, and paths of the machine."""
    outputs = [
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBORw0KGgo=", "text/plain": ["fig"]}},
        {"output_type": "stream", "name": "stdout", "text": [f"written to {run}/metrics.csv\n"]},
    ]
    cell = {"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {}, "outputs": outputs, "source": []}
    where = {
        "input_path": f"{config.home()}/notebooks/04_evaluation.ipynb",
        "output_path": f"{run}/04_evaluation.ipynb",
    }
    return {"cells": [cell], "metadata": {"papermill": where}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture(scope="session")
def made_study(squares, tmp_path_factory) -> Study:
    """The study, made once; tests take copies."""
    home = tmp_path_factory.mktemp("study")
    images = home / "images" / "squares"
    shutil.copytree(squares, images)
    (images / "SOURCE.md").write_text("Drawn for a test.\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "artifacts", "reports"):
            patch.setenv(f"LUNGKIT_{name.upper()}", str(home / name))
        data = dataset.load_split(images, **RECIPE)
        version = register("squares-cnn", data, 0.2)
        scored = release.score(version, data)
        run = home / "reports" / "20261130-120000-squares"
        scored.evaluation.save(run, files=scored.files)
        files.replace(run / "evaluation.json", json.dumps(scored.to_dict(), indent=2))
        (run / "04_evaluation.ipynb").write_text(json.dumps(_executed(run)))
        (run / "figures").mkdir()
        (run / "figures" / "04_roc.png").write_bytes(b"\x89PNG")
        parameters = {"data": str(images), "profile": "quick", "report": str(run)}
        record = RunRecord.of("2026-11-30T12:00:00+00:00", parameters, (Stage("04_evaluation", 3.2, "done"),))
        record.save(run)
    return Study(home, run, images)


@pytest.fixture
def study(made_study, tmp_path, monkeypatch) -> Study:
    """A copy of the study, which a test may change."""
    home = tmp_path / "study"
    shutil.copytree(made_study.home, home)
    for name in ("data", "artifacts", "reports"):
        monkeypatch.setenv(f"LUNGKIT_{name.upper()}", str(home / name))
    return Study(home, home / made_study.run.relative_to(made_study.home), home / "images" / "squares")


@pytest.fixture
def squares_set(study) -> dataset.Dataset:
    """The data set of the study, split as it was for the model."""
    return dataset.load_split(study.images, **RECIPE)


# --- a run for reports

HOSTILE = 'Of <b>all</b> & 50 % "AUC" ≥ 0.9 – α × {β} \\ #1_2 ~ ^ → 肺'  # a caption that each format has to escape


def _notebook(folder: Path, stem: str, title: str, question: str, **parameters) -> None:
    assigned = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": f"# {stem[:2]} · {title}\n\n**{question}** More."},
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": assigned, "outputs": []},
    ]
    (folder / f"{stem}.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}))
    (folder / f"{stem}.html").write_text("<!doctype html><title>page</title>")


def _version(data: dataset.Dataset) -> registry.Version:
    counts = {
        side: {"images": len(data.part(side)), "patients": data.part(side)["patient_id"].nunique()}
        for side in ("train", "val", "test")
    }
    card = model_card(
        classes=list(data.classes),
        data={"name": data.name, "fingerprint": data.fingerprint, "counts": counts, "sources": data.source_names},
        operating_point={
            "kind": "threshold", "threshold": 0.4, "positive": data.classes[1], "chosen_on": "validation",
            "criterion": "Youden's J",
        },
        temperature=1.25,
        synthetic=False,
        architecture={"name": "cnn", "parameters": 1234, "filters": 8, "blocks": 2, "dropout": 0.3,
                      "optimizer": "adam", "learning_rate": 0.002},
        training={"epochs": 9, "best_epoch": 7, "class_weights": {"0": 1.5, "1": 0.5}},
    )  # fmt: skip
    return registry.add("squares-cnn", card, lambda folder: (folder / "graph.bin").write_bytes(b"weights"))


def _test(run: Path, data: dataset.Dataset, version: registry.Version) -> None:
    labels = data.labels("test")
    right = np.clip(np.random.default_rng(3).normal(0.3 + 0.4 * labels, 0.25), 0.01, 0.99)
    measured = evaluation.evaluate(
        labels, np.stack([1 - right, right], 1), data.patients("test"), data.classes, version.rule, n_boot=200
    )
    measured.save(run, files=[str(file.name) for file in data.files("test")])
    more = {"model": str(version), "data": data.name, "split": "test", "scope": f"test: {len(labels)} images",
            "synthetic": False, "review": {"share": 0.25, "errors_held": 0.5}, "seen_in_training": 0}  # fmt: skip
    (run / "evaluation.json").write_text(json.dumps(measured.record.to_dict() | more))


@pytest.fixture(scope="session")
def made(squares, tmp_path_factory) -> Path:
    """The folders data, artifacts and reports with the run reports/one; tests get a copy."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "artifacts", "reports"):
            patch.setenv(f"LUNGKIT_{name.upper()}", str(home / name))
        data = dataset.load_split(squares, quiet=True)
        version = _version(data)
    run = home / "reports" / "one"
    run.mkdir(parents=True)
    _test(run, data, version)
    findings = pd.DataFrame(
        [["class imbalance", "warning", 3, 0.1, "Accuracy will mislead.", ""], ["leaks", "info", 0, 0.0, "None.", ""]],
        columns=["finding", "severity", "count", "share", "meaning", "examples"],
    )
    findings.to_csv(run / "audit.csv", index=False)
    for name, caption in (("04_roc", "The curve"), ("01_sample", "Some images"), ("04_odd #1", HOSTILE)):
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1])
        exhibits.figure(figure, run, name, caption)
    table = pd.DataFrame({"what": [HOSTILE, "[second]"], "value": [0.123456789, 2.0]})
    exhibits.table(table, run, "04_points", "Operating points")
    exhibits.table(pd.DataFrame({"n": range(40)}), run, "06_long", "Forty rows")
    stages = (("01_exploration", "What is in it?"), ("04_evaluation", "How good is it?"))
    for stem, question in stages:
        _notebook(run, stem, stem[3:].capitalize(), question, seed=7, profile="full")
    done = tuple(Stage(stem, 3.0, "done") for stem, _ in stages)
    parameters = {"data": str(squares), "profile": "full"}
    RunRecord.of("2026-11-30T13:00:00+00:00", parameters, done).save(run)
    return home


@pytest.fixture
def run(made, tmp_path) -> Path:
    """The folder of a finished run, in folders of the test's own."""
    for name in ("data", "artifacts", "reports"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path / "reports" / "one"
