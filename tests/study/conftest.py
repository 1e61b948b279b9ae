"""A small study: the squares, a graph that mostly tells left from right, and the folder of its run."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from lungkit import config, files
from lungkit.data import dataset, preprocess
from lungkit.models import graph, registry
from lungkit.models.card import ModelCard
from lungkit.study.provenance import RunRecord, Stage
from lungkit.training import release
from tests.cards import VALUES

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
