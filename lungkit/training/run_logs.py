"""Trainings and registered versions as other tools read them: MLflow's folder of runs, and TensorBoard's events.

MLflow's layout is that of its file store (one folder a run with meta.yaml, params, metrics, tags), written without
importing mlflow. Names of runs, parameters and metrics are cleaned, as they become names of files.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lungkit import config, files
from lungkit.models import registry
from lungkit.models.card import Measured

EXPERIMENT = "lungkit"
_EXPERIMENT_ID = "1"
_STATE, _SETTINGS = "state.json", "settings.json"
_LONGEST_PARAM = 6000  # characters that MLflow takes
_FINISHED, _RUNNING, _LOCAL = 3, 1, 4  # MLflow's numbers for states and kinds of source
_NOT_METRICS = ("epoch", "seconds")


@dataclass(frozen=True)
class Run:
    """A training or a registered version. metrics: name to (step, time in ms, value), the oldest first."""

    name: str
    params: dict[str, str]
    metrics: dict[str, list[tuple[int, int, float]]]
    started: int  # ms since 1970
    ended: int
    finished: bool = True
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Always the same for the same run, so that a second writing adds no other."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"lungkit:{self.name}").hex


def collect(work: Path | None = None) -> list[Run]:
    """The trainings kept below `work` (default: config.work_dir), and the versions in the registry."""
    folder = work or config.work_dir()
    return [*_trainings(folder), *_versions()]


def _trainings(folder: Path) -> Iterator[Run]:
    for state_file in sorted(folder.rglob(_STATE)):
        try:
            state = json.loads(state_file.read_text("utf-8"))
            settings_file = state_file.with_name(_SETTINGS)
            settings = json.loads(settings_file.read_text("utf-8")) if settings_file.is_file() else {}
            rows = state["history"]
            name = state_file.parent.relative_to(folder).as_posix()
            yield _training(name, settings, rows, bool(state.get("finished")), state_file.stat().st_mtime)
        except (KeyError, TypeError, ValueError, AttributeError):  # another program's, or half of one
            continue


def _training(name: str, settings: Any, rows: list[dict[str, Any]], finished: bool, ended: float) -> Run:
    """The file's last change is the end of the last epoch; epochs say how long they took."""
    end, metrics = round(1000 * ended), dict[str, list[tuple[int, int, float]]]()
    after = [round(1000 * sum(float(row.get("seconds", 0)) for row in rows[place + 1 :])) for place in range(len(rows))]
    for row, left in zip(rows, after, strict=True):
        for metric, value in row.items():
            if metric not in _NOT_METRICS and isinstance(value, int | float):
                metrics.setdefault(_name(metric), []).append((int(row["epoch"]), end - left, float(value)))
    whole = round(1000 * sum(float(row.get("seconds", 0)) for row in rows))
    return Run(name, _flat(settings), metrics, end - whole, end, finished, {"lungkit.kind": "training"})


def _versions() -> Iterator[Run]:
    for model in registry.models():
        for version in registry.versions(model):
            try:
                card = registry.find(f"{model}@{version}").card
            except registry.ModelDamaged:
                continue
            at = round(1000 * datetime.fromisoformat(card.created).timestamp()) if card.created else 0
            metrics: dict[str, list[tuple[int, int, float]]] = {}
            for split, measured in card.metrics.items():
                metrics |= {_name(f"{split}.{name}"): [(0, at, value)] for name, value in _measured(measured)}
            params = _flat(card.training or {}) | ({"data": card.data.name} if card.data else {})
            tags = {"lungkit.kind": "version", "lungkit.version": str(version)}
            yield Run(f"{model}@{version}", params, metrics, at, at, True, tags)


def _measured(measured: Measured) -> Iterator[tuple[str, float]]:
    for name, one in measured.figures.items():
        if one.value is not None:
            yield name, one.value


def _flat(settings: Any, before: str = "") -> dict[str, str]:
    """Settings within settings as one level: {"a": {"b": 1}} is {"a.b": "1"}."""
    if not isinstance(settings, Mapping):
        text = settings if isinstance(settings, str) else json.dumps(settings, default=str)
        return {before: text[:_LONGEST_PARAM].replace("\n", " ")} if before else {}
    flat: dict[str, str] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{before}.{_name(str(name))}" if before else _name(str(name)))
    return flat


def _name(text: str) -> str:
    """A name that is also one of a file; MLflow takes letters, digits and _ - . space."""
    return re.sub(r"[^\w\-. ]", "_", text, flags=re.ASCII).strip(". ")[:200] or "_"


# --- MLflow


def write_mlflow(runs: Sequence[Run], folder: Path) -> Path:
    """Write the runs as one experiment below FOLDER/mlruns, and return that. Runs that are there are written again."""
    root = folder.absolute() / "mlruns"
    experiment = root / _EXPERIMENT_ID
    experiment.mkdir(parents=True, exist_ok=True)
    (root / ".trash").mkdir(exist_ok=True)
    times = [time for run in runs for time in (run.started, run.ended)] or [0]
    _yaml(experiment / "meta.yaml", {
        "artifact_location": experiment.as_uri(), "creation_time": min(times), "experiment_id": _EXPERIMENT_ID,
        "last_update_time": max(times), "lifecycle_stage": "active", "name": EXPERIMENT,
    })  # fmt: skip
    for run in runs:
        _write_run(experiment / run.id, run)
    return root


def _write_run(folder: Path, run: Run) -> None:
    for part in ("params", "metrics", "tags", "artifacts"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, value in run.params.items():
        files.replace(folder / "params" / name, value)
    for name, points in run.metrics.items():
        files.replace(folder / "metrics" / name, "".join(f"{time} {value!r} {step}\n" for step, time, value in points))
    for name, value in ({"mlflow.runName": run.name, "mlflow.source.type": "LOCAL"} | run.tags).items():
        files.replace(folder / "tags" / name, value)
    _yaml(folder / "meta.yaml", {
        "artifact_uri": (folder / "artifacts").as_uri(), "end_time": run.ended if run.finished else None,
        "entry_point_name": "", "experiment_id": _EXPERIMENT_ID, "lifecycle_stage": "active", "run_id": run.id,
        "run_name": run.name, "run_uuid": run.id, "source_name": "", "source_type": _LOCAL, "source_version": "",
        "start_time": run.started, "status": _FINISHED if run.finished else _RUNNING, "tags": [], "user_id": "",
    })  # fmt: skip


def _yaml(path: Path, values: Mapping[str, Any]) -> None:
    """JSON is YAML, too."""
    files.replace(path, "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))


# --- TensorBoard


def write_tensorboard(runs: Sequence[Run], folder: Path) -> Path:
    """Write an event file for each run that has metrics, below FOLDER/tensorboard, and return that.

    A run that is there is left as it is, because TensorBoard would show its points twice.
    """
    import lungkit.backend  # noqa: F401  # before TensorFlow, whose start-up notes it holds back

    root = folder.absolute() / "tensorboard"
    root.mkdir(parents=True, exist_ok=True)
    import tensorflow as tf

    for run in runs:
        place = root / _name(run.name)
        if not run.metrics or place.exists():
            continue
        with files.new_folder(place) as draft:
            writer = tf.summary.create_file_writer(str(draft))
            with writer.as_default():
                for name, points in run.metrics.items():
                    for step, _, value in points:
                        tf.summary.scalar(name, value, step=step)
            writer.close()
    return root
