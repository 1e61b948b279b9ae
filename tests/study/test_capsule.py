"""A study in one archive: complete, the same each time, and every change to it is found by a stranger."""

import io
import json
import os
import re
import stat
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import yaml

import lungkit
from lungkit import files
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.card import ModelCard
from lungkit.study import capsule, capsule_texts, material, plan, sealed_zip, verify
from lungkit.study.capsule_texts import About, Author
from lungkit.training import evaluation, release
from tests.study.conftest import write_graph

ABOUT = About("Left or right", (Author("Doe", "Jane", "0000-0002-1825-0097"),), "CC-BY-4.0")


@pytest.fixture
def packed(study, tmp_path):
    """The capsule of the study."""
    out = tmp_path / "capsule.zip"
    capsule.make(study.run, out, ABOUT)
    return out


def _members(path) -> dict[str, bytes]:
    with sealed_zip.Sealed(path) as archive:
        return {name: archive.read(name) for name in archive.names}


def _states(checks) -> dict[str, str]:
    return {one.what: one.state for one in checks}


def _failed(path, *arguments) -> dict[str, str]:
    return {one.what: one.why for one in verify.capsule(path, *arguments) if one.state == verify.FAILED}


# --- making one


def test_a_capsule_has_results_model_data_table_and_texts_and_no_image(packed, study):
    members = _members(packed)
    assert {"README.md", "LICENCES.md", "CITATION.cff", "ro-crate-metadata.json", "capsule.json"} <= set(members)
    assert {"run/predictions.csv", "run/run.json", "run/figures/04_roc.png", "data/SOURCE.md"} <= set(members)
    assert {"model/squares-cnn/v1/graph.xml", "model/squares-cnn/v1/card.json"} <= set(members)
    assert "sha256" in members["data/manifest.csv"].decode().splitlines()[0]
    images = {files.sha256(path) for path in study.images.glob("*.png")}
    assert images.isdisjoint(map(files.sha256, members.values()))


def test_the_same_run_gives_the_same_bytes(packed, study, tmp_path):
    again = tmp_path / "again.zip"
    capsule.make(study.run, again, ABOUT)
    assert again.read_bytes() == packed.read_bytes()


def test_sha256sum_accepts_the_unpacked_capsule(packed, tmp_path):
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    done = subprocess.run(["sha256sum", "-c", "--strict", "MANIFEST.sha256"], cwd=tmp_path / "unpacked", check=False)
    assert done.returncode == 0


def test_no_text_names_a_folder_of_this_machine(packed, study):
    told = [name for name, content in _members(packed).items() if str(study.home).encode() in content]
    assert told == []
    assert b"written to run/metrics.csv" in _members(packed)["run/04_evaluation.ipynb"]


def test_without_pictures_and_without_the_model_say_what_is_missing_and_keep_the_card(study, tmp_path):
    out = tmp_path / "small.zip"
    contents = capsule.make(study.run, out, ABOUT, with_model=False, with_pictures=False)
    members = _members(out)
    gone = {one.what for one in contents.left_out}
    assert {"run/figures/04_roc.png", "model/squares-cnn/v1/graph.bin", "model/squares-cnn/v1/graph.xml"} <= gone
    assert gone.isdisjoint(members)
    assert "model/squares-cnn/v1/card.json" in members
    assert b"image/png" not in members["run/04_evaluation.ipynb"]
    assert all(name in members["README.md"].decode() for name in gone)
    assert verify.FAILED not in _states(verify.capsule(out)).values()
    assert _states(verify.capsule(out, study.images, True))["predictions by the model"] == verify.NOT_CHECKED


@pytest.mark.parametrize("name", ["evaluation.json", "predictions.csv", "metrics.csv", "run.json"])
def test_a_folder_that_is_no_finished_run_is_refused_with_what_it_lacks(study, tmp_path, name):
    (study.run / name).unlink()
    with pytest.raises(LungkitError, match=re.escape(name)):
        capsule.make(study.run, tmp_path / "x.zip", ABOUT)
    assert not (tmp_path / "x.zip").exists()


def test_an_archive_that_exists_is_not_overwritten(packed, study):
    with pytest.raises(LungkitError, match="exists already"):
        capsule.make(study.run, packed, ABOUT)


def test_a_damaged_model_is_not_packed(study, tmp_path):
    (registry.find("squares-cnn").folder / "graph.bin").write_bytes(b"other")
    with pytest.raises(registry.ModelDamaged):
        capsule.make(study.run, tmp_path / "x.zip", ABOUT)


def test_a_set_that_was_scored_as_it_is_given_is_read_again_for_its_hashes(study, squares_set, tmp_path):
    for file in (study.home / "data" / "manifests" / "squares").iterdir():
        file.unlink()
    record = json.loads((study.run / "run.json").read_text())
    record["parameters"]["data"] = str(study.images)
    (study.run / "run.json").write_text(json.dumps(record))
    out = tmp_path / "given.zip"
    capsule.make(study.run, out, ABOUT)
    assert _failed(out, study.images, True) == {}
    assert _states(verify.capsule(out))["data set"] == verify.OK


# --- the code


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of a small project in the place of lungkit's own."""
    home = tmp_path / "checkout"
    (home / "lungkit").mkdir(parents=True)
    (home / "lungkit" / "a.py").write_text("one = 1\n")
    git = ["git", "-C", str(home), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(lungkit, "__file__", str(home / "lungkit" / "__init__.py"))
    return home


def _of_checkout(study) -> None:
    from lungkit.study import provenance

    record = json.loads((study.run / "run.json").read_text())
    (study.run / "run.json").write_text(json.dumps(record | {"code": provenance.code()}))


def test_the_source_is_that_of_the_runs_commit_whatever_came_after(study, checkout, tmp_path):
    _of_checkout(study)
    (checkout / "lungkit" / "a.py").write_text("two = 2\n")
    capsule.make(study.run, tmp_path / "x.zip", ABOUT)
    members = _members(tmp_path / "x.zip")
    with tarfile.open(fileobj=io.BytesIO(members["code/source.tar"])) as source:
        assert source.extractfile("lungkit/a.py").read() == b"one = 1\n"
    assert "code/changes.patch" not in members
    assert _states(verify.capsule(tmp_path / "x.zip"))["code"] == verify.OK


def test_changes_that_were_in_no_commit_come_as_a_patch_if_they_are_still_those_of_the_run(study, checkout, tmp_path):
    (checkout / "lungkit" / "a.py").write_text("two = 2\n")
    (checkout / "lungkit" / "new.py").write_text("")
    _of_checkout(study)
    first = capsule.make(study.run, tmp_path / "x.zip", ABOUT)
    assert b"+two = 2" in _members(tmp_path / "x.zip")["code/changes.patch"]
    assert [one.what for one in first.left_out] == ["code/lungkit/new.py"]
    (checkout / "lungkit" / "a.py").write_text("three = 3\n")
    second = capsule.make(study.run, tmp_path / "y.zip", ABOUT)
    assert "code/changes.patch" in [one.what for one in second.left_out]


def test_source_of_another_commit_is_found(study, checkout, tmp_path):
    _of_checkout(study)
    capsule.make(study.run, tmp_path / "x.zip", ABOUT)

    def other_commit(members):
        record = json.loads(members["run/run.json"])
        record["code"]["commit"] = "0" * 40
        members["run/run.json"] = json.dumps(record).encode()

    assert "code" in _failed(_tampered(tmp_path / "x.zip", other_commit))


# --- its texts


def test_the_citation_names_title_authors_and_licence_however_they_are_written(study, tmp_path):
    about = About('A "study": of\n#1', (Author("O'Neil: x", "Zoë", ""),), "CC0-1.0")
    capsule.make(study.run, tmp_path / "x.zip", about)
    cited = yaml.safe_load(_members(tmp_path / "x.zip")["CITATION.cff"])
    assert (cited["cff-version"], cited["type"], cited["license"]) == ("1.2.0", "dataset", "CC0-1.0")
    assert cited["title"] == 'A "study": of\n#1'
    assert cited["authors"] == [{"family-names": "O'Neil: x", "given-names": "Zoë"}]
    assert str(cited["date-released"]) == "2026-11-30"


@pytest.mark.parametrize("text", ["Doe", "Doe,", ", Jane", "Doe, Jane; 0000-0002-1825-0098", "Doe, Jane; x"])
def test_an_author_is_family_and_given_name_and_an_orcid_with_its_check_digit(text):
    with pytest.raises(LungkitError, match="--author"):
        Author.parse(text)


@pytest.mark.parametrize("orcid", ["0000-0002-1825-0097", "0000-0001-5109-3700", "0000-0002-1694-233X"])
def test_the_orcids_of_its_own_documentation_are_accepted(orcid):
    assert Author.parse(f"Doe, Jane; {orcid}") == Author("Doe", "Jane", orcid)


def test_a_licence_is_one_of_spdx():
    assert capsule_texts.known_licence("CC-BY-4.0") == "CC-BY-4.0"
    with pytest.raises(LungkitError, match=r"accepted: CC-BY-4\.0, CC0-1\.0"):
        capsule_texts.known_licence("CC BY 4")


def test_every_member_is_an_entity_of_the_crate_with_its_size(packed):
    members = _members(packed)
    graph = {one["@id"]: one for one in json.loads(members["ro-crate-metadata.json"])["@graph"]}
    apart = {"ro-crate-metadata.json", "MANIFEST.sha256"}
    assert {part["@id"] for part in graph["./"]["hasPart"]} == set(members) - apart
    assert all(graph[name]["contentSize"] == str(len(members[name])) for name in set(members) - apart)


# --- checking one


def test_an_untouched_capsule_passes_and_says_what_was_not_checked(packed):
    states = _states(verify.capsule(packed))
    assert verify.FAILED not in states.values()
    assert {what for what, state in states.items() if state == verify.NOT_CHECKED} == {
        "plan", "images' hashes", "predictions by the model",
    } | ({"code"} if states["code"] == verify.NOT_CHECKED else set())  # fmt: skip


def test_with_the_images_their_hashes_are_compared_and_the_model_gives_the_predictions_again(packed, study):
    states = _states(verify.capsule(packed, study.images, rescore=True))
    assert (states["images' hashes"], states["predictions by the model"]) == (verify.OK, verify.OK)


@pytest.mark.parametrize("change", ["other", "missing"])
def test_another_or_a_missing_image_is_found(packed, study, change):
    image = study.images / "p00_0.png"
    (study.images / "p02_0.png").replace(image) if change == "other" else image.unlink()
    failed = _failed(packed, study.images, True)
    assert {"images' hashes", "predictions by the model"} <= set(failed)
    assert "p00_0.png" in failed["images' hashes"] or "p02_0.png" in failed["images' hashes"]


def test_a_plan_is_checked_by_its_hash_and_its_result(study, squares_set, tmp_path):
    values = {"hypothesis": "It works.", "data": "squares", "primary_metric": "auc", "at_least": 0.5}
    (tmp_path / "plan.yaml").write_text(json.dumps(values))
    fixed = plan.fix(str(tmp_path / "plan.yaml"), study.run)
    plan.settle(fixed, release.score(registry.find("squares-cnn"), squares_set), study.run)
    out = tmp_path / "planned.zip"
    capsule.make(study.run, out, ABOUT)
    (checked,) = (one for one in verify.capsule(out) if one.what == "plan")
    verdict = json.loads((study.run / "plan.json").read_text())["result"]["says"]
    assert checked.state == verify.OK
    assert checked.why.startswith(f"{verdict}. Deviations: Test images were read 1 time before")
    assert "The test was read 2 times, this reading included." in checked.why
    assert f"\n{verdict}.\n" in _members(out)["README.md"].decode()

    def claimed(members):
        record = json.loads(members["run/plan.json"])
        record["result"]["says"] = record["result"]["says"].replace("0.5", "0.9")
        members["run/plan.json"] = json.dumps(record).encode()

    def easier(members):
        record = json.loads(members["run/plan.json"])
        record["plan"]["at_least"] = 0.1
        members["run/plan.json"] = json.dumps(record).encode()

    def better(members):
        record = json.loads(members["run/plan.json"])
        record["result"]["value"] = 1.0
        members["run/plan.json"] = json.dumps(record).encode()

    assert set(_failed(_tampered(out, easier))) == {"plan"}
    assert set(_failed(_tampered(out, better))) == {"plan"}
    assert "where its figure gives" in _failed(_tampered(out, claimed))["plan"]


@pytest.fixture
def planned(study, squares_set, tmp_path):
    """The capsule of a run of two notebooks with a plan."""
    from lungkit.study.provenance import RunRecord, Stage

    (tmp_path / "my plan.yaml").write_text("hypothesis: It works.\ndata: squares\nprimary_metric: auc\nat_least: 0.5\n")
    fixed = plan.fix(str(tmp_path / "my plan.yaml"), study.run)
    plan.settle(fixed, release.score(registry.find("squares-cnn"), squares_set), study.run)
    parameters = {"data": str(study.images), "profile": "quick", "model_name": "squares-cnn@v1", "bins": 5, "tta": True,
                  "plan": str(tmp_path / "my plan.yaml")}  # fmt: skip
    stages = (Stage("04_evaluation", 3.2, "done"), Stage("05_gradcam", 2.0, "done"))
    RunRecord.of("2026-11-30T12:00:00+00:00", parameters, stages).save(study.run)
    capsule.make(study.run, tmp_path / "planned.zip", ABOUT)
    return tmp_path / "planned.zip"


def test_the_command_that_does_it_again_is_the_one_that_was_run(planned):
    readme = _members(planned)["README.md"].decode()
    command = readme.partition("## Do it again")[2].partition("```\n")[2].partition("\n```")[0]
    assert command == (
        "lungkit run 04 05 --data FOLDER --profile quick --model-name squares-cnn@v1 --plan run/plan.yaml -p bins=5 "
        "-p tta=true"
    )
    assert "LUNGKIT_ARTIFACTS=model" in readme


def test_the_plan_of_a_capsule_can_be_used_again_and_has_its_hash(planned):
    members = _members(planned)
    assert plan.parse(members["run/plan.yaml"]).sha256 == json.loads(members["run/plan.json"])["sha256"]


@pytest.fixture
def plan_check(study, squares_set, tmp_path):
    """Give plan.json a change and the hash of its plan, in a capsule of a study with a plan; what the check says."""
    values = {"hypothesis": "It works.", "data": "squares", "primary_metric": "auc", "at_least": 0.5}
    (tmp_path / "plan.yaml").write_text(json.dumps(values))
    fixed = plan.fix(str(tmp_path / "plan.yaml"), study.run)
    plan.settle(fixed, release.score(registry.find("squares-cnn"), squares_set), study.run)
    out = tmp_path / "planned.zip"
    capsule.make(study.run, out, ABOUT)

    def check(change: Callable[[dict], None]) -> tuple[str, str]:
        def edited(members):
            record = json.loads(members["run/plan.json"])
            change(record)
            record["sha256"] = plan.of(record["plan"]).sha256
            members["run/plan.json"] = json.dumps(record).encode()

        (found,) = (one for one in verify.capsule(_tampered(out, edited)) if one.what == "plan")
        return found.state, found.why

    return check


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record["plan"].update(data="other"), "The plan names the data set other; squares was read."),
        (lambda record: record["plan"].update(model="none@v9"), "The plan names the model none@v9"),
        (lambda record: record["plan"].update(planned_n=100_000), "100,000 were planned"),
        (lambda record: record["plan"].update(at_least=0.999), "it says 'shown: .*where its figure gives"),
        (lambda record: record["result"].update(verdict="refuted"), "it says 'refuted: "),
        (lambda record: record["result"].update(says="Plan: AUC of 1"), "it says 'shown: Plan: AUC of 1'"),
        (lambda record: record.update(looks=0), "counts no look"),
    ],
)
def test_a_plan_that_contradicts_the_study_fails_though_its_hash_fits(plan_check, change, says):
    state, why = plan_check(change)
    assert state == verify.FAILED
    assert re.search(says, why)


def test_a_plan_that_was_fixed_before_its_model_and_run_passes_with_a_warning(plan_check):
    state, why = plan_check(lambda record: record.update(fixed_at="1999-01-01T00:00:00+00:00"))
    assert state == verify.OK
    assert re.search(r"WARNING: that is earlier than the study: .*model was registered at .* the run started", why)
    assert "WARNING" not in plan_check(lambda record: None)[1]


def test_a_deviation_that_is_stated_passes(plan_check):
    def honest(record):
        record["plan"]["data"] = "other"
        record["deviations"].append("The plan names the data set other; squares was read.")

    assert plan_check(honest)[0] == verify.OK


# --- images said to be unreadable


def _scored_again(members, left_out: set[str]) -> None:
    """Predictions without some images, which are said to be unreadable, and every figure that follows."""
    table = pd.read_csv(io.BytesIO(members["run/predictions.csv"]), dtype=str, keep_default_na=False)
    card = ModelCard.from_dict(json.loads(members["model/squares-cnn/v1/card.json"]))
    classes, kept = list(card.classes), table[~table["file"].isin(left_out)]
    again = evaluation.evaluate(
        np.array([classes.index(name) for name in kept["true"]]),
        kept[[f"probability {name}" for name in classes]].astype(float).to_numpy(),
        kept["patient"].to_numpy(str),
        classes,
        card.rule,
        sources=np.full(len(kept), "squares"),
    )
    scored = json.loads(members["run/evaluation.json"]) | again.to_dict()
    scored["unreadable"] = [{"file": name, "reason": "damaged"} for name in sorted(left_out)]
    members["run/evaluation.json"] = json.dumps(scored).encode()
    members["run/predictions.csv"] = kept.to_csv(index=False).encode()
    members["run/metrics.csv"] = again.metrics.to_csv(index=False).encode()
    members["run/confusion.csv"] = again.confusion.to_csv().encode()


def _without_its_errors(members) -> None:
    table = pd.read_csv(io.BytesIO(members["run/predictions.csv"]), dtype=str)
    wrong = set(table["file"][table["true"] != table["predicted"]])
    assert wrong
    _scored_again(members, wrong)


def test_errors_that_were_declared_unreadable_are_counted_and_with_the_images_found(packed, study):
    cleaned = _tampered(packed, _without_its_errors)
    (found,) = (one for one in verify.capsule(cleaned) if one.what == "unreadable images")
    assert found.state == verify.NOT_CHECKED
    assert re.match(r"\d+ images? of part 'test' said to be unreadable, and so not scored", found.why)
    failed = _failed(cleaned, study.images)["unreadable images"]
    assert re.search(r"said to be unreadable, .*; these can be read: p\d", failed)


def test_images_that_cannot_be_read_are_counted_and_pass(packed, study):
    name = pd.read_csv(study.run / "predictions.csv")["file"][0]
    (study.images / name).write_bytes(b"no picture")

    def damaged(members):
        _scored_again(members, {name})
        before = members["data/manifest.csv"].decode()
        row = next(line for line in before.splitlines() if line.startswith(f"{name},"))
        other = row.replace(re.search("[0-9a-f]{64}", row)[0], files.sha256(b"no picture"))
        members["data/manifest.csv"] = before.replace(row, other).encode()

    (found,) = (one for one in verify.capsule(_tampered(packed, damaged), study.images) if "unreadable" in one.what)
    assert (found.state, found.why) == (
        verify.OK, "1 image of part 'test' said to be unreadable, and so not scored; none of them can be read",
    )  # fmt: skip


# --- changes, each with every hash of the manifest written again


def _tampered(path, change: Callable[[dict[str, bytes]], None], mend: bool = True):
    """A copy of the capsule with a change. mend: the manifest's hashes follow the change."""
    members = _members(path)
    change(members)
    if mend:
        members.pop("MANIFEST.sha256", None)
        sums = "".join(f"{files.sha256(members[name])}  {name}\n" for name in sorted(members))
        members["MANIFEST.sha256"] = sums.encode()
    out = path.with_name("tampered.zip")
    sealed_zip.write(out, members)
    return out


def _replace(name: str, before: str, after: str):
    def change(members):
        text = members[name].decode()
        assert before in text or re.search(before, text)
        members[name] = re.sub(before, after, text, count=1).encode()

    return change


def _one_prediction(members):
    lines = members["run/predictions.csv"].decode().splitlines()
    *rest, left, right = lines[3].split(",")
    lines[3] = ",".join([*rest, str(float(left) - 0.001), str(float(right) + 0.001)])
    members["run/predictions.csv"] = ("\n".join(lines) + "\n").encode()


def _turned_prediction(members):
    """A wrong answer becomes right, in a way that fits the decision rule."""
    lines = members["run/predictions.csv"].decode().splitlines()
    at, cells = next(
        (i, line.split(",")) for i, line in enumerate(lines) if i and line.split(",")[2] != line.split(",")[3]
    )
    file, patient, true, _, left, right = cells
    lines[at] = ",".join([file, patient, true, true, right, left])
    members["run/predictions.csv"] = ("\n".join(lines) + "\n").encode()


def _reordered_predictions(members):
    """Two images of one patient, so their labels stay in place."""
    lines = members["run/predictions.csv"].decode().splitlines()
    assert lines[1].split(",")[1] == lines[2].split(",")[1]
    lines[1], lines[2] = lines[2], lines[1]
    members["run/predictions.csv"] = ("\n".join(lines) + "\n").encode()


def _other_source_in_a_set_new_to_the_model(members):
    """Nothing but the fingerprint could tell: the model's card states none for another set."""
    for name, key in (("data/dataset.json", "name"), ("run/evaluation.json", "data")):
        members[name] = json.dumps(json.loads(members[name]) | {key: "elsewhere"}).encode()
    first, row, *rest = members["data/manifest.csv"].decode().splitlines()
    digest = re.search("[0-9a-f]{64}", row)[0]
    row = row.replace(digest, digest[::-1])
    members["data/manifest.csv"] = ("\n".join([first, row, *rest]) + "\n").encode()


def _dropped_prediction(members):
    lines = members["run/predictions.csv"].decode().splitlines()
    members["run/predictions.csv"] = ("\n".join(lines[:-1]) + "\n").encode()


def _other_card_with_its_hash(members):
    folder = "model/squares-cnn/v1"
    card = json.loads(members[f"{folder}/card.json"])
    card["operating_point"]["threshold"] = 0.9
    before = files.sha256(members[f"{folder}/card.json"])
    members[f"{folder}/card.json"] = json.dumps(card).encode()
    sums = members[f"{folder}/SHA256SUMS"].decode()
    members[f"{folder}/SHA256SUMS"] = sums.replace(before, files.sha256(members[f"{folder}/card.json"])).encode()


def _other_graph_with_its_hash(members):
    folder = "model/squares-cnn/v1"
    before = files.sha256(members[f"{folder}/graph.bin"])
    members[f"{folder}/graph.bin"] = bytes(len(members[f"{folder}/graph.bin"]))
    sums = members[f"{folder}/SHA256SUMS"].decode()
    members[f"{folder}/SHA256SUMS"] = sums.replace(before, files.sha256(members[f"{folder}/graph.bin"])).encode()


def _seen_test_image(members):
    name = "model/squares-cnn/v1/trained_on.txt"
    scored = members["run/predictions.csv"].decode().splitlines()[1].split(",")[0]
    row = next(line for line in members["data/manifest.csv"].decode().splitlines() if line.startswith(f"{scored},"))
    members[name] += f"{re.search('[0-9a-f]{64}', row)[0]}\n".encode()


FIGURES, FILES, SAID = "figures from the predictions", "model's files and card", "predictions"
DATA, UNSEEN, UNREAD = "data set", "no test image in training", "unreadable images"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_one_prediction, {FIGURES}),
        (_turned_prediction, {FIGURES}),
        (_reordered_predictions, {SAID}),
        (_other_source_in_a_set_new_to_the_model, {DATA}),
        (_dropped_prediction, {SAID, FIGURES}),
        (_replace("run/metrics.csv", r"accuracy,,0\.\d", "accuracy,,0.9"), {FIGURES}),
        (_replace("run/metrics.csv", r"(auc,,[\d.]+),0\.\d", r"\1,0.9"), {FIGURES}),
        (_replace("run/evaluation.json", r'"macro_f1": 0\.\d', '"macro_f1": 0.9'), {FIGURES}),
        (_replace("run/evaluation.json", r'"seen_in_training": 0', '"seen_in_training": 1'), {UNSEEN}),
        (_replace("run/confusion.csv", r"left,\d+", "left,99"), {FIGURES}),
        (_replace("data/manifest.csv", r",left,", ",right,"), {DATA}),
        (_replace("data/manifest.csv", r"[0-9a-f]{64}", "0" * 64), {DATA}),
        (_replace("model/squares-cnn/v1/card.json", '"synthetic": false', '"synthetic": true'), {FILES}),
        (_other_card_with_its_hash, {SAID, FIGURES}),
        (_other_graph_with_its_hash, {FILES}),
        (_seen_test_image, {FILES, UNSEEN}),
        (lambda members: members.update({"model/squares-cnn/v1/extra.bin": b"1"}), {FILES}),
        (lambda members: members.pop("model/squares-cnn/v1/graph.bin"), {FILES}),
        (lambda members: members.pop("run/predictions.csv"), {UNREAD, SAID, FIGURES}),
        (lambda members: members.pop("data/manifest.csv"), {UNREAD, DATA, SAID, FIGURES, UNSEEN}),
        (
            lambda members: members.update({"run/evaluation.json": b"[" * 200_000}),
            {UNREAD, SAID, FIGURES, FILES, DATA, UNSEEN},
        ),
        (lambda members: members.update({"run/predictions.csv": b"\x00\xff"}), {UNREAD, SAID, FIGURES}),
        (lambda members: members.update({"capsule.json": b"{}"}), {SAID, FIGURES, FILES, DATA, UNSEEN}),
    ],
)
def test_a_change_is_found_though_every_hash_of_the_manifest_was_written_again(packed, change, found):
    failed = _failed(_tampered(packed, change))
    assert set(failed) == found, failed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_one_prediction, "not as the manifest says: run/predictions.csv"),
        (lambda members: members.update({"run/more.csv": b"1"}), "not in the manifest: run/more.csv"),
        (lambda members: members.pop("README.md"), "missing: README.md"),
        (lambda members: members.pop("MANIFEST.sha256"), "MANIFEST.sha256 is missing"),
    ],
)
def test_a_changed_added_or_missing_file_is_named(packed, change, says):
    assert _failed(_tampered(packed, change, mend=False))["every file's hash"] == says


def test_a_manifest_that_leads_out_of_the_folder_reads_nothing_there(packed, study):
    change = _replace("data/manifest.csv", "p00_0.png", "../../../etc/passwd")
    assert "leads out of the folder" in _failed(_tampered(packed, change), study.images)["images' hashes"]


def test_what_a_stranger_wrote_reaches_the_terminal_as_one_printable_line(packed):
    def hostile(members):
        members["run/evaluation.json"] = b'{"model": "\\u001b[2J\\nall fine"}'

    said = [one.why for one in verify.capsule(_tampered(packed, hostile))]
    assert all(line.isprintable() for line in said)


def test_a_model_that_was_exchanged_with_every_hash_is_found_only_by_reading_the_images_again(packed, study, tmp_path):
    write_graph(tmp_path / "other", 5.0)

    def exchanged(members):
        folder = "model/squares-cnn/v1"
        card = json.loads(members[f"{folder}/card.json"])
        for name in ("graph.xml", "graph.bin"):
            members[f"{folder}/{name}"] = (tmp_path / "other" / name).read_bytes()
            card["files"][name]["sha256"] = files.sha256(members[f"{folder}/{name}"])
        members[f"{folder}/card.json"] = json.dumps(card).encode()
        own = [name for name in members if name.startswith(folder) and not name.endswith("SHA256SUMS")]
        sums = "".join(f"{files.sha256(members[name])}  {name.removeprefix(f'{folder}/')}\n" for name in sorted(own))
        members[f"{folder}/SHA256SUMS"] = sums.encode()

    tampered = _tampered(packed, exchanged)
    assert _failed(tampered) == {}
    assert "another probability" in _failed(tampered, study.images, True)["predictions by the model"]


# --- archives that no one should open


def _rewritten(path, change: Callable[[zipfile.ZipInfo], None], also=()) -> None:
    """The capsule with a change to each entry, and with further (name, content) entries."""
    members = _members(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*members.items(), *also]:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            change(entry)
            archive.writestr(entry, content)


def _nothing(entry):
    pass


def _link(entry):
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16


def _packed(entry):
    entry.compress_type = zipfile.ZIP_DEFLATED


def _with_field(entry):
    entry.extra = struct.pack("<HH4s", 0x9999, 4, b"evil")


@pytest.mark.parametrize(
    ("change", "also", "says"),
    [
        (_nothing, [("../evil", b"")], "could lead out of the folder"),
        (_nothing, [("/etc/evil", b"")], "could lead out of the folder"),
        (_nothing, [("run/../../evil", b"")], "could lead out of the folder"),
        (_nothing, [("run\\evil", b"")], "a character that file names cannot have everywhere"),
        (_nothing, [("C:evil", b"")], "a character that file names cannot have everywhere"),
        (_nothing, [("run/a\x1b[2J", b"")], "a character that file names cannot have everywhere"),
        (_nothing, [("run/\u202egnp.exe", b"")], "a character that file names cannot have everywhere"),
        (_nothing, [("run/e\u0301", b"")], "written in two ways"),
        (_nothing, [("run/x ", b"")], "begins or ends with a space or a dot"),
        (_nothing, [("x" * 300, b"")], "too long"),
        (_nothing, [("readme.MD", b"")], "the same name on some systems"),
        (_nothing, [("README.md", b"again")], "the same name on some systems"),
        (_nothing, [("a-late-name", b"")], "not in the order of their names"),
        (_nothing, [("zz/", b"")], "could lead out of the folder"),
        (_link, [], "is no plain file"),
        (_packed, [], "is compressed"),
        (_with_field, [], "has fields that do not belong there"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_anything_but_plain_files_is_refused(packed, change, also, says):
    _rewritten(packed, change, also)
    (check,) = verify.capsule(packed)
    assert (check.what, check.state) == ("archive", verify.FAILED)
    assert says in check.why


def test_rewriting_without_a_change_passes_so_each_refusal_above_is_for_its_change(packed):
    _rewritten(packed, _nothing)
    assert _failed(packed) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"#!/bin/sh\n" + content,
        lambda content: content + b"more",
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"PK\x05\x06" + bytes(18),
        lambda content: content[: len(content) // 2],
    ],
)
def test_bytes_before_or_after_the_members_or_missing_ones_are_refused(packed, change):
    packed.write_bytes(change(packed.read_bytes()))
    assert verify.FAILED in _states(verify.capsule(packed)).values()


def test_members_that_lie_in_another_order_than_the_table_of_contents_says_are_refused(packed):
    members = _members(packed)
    with zipfile.ZipFile(packed, "w") as archive:
        for name in reversed(members):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, members[name])
        archive.filelist.sort(key=lambda entry: entry.filename)
    assert "does not lie directly after" in _failed(packed)["archive"]


def test_a_changed_byte_of_a_member_is_found(packed):
    content = bytearray(packed.read_bytes())
    content[content.index(b"# Left or right")] ^= 1
    packed.write_bytes(content)
    assert "README.md" in _failed(packed)["every file's hash"]


def test_a_name_that_cannot_be_in_an_archive_is_refused_when_it_is_made(study, tmp_path):
    (study.run / "a:b.csv").write_text("1")
    with pytest.raises(LungkitError, match=r"a:b\.csv"):
        capsule.make(study.run, tmp_path / "x.zip", ABOUT)
    assert not (tmp_path / "x.zip").exists()


def test_a_link_in_a_run_is_refused_and_not_followed(study, tmp_path):
    (study.run / "link.csv").symlink_to("/etc/hostname")
    with pytest.raises(LungkitError, match=r"link\.csv is a link"):
        capsule.make(study.run, tmp_path / "x.zip", ABOUT)


@pytest.mark.parametrize("name", ["SOURCE.md", "README.md"])
def test_a_link_in_a_data_sets_folder_is_not_published_and_named(study, squares_set, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("zxq-4711\n")
    (study.images / name).unlink(missing_ok=True)
    (study.images / name).symlink_to(secret)
    contents = capsule.make(study.run, tmp_path / "x.zip", ABOUT)
    assert not any(b"zxq-4711" in content for content in _members(tmp_path / "x.zip").values())
    said = [one.why for one in contents.left_out if one.what == f"data/{name}"]
    assert said == ([f"squares/{name} is a link; put the file in its place, or remove it"] if "SOURCE" in name else [])
    known = material.gather(study.run)
    assert "zxq-4711" not in str(known.described)
    assert any(f"{name} is a link" in line for line in known.unknown)


def test_a_pipe_in_a_run_is_refused_and_not_waited_for(study, tmp_path):
    os.mkfifo(study.run / "pipe.csv")
    with pytest.raises(LungkitError, match=r"pipe\.csv is no plain file"):
        capsule.make(study.run, tmp_path / "x.zip", ABOUT)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("04_evaluation.ipynb", "[]"),
        ("04_evaluation.ipynb", "{"),
        ("04_evaluation.ipynb", '{"cells": [5], "metadata": 5}'),
        ("evaluation.json", '{"model": "squares-cn'),
        ("evaluation.json", "[" * 100_000),
        ("evaluation.json", '{"model": 5, "data": "squares", "split": "test"}'),
        ("predictions.csv", ""),
    ],
)
def test_a_damaged_file_of_a_run_is_refused_by_name(study, tmp_path, name, content):
    (study.run / name).write_text(content)
    with pytest.raises(LungkitError, match=re.escape(name)):
        capsule.make(study.run, tmp_path / "x.zip", ABOUT, with_pictures=False)
