"""Check a study's capsule (lungkit.study.capsule) in a stranger's hands: a list of checks with their results.

Nothing of the capsule is executed, and nothing is written outside a temporary folder. A check that ends in an error has
failed: whatever a file contains, it is not what a capsule has there.

What this cannot show: that the predictions are the model's, unless the model reads the images again (`rescore`), and
who made the capsule. A person who rewrites every file and every hash makes another capsule. Compare the archive's
SHA-256 with the one that its authors published.
"""

import io
import json
import math
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lungkit import files, progress
from lungkit.data import preprocess, splits
from lungkit.data.dataset import Dataset
from lungkit.data.folders import few, one_line
from lungkit.data.image import ImageRefused
from lungkit.errors import LungkitError
from lungkit.models import graph
from lungkit.models.card import ModelCard
from lungkit.study import capsule_layout as layout
from lungkit.study import sealed_zip
from lungkit.training import evaluation
from lungkit.training.evaluation import Evaluation
from lungkit.wording import count, listed

if TYPE_CHECKING:
    from lungkit.study.plan import Plan

OK, FAILED, NOT_CHECKED = "ok", "failed", "not checked"
TOLERANCE = 1e-3  # of a probability, when the model reads an image on another machine
_DIGITS = 1e-9  # of a figure: sums of floating-point numbers can end differently on another processor


@dataclass(frozen=True)
class Check:
    """What was checked, with which result, and what was found or why not."""

    what: str
    state: str  # OK, FAILED or NOT_CHECKED
    why: str


class _NotChecked(Exception):
    """Something that the check needs is not there, and the capsule says so."""


def capsule(path: Path, data: Path | None = None, rescore: bool = False) -> list[Check]:
    """Every check of a capsule. data: the folder of its images. rescore: let its model read the test images again."""
    try:
        archive = sealed_zip.Sealed(path)
    except LungkitError as error:
        return [Check("archive", FAILED, str(error))]
    with archive:
        opened = Check("archive", OK, f"{len(archive.names):,} plain files, each as it is packed, and nothing else")
        study = _Capsule(archive, data)
        checks: dict[str, Callable[[], str]] = {
            "every file's hash": study.hashes,
            "model's files and card": study.model_files,
            "data set": study.data_set,
            "predictions": study.predictions,
            "unreadable images": study.unreadable,
            "figures from the predictions": study.figures,
            "no test image in training": study.unseen,
            "plan": study.plan,
            "code": study.code,
            "images' hashes": study.images,
            "predictions by the model": study.rescored if rescore else _not_asked,
        }
        return [opened, *(_checked(what, check) for what, check in checks.items())]


def _checked(what: str, check: Callable[[], str]) -> Check:
    try:
        return Check(what, OK, one_line(check()))
    except _NotChecked as reason:
        return Check(what, NOT_CHECKED, one_line(reason))
    except LungkitError as error:
        return Check(what, FAILED, one_line(error))
    except Exception as error:  # a stranger's file can end a check in any way, and none of them passes it
        return Check(what, FAILED, one_line(f"it cannot be checked: {type(error).__name__}: {error}")[:300])


def _not_asked() -> str:
    raise _NotChecked("--rescore with --data FOLDER lets the model read the images again")


class _Capsule:
    """The checks of one archive; each returns what it found, or raises."""

    def __init__(self, archive: sealed_zip.Sealed, data: Path | None):
        self.archive, self.folder = archive, data

    # --- its files

    @cached_property
    def about(self) -> dict[str, Any]:
        """capsule.json."""
        about: dict[str, Any] = self._json(layout.ABOUT)
        if about["schema"] > layout.SCHEMA:
            raise LungkitError(f"its schema is {about['schema']}; this lungkit reads up to {layout.SCHEMA}")
        return about

    @cached_property
    def scored(self) -> dict[str, Any]:
        """evaluation.json."""
        scored: dict[str, Any] = self._json(f"{layout.RUN}/{layout.EVALUATION}")
        return scored

    @cached_property
    def _run(self) -> dict[str, Any]:
        """run.json."""
        run: dict[str, Any] = self._json(f"{layout.RUN}/run.json")
        return run

    @cached_property
    def model(self) -> str:
        """The folder of the version."""
        name, _, version = str(self.about["model"]).partition("@")
        return f"{layout.MODEL}/{name}/{version}"

    @cached_property
    def card(self) -> ModelCard:
        """The card of the version."""
        return ModelCard.from_dict(self._json(f"{self.model}/card.json"))

    @cached_property
    def predicted(self) -> pd.DataFrame:
        """predictions.csv, in its order."""
        return self._table(f"{layout.RUN}/{layout.PREDICTIONS}")

    @cached_property
    def manifest(self) -> pd.DataFrame | None:
        """The data set's manifest; None where the capsule says that it has none."""
        name = f"{layout.DATA}/manifest.csv"
        return None if self._left_out(name) else self._table(name)

    def _json(self, name: str) -> Any:
        return json.loads(self._read(name))

    def _read(self, name: str) -> bytes:
        if name not in self.archive.names:
            raise LungkitError(f"{name} is missing")
        return self.archive.read(name)

    def _table(self, name: str) -> pd.DataFrame:
        """A table of texts, from which numbers are made where they are needed: no digit is lost."""
        return pd.read_csv(io.BytesIO(self._read(name)), dtype=str, keep_default_na=False)

    def _left_out(self, name: str) -> str:
        """Why a file is not in the capsule; empty where it should be. A file that is there was not left out."""
        if name in self.archive.names:
            return ""
        return next((str(one["why"]) for one in self.about["left_out"] if one["what"] == name), "")

    # --- checks

    def hashes(self) -> str:
        stated = _sums(self._read(layout.MANIFEST))
        _fail("not in the manifest", set(self.archive.names) - set(stated) - {layout.MANIFEST})
        _fail("missing", set(stated) - set(self.archive.names))
        wrong = {name for name, digest in stated.items() if files.sha256(self.archive.read(name)) != digest}
        _fail("not as the manifest says", wrong)
        return f"{count(len(stated), 'file')} as {layout.MANIFEST} says"

    def model_files(self) -> str:
        """Every file of the version has the hash of SHA256SUMS, and the card's own record of it."""
        if f"{self.card.model}@{self.card.version}" != self.scored["model"]:
            raise LungkitError(f"the card is of {self.card.model}@{self.card.version}, not of {self.scored['model']}")
        stated = _sums(self._read(f"{self.model}/SHA256SUMS"))
        there = {
            name.removeprefix(f"{self.model}/") for name in self.archive.names if name.startswith(f"{self.model}/")
        }
        _fail("not registered with the version", there - {"SHA256SUMS"} - set(stated))
        apart = {name for name in set(stated) - there if self._left_out(f"{self.model}/{name}")}
        _fail("missing", set(stated) - there - apart)
        recorded = {name: of.sha256 for name, of in self.card.files.items()}
        _fail("not as the card says", {name for name in recorded if stated.get(name) != recorded[name]})
        checked = sorted(set(stated) & there)
        _fail(
            "not as registered",
            {name for name in checked if files.sha256(self.archive.read(f"{self.model}/{name}")) != stated[name]},
        )
        left = f"; left out on request: {few(sorted(apart))}" if apart else ""
        return f"{count(len(checked), 'file')} of {self.scored['model']} as registered{left}"

    def data_set(self) -> str:
        """The manifest has the fingerprint of the set that was scored, and that of the card if it is the same set."""
        if self.manifest is None:
            raise _NotChecked(self._left_out(f"{layout.DATA}/manifest.csv"))
        record = self._json(f"{layout.DATA}/dataset.json")
        again = Dataset(record["name"], tuple(record["classes"]), self.manifest, Path()).fingerprint
        if again != record["fingerprint"] or record["name"] != self.scored["data"]:
            raise LungkitError(f"the manifest is not that of {self.scored['data']}: its fingerprint is {again}")
        learned_from = self.card.data
        if record["name"] == learned_from.name and again != learned_from.fingerprint:
            raise LungkitError(f"it is not the set that the model learned from, though both are {record['name']}")
        own = "the set that the model learned from" if again == learned_from.fingerprint else "a set new to the model"
        return f"{record['name']}, {count(len(self.manifest), 'row')}: {own}"

    def predictions(self) -> str:
        """One row for each image of the part that was scored, in the manifest's order, with its label and patient."""
        table = self.predicted
        classes = list(self.card.classes)
        decided = self.card.rule.decide(self.probabilities)
        wrong = table["file"][table["predicted"].to_numpy(str) != np.array(classes)[decided]]
        _fail("predicted another class than its probabilities and the decision rule give", set(wrong))
        if self.manifest is None:
            raise _NotChecked(f"without a manifest: {self._left_out(f'{layout.DATA}/manifest.csv')}")
        rows = self._scored_rows(self.manifest)
        expected = rows[["file", "patient_id"]].to_numpy(str).tolist()
        if table[["file", "patient"]].to_numpy(str).tolist() != expected:
            raise LungkitError(f"its images or patients are not those of part '{self.scored['split']}', in their order")
        same = rows["label"].str.casefold().to_numpy(str) == table["true"].str.casefold().to_numpy(str)
        _fail("another label than in the manifest", set(table["file"][~same]))
        return f"{count(len(table), 'image')}: those of part '{self.scored['split']}', with their labels and patients"

    def unreadable(self) -> str:
        """Images without a prediction, which leave the figures: where the folder is given, none of them can be read."""
        named, split = self._unreadable, self.scored["split"]
        _fail("said to be unreadable, and in predictions.csv", set(named) & set(self.predicted["file"]))
        refused: set[str] = set()
        if self.manifest is not None:
            _fail("said to be unreadable, and not in the manifest", set(named) - set(self.manifest["file"]))
            refused = set(self.manifest["file"][self.manifest["split"] == splits.REFUSED])
        says = f"{count(len(set(named) - refused), 'image')} of part '{split}' said to be unreadable, and so not scored"
        says += f"; {len(refused):,} more were refused before the split" if refused else ""
        if not named and not refused:
            return f"no image of part '{split}' is said to be unreadable"
        if self.folder is None:
            raise _NotChecked(f"{says}. --data FOLDER tries to read them")
        _fail(f"{says}; these can be read", {name for name in {*named, *refused} if self._can_be_read(name)})
        return f"{says}; none of them can be read"

    def figures(self) -> str:
        """metrics.csv, confusion.csv and evaluation.json are what the predictions give."""
        again = self.evaluation
        found = _differences(again.to_dict() | {"review": self._review(again)}, self.scored, layout.EVALUATION)
        metrics = self._table(f"{layout.RUN}/{layout.METRICS}")
        metrics[["value", "low", "high"]] = metrics[["value", "low", "high"]].replace("", np.nan).astype(float)
        found += _differences(_rows(again.metrics), _rows(metrics), layout.METRICS)
        confusion = self._read(f"{layout.RUN}/{layout.CONFUSION}").decode()
        if confusion != again.confusion.to_csv():
            found.append(f"{layout.CONFUSION} has other counts")
        if found:
            raise LungkitError(few(found))
        numbers = int(again.metrics[["value", "low", "high"]].count().sum())
        return f"{numbers} numbers computed again, with {again.n_boot} resamples of patients: equal to nine digits"

    def unseen(self) -> str:
        """As many of the scored images were learned from as evaluation.json says."""
        if self.manifest is None:
            raise _NotChecked("the capsule has no manifest, and so no hash of the images")
        known = set(self._read(f"{self.model}/trained_on.txt").decode().split())
        seen = int(self._scored_rows(self.manifest)["sha256"].isin(known).sum())
        if seen != self.scored["seen_in_training"]:
            raise LungkitError(f"{seen} were learned from; {layout.EVALUATION} says {self.scored['seen_in_training']}")
        if seen:
            raise LungkitError(f"{count(seen, 'image')} of the test were learned from: the figures are too good")
        return "none of the images scored is among those that the model learned from or was chosen on"

    def plan(self) -> str:
        """plan.json's hash is that of its plan; its result and deviations are what the study's own files give."""
        name = f"{layout.RUN}/plan.json"
        if name not in self.archive.names:
            raise _NotChecked("no plan was fixed before the test was read")
        from lungkit.study import plan, plan_text

        record = self._json(name)
        read = plan.of(record["plan"])
        if read.sha256 != record["sha256"]:
            raise LungkitError(f"the plan has the hash {read.sha256}, and plan.json says {record['sha256']}")
        if record["result"] is None:
            raise LungkitError("the plan was fixed, and its result was never added: notebook 04 stopped")
        self._result(read, record["result"])
        self._deviations(read, record)
        elsewhere = f"; the comparison with {read.not_worse_than} is not computed again" if read.not_worse_than else ""
        fixed = f"Fixed on {plan_text.moment(record['fixed_at'])}{self._too_early(record['fixed_at'])}"
        return f"{' '.join(plan_text.became(record))} {fixed}{elsewhere}"

    def _result(self, plan: "Plan", result: Mapping[str, Any]) -> None:
        """The figure follows from the predictions, and the verdict and its sentence from the figure."""
        from lungkit.study import outcome

        stated = (result["value"], *result["interval"])
        if plan.not_worse_than:  # the other version's predictions are not here
            value, low, high = (math.nan if number is None else float(number) for number in stated)
        else:
            value, low, high = outcome.alone(plan, self.evaluation)
            if _differences([_plain(one) for one in (value, low, high)], stated, "result"):
                raise LungkitError(f"its result is {list(stated)}; the predictions give {[value, low, high]}")
        verdict, sentence = outcome.judged(plan, (value, low, high))
        if (result["verdict"], result["says"]) != (verdict, sentence):
            raise LungkitError(f"it says '{result['verdict']}: {result['says']}', where its figure gives '{sentence}'")

    def _deviations(self, plan: "Plan", record: Mapping[str, Any]) -> None:
        """Each deviation that the study's files show is among those stated, and a look at the test is counted."""
        from lungkit.study import deviations

        card, patients = self.card, len(set(self.predicted["patient"]))
        version = f"{card.model}@{card.version}"
        found = deviations.another_study(
            plan, self.scored["data"], self.scored["synthetic"], str(card.model), version
        ) + deviations.too_few(plan, patients)
        if silent := [one for one in found if one not in record["deviations"]]:
            raise LungkitError(f"deviations that plan.json does not state: {' '.join(silent)}")
        if record["looks"] < 1:
            raise LungkitError("plan.json counts no look at the test, which was read")

    def _too_early(self, fixed_at: str) -> str:
        """A warning where the plan was fixed before there was the model or the run that fixed it."""
        dates = {"the model was registered": self.card.created, "the run started": self._run["started"]}
        before = datetime.fromisoformat(fixed_at)
        late = [f"{what} at {at}" for what, at in dates.items() if at and datetime.fromisoformat(at) > before]
        return f" (WARNING: that is earlier than the study: {listed(late, 'and')})" if late else ""

    def code(self) -> str:
        """The source is that of the commit that run.json names."""
        commit = self._run["code"].get("commit")
        if why := self._left_out(layout.SOURCE):
            raise _NotChecked(why)
        with tarfile.open(fileobj=io.BytesIO(self._read(layout.SOURCE)), mode="r:") as source:
            stated = source.pax_headers.get("comment")
        if stated != commit:
            raise LungkitError(f"{layout.SOURCE} states commit {stated}, and run.json {commit}")
        changed = f", and {layout.PATCH}" if layout.PATCH in self.archive.names else ""
        return f"{layout.SOURCE} states commit {commit}, as run.json does{changed}"

    def images(self) -> str:
        """Each image in the folder has its hash of the manifest."""
        if self.folder is None:
            raise _NotChecked("--data FOLDER compares each image with its hash")
        if self.manifest is None:
            raise _NotChecked("the capsule has no manifest")
        rows = self.manifest[["file", "sha256"]].drop_duplicates("file")
        paths = [_below(self.folder, name) for name in rows["file"]]
        found = list(progress.parallel(_digest, paths, label="images"))
        given = list(zip(rows["file"], rows["sha256"], found, strict=True))
        _fail("not in the folder", {name for name, _, now in given if not now})
        _fail("another file than in the study", {name for name, before, now in given if now != before})
        return f"{count(len(rows), 'image')} as in the study"

    def rescored(self) -> str:
        """The model gives the predictions again."""
        if why := self._left_out(f"{self.model}/{graph.FILE}"):
            raise _NotChecked(why)
        self.images()  # other images would have other probabilities
        self.model_files()
        paths = [_below(Path(self.folder or ""), name) for name in self.predicted["file"]]
        difference = np.abs(self._answers(paths) - self.probabilities).max(axis=1)
        wrong = set(self.predicted["file"][difference > TOLERANCE])
        _fail(f"another probability, by more than {TOLERANCE}", wrong)
        return f"{count(len(paths), 'image')} read again; the largest difference is {difference.max():.1e}"

    # --- what they share

    @cached_property
    def _unreadable(self) -> list[str]:
        """The files that evaluation.json says could not be read."""
        return [str(one["file"]) for one in self.scored["unreadable"]]

    def _can_be_read(self, name: str) -> bool:
        """Whether the model could have seen an image. LungkitError where the folder has another file, or none."""
        path, stated = _below(Path(self.folder or ""), name), self.manifest
        if stated is None or _digest(path) not in set(stated["sha256"][stated["file"] == name]):
            raise LungkitError(f"{name} is said to be unreadable, and the folder does not have that file to try")
        try:
            preprocess.prepare(path, self.card.preprocessing)
        except ImageRefused:
            return False
        return True

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float64 (n, classes), in the order of predictions.csv."""
        names = [f"probability {name}" for name in self.card.classes]
        return self.predicted[names].astype(float).to_numpy()

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation of the predictions, computed again."""
        table, classes = self.predicted, list(self.card.classes)
        true = np.array([classes.index(name) for name in table["true"]])
        return evaluation.evaluate(
            true, self.probabilities, table["patient"].to_numpy(str), classes, self.card.rule, sources=self._sources()
        )

    def _sources(self) -> np.ndarray:
        """The source of each image; one for all where there is no manifest."""
        if self.manifest is None:
            return np.full(len(self.predicted), "")
        by_file = self.manifest.drop_duplicates("file").set_index("file")["source"]
        return by_file.loc[self.predicted["file"]].to_numpy(str)

    def _review(self, of: Evaluation) -> dict[str, Any]:
        return evaluation.review(self.card.rule, of.true, of.probabilities, of.patients, of.sources)

    def _scored_rows(self, manifest: pd.DataFrame) -> pd.DataFrame:
        """The manifest's rows that were scored: those of the part, without the ones that could not be read."""
        split = self.scored["split"]
        all_of_them = manifest[manifest["split"] != splits.REFUSED].drop_duplicates("file")
        rows = all_of_them if split == "all" else manifest[manifest["split"] == split]
        return rows[~rows["file"].isin(self._unreadable)]

    def _answers(self, paths: list[Path]) -> np.ndarray:
        """The model's probabilities of these images, (n, classes)."""
        with tempfile.TemporaryDirectory(prefix="lungkit-") as temporary:
            for name in (graph.FILE, Path(graph.FILE).with_suffix(".bin").name):
                (Path(temporary) / name).write_bytes(self._read(f"{self.model}/{name}"))
            runtime = graph.Graph(Path(temporary), heat=False)
            answers = [runtime(tensor[None])["probabilities"][0] for tensor in self._tensors(paths)]
        probabilities = np.array(answers, np.float64)
        return probabilities / probabilities.sum(axis=1, keepdims=True)

    def _tensors(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """Each image as the model sees it."""
        for path in progress.bar(paths, label="reading"):
            yield preprocess.prepare(path, self.card.preprocessing).tensor


def _fail(what: str, names: set[str]) -> None:
    """Raise where there is a name, with the first few."""
    if names:
        raise LungkitError(f"{what}: {few(sorted(names))}")


def _sums(content: bytes) -> dict[str, str]:
    """Name to hash of a file as sha256sum writes it."""
    lines = [line.partition("  ") for line in content.decode().splitlines()]
    if len({name for _, _, name in lines}) < len(lines):
        raise LungkitError("a name is given two hashes")
    return {name: digest for digest, _, name in lines}


def _below(folder: Path, name: str) -> Path:
    """A file of the data set; a name that leads out of its folder is refused."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise LungkitError(f"the manifest has a name that leads out of the folder: {name}")
    return path


def _digest(path: Path) -> str:
    """The hash of a file; empty where there is none that can be read."""
    try:
        return files.sha256(path)
    except OSError:
        return ""


def _rows(metrics: pd.DataFrame) -> list[Any]:
    """metrics.csv as plain values, None where undefined."""
    table = metrics[["metric", "class", "value", "low", "high"]].astype({"class": str})
    return [[_plain(cell) for cell in row] for row in table.itertuples(index=False)]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


def _differences(expected: Any, stated: Any, where: str) -> list[str]:
    """Where stated values are not the expected ones; what is stated beyond them is not looked at."""
    if isinstance(expected, Mapping):
        if not isinstance(stated, Mapping):
            return [f"{where} is {stated}"]
        return [
            line
            for key, value in expected.items()
            for line in (
                [f"{where}: {key} is missing"]
                if key not in stated
                else _differences(value, stated[key], f"{where}: {key}")
            )
        ]
    if isinstance(expected, list | tuple):
        if not isinstance(stated, list | tuple) or len(stated) != len(expected):
            return [f"{where} has another number of values"]
        pairs = enumerate(zip(expected, stated, strict=True))
        return [line for at, (one, other) in pairs for line in _differences(one, other, f"{where}[{at}]")]
    numbers = isinstance(expected, float) and isinstance(stated, int | float) and not isinstance(stated, bool)
    same = abs(expected - stated) <= _DIGITS if numbers else expected == stated and type(expected) is type(stated)
    return [] if same else [f"{where} is {stated}; the predictions give {expected}"]
