"""A finished run with everything that a report can show, made without training: a data set, a version, a test."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lungkit.data import dataset
from lungkit.models import registry
from lungkit.study.provenance import RunRecord, Stage
from lungkit.training import evaluation, exhibits
from tests.cards import model_card

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
