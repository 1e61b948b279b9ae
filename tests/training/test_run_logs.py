"""Runs for MLflow and TensorBoard: what a training has kept, under names that are safe as names of files."""

import json
from pathlib import Path

import pytest
import typer.testing

from lungkit import cli, config
from lungkit.training import run_logs

ROWS = [
    {"epoch": 1, "loss": 0.7, "val_loss": 0.8, "seconds": 10.0},
    {"epoch": 2, "loss": 0.5, "val_loss": 0.6, "seconds": 20.0},
]


@pytest.fixture
def work(tmp_path):
    """A folder of work with one finished training, and files of others."""
    folder = tmp_path / "work" / "recipe-ab12" / "seed-1"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"history": ROWS, "finished": True}))
    (folder / "settings.json").write_text(json.dumps({"epochs": 2, "recipe": {"rate": 0.1, "../../x": "a\nb"}}))
    for name, text in {"other": "{}", "broken": "{", "list": "[1]"}.items():
        (tmp_path / "work" / name).mkdir()
        (tmp_path / "work" / name / "state.json").write_text(text)
    return tmp_path / "work"


@pytest.fixture
def empty_registry(monkeypatch, tmp_path):
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))


def test_a_training_is_a_run_with_its_settings_and_each_epoch(work, empty_registry):
    (run,) = run_logs.collect(work)
    assert run.name == "recipe-ab12/seed-1"
    assert run.params["epochs"] == "2"
    assert run.params["recipe.rate"] == "0.1"
    assert [(step, value) for step, _, value in run.metrics["val_loss"]] == [(1, 0.8), (2, 0.6)]
    assert run.ended - run.started == 30_000
    assert [run.ended - time for _, time, _ in run.metrics["loss"]] == [20_000, 0]
    assert set(run.metrics) == {"loss", "val_loss"}


def test_no_name_leads_out_of_the_folder(work, empty_registry, tmp_path):
    root = run_logs.write_mlflow(run_logs.collect(work), tmp_path / "out")
    (run,) = [path for path in (root / "1").iterdir() if path.is_dir()]
    names = {path.name for path in (run / "params").iterdir()}
    assert names == {"epochs", "recipe.rate", "recipe._.._x"}
    assert "\n" not in (run / "params" / "recipe._.._x").read_text()
    assert all("/" not in name and not name.startswith(".") for name in names)


def test_mlflows_files_are_as_its_file_store_has_them(work, empty_registry, tmp_path):
    yaml = pytest.importorskip("yaml")
    root = run_logs.write_mlflow(run_logs.collect(work), tmp_path / "out")
    (run,) = [path for path in (root / "1").iterdir() if path.is_dir()]
    meta = yaml.safe_load((run / "meta.yaml").read_text())
    assert (meta["run_id"], meta["run_name"], meta["status"]) == (run.name, "recipe-ab12/seed-1", 3)
    lines = (run / "metrics" / "loss").read_text().splitlines()
    assert [line.split()[1:] for line in lines] == [["0.7", "1"], ["0.5", "2"]]
    assert yaml.safe_load((root / "1" / "meta.yaml").read_text())["name"] == "lungkit"


def test_a_second_writing_adds_no_second_run(work, empty_registry, tmp_path):
    for _ in range(2):
        root = run_logs.write_mlflow(run_logs.collect(work), tmp_path / "out")
    assert len([path for path in (root / "1").iterdir() if path.is_dir()]) == 1


def test_registered_versions_are_runs_with_their_figures(monkeypatch, tmp_path, shipped):
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(shipped))
    runs = {run.name.partition("@")[0]: run for run in run_logs.collect(tmp_path)}
    assert set(runs) >= {"ct-covid", "chest-xray-pneumonia"}
    run = runs["ct-covid"]
    assert 0.5 < run.metrics["test.auc"][0][2] < 1
    assert run.params["backbone"].startswith("efficientnet")
    assert run.started > 1_700_000_000_000


def test_tensorboard_reads_the_epochs_that_were_written(work, empty_registry, tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.util import tensor_util

    for _ in range(2):
        root = run_logs.write_tensorboard(run_logs.collect(work), tmp_path / "out")
    (place,) = root.iterdir()
    events = loader.EventAccumulator(str(place)).Reload()
    points = [(one.step, float(tensor_util.make_ndarray(one.tensor_proto))) for one in events.Tensors("val_loss")]
    assert points == [(1, pytest.approx(0.8)), (2, pytest.approx(0.6))]


def test_the_command_says_how_many_runs_it_wrote_and_refuses_other_formats(work, empty_registry, monkeypatch, tmp_path):
    monkeypatch.setattr(config, "work_dir", lambda: work)
    run = typer.testing.CliRunner().invoke
    answer = run(cli.app, ["runs", str(tmp_path / "out"), "--only", "mlflow"])
    assert answer.exit_code == 0
    assert "1 runs" in answer.output
    assert Path(tmp_path / "out" / "mlruns").is_dir()
    assert "accepted are mlflow and tensorboard" in str(run(cli.app, ["runs", str(tmp_path), "--only", "x"]).exception)
