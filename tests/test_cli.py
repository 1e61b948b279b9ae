"""The command line: thin, quick to answer, one line for what went wrong, and JSON that a program can read."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
import typer
from PIL import Image

from lungkit import cli, config, extras, notebooks
from lungkit.files import sha256
from lungkit.models import registry
from lungkit.models.card import ModelCard
from lungkit.study import provenance

ROOT = Path(__file__).parents[1]


def _verbs(command=None, prefix: str = "lungkit") -> list[str]:
    """Every verb as it is typed: "lungkit run", "lungkit data audit", …"""
    command = command or typer.main.get_command(cli.app)
    if not isinstance(command, click.Group) and not getattr(command, "commands", None):
        return [prefix]
    return [verb for name, sub in command.commands.items() for verb in _verbs(sub, f"{prefix} {name}")]


@pytest.fixture
def lungkit(monkeypatch, capsys):
    """Run the command as a person does; returns (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "150")  # a wide terminal, so that tables do not wrap
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lungkit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return run


def _refused(answer: tuple[int, str, str]) -> str:
    """The one line that an error is shown as."""
    code, out, err = answer
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert err.count("\n") == 1
    return err


# --- help


def test_help_lists_the_verbs_and_loads_neither_tensorflow_nor_pandas():
    script = (
        "import sys\nfrom lungkit import cli\nsys.argv = ['lungkit', '--help']\n"
        "try: cli.main()\nfinally: print([m for m in ('tensorflow', 'keras', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for verb in ("run", "evaluate", "data", "models"):
        assert re.search(rf"\b{verb}\b", done.stdout)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_verb_has_a_help_of_its_own(lungkit):
    verbs = _verbs()
    assert len(verbs) > 5
    for verb in verbs:
        code, out, _ = lungkit(*verb.split()[1:], "--help")
        assert code == 0
        assert "Usage" in out


# --- what cannot be done is said in one line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "all", "--data", "no/such/folder"], "no folder or file no/such/folder; give phantom, pneumoniamnist"),
        (["run", "all", "--profile", "fast"], "no profile 'fast'; there are: quick, full"),
        (["run", "01", "-p", "seed"], "-p seed: give key=value"),
        (["run", "77"], "no notebook 77; there are: all, 01"),
        (["run", "01", "-p", "colour=red"], "no parameter colour; there are:"),
        (["evaluate", "--model", "nobody", "--data", "phantom"], "no model 'nobody'; there are: none yet"),
        (["data", "audit", "nothing"], "no data set 'nothing'; accepted: phantom"),
        (["models", "verify", "nobody"], "no model 'nobody'"),
        (["models", "promote", "nobody@v2"], "no model 'nobody'"),
        (["models", "rollback", "nobody"], "no model 'nobody'"),
        (["run", "04", "--plan", "no/plan.yaml"], "the plan no/plan.yaml cannot be read"),
        (["plan", "check", "no/plan.yaml"], "the plan no/plan.yaml cannot be read"),
        (["capsule", "make", "no/run"], "no/run is not the folder of a run"),
        (["capsule", "make", "x", "--author", "Doe"], "give 'Family, Given'"),
        (["capsule", "verify", "no/capsule.zip"], "no/capsule.zip: there is no such file"),
        (["capsule", "verify", "x.zip", "--rescore"], "give their folder with --data"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_without_a_traceback(lungkit, arguments, said):
    assert said in _refused(lungkit(*arguments))


def test_names_with_brackets_are_shown_as_they_are(lungkit):
    assert "no folder or file [red]/x[/]; give" in _refused(lungkit("data", "audit", "[red]/x[/]"))


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("keras", "search --data phantom", "training"),
        ("papermill", "run 01", "notebooks"),
        ("tornado", "serve --port 0", "clinic"),
        ("sqlalchemy", "db check", "clinic"),
        ("argon2", "user list", "clinic"),
        ("sqlalchemy", "key list", "clinic"),
        ("fastapi", "gateway --port 0", "gateway"),
        ("huey", "gateway --port 0", "gateway"),
    ],
)
def test_a_verb_without_its_packages_says_which_extra_to_install(module, arguments, extra):
    script = f"import sys\nsys.modules['{module}'] = None\nsys.argv[1:] = {arguments.split()}\n"
    script += "from lungkit import cli\ncli.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: this needs lungkit[{extra}] (")
    assert done.stderr.endswith(f"is not installed): pip install 'lungkit[{extra}]'\n")


def test_a_module_of_lungkit_that_is_missing_is_an_error_of_the_program():
    with pytest.raises(ModuleNotFoundError):
        extras.missing(ModuleNotFoundError(name="lungkit.nothing"))


# --- running notebooks


@pytest.fixture
def runs(monkeypatch, tmp_path) -> list[dict]:
    """What would have been run: the parameters of each call of notebooks.run."""
    calls = []

    def run(chosen, parameters, exercises):
        calls.append(parameters | {"notebooks": [file.name[:2] for file in chosen]})
        if exercises:
            calls[-1]["exercises"] = True
        folder = tmp_path / "run [1]"
        folder.mkdir()
        stages = [provenance.Stage("01_exploration", 61.4, "done"), provenance.Stage("02_preprocessing", 8.0, "done")]
        return notebooks.Run(folder, parameters, stages)

    monkeypatch.setattr(notebooks, "run", run)
    return calls


def test_run_hands_data_profile_and_parameters_to_the_notebooks(lungkit, runs, squares):
    code, out, _ = lungkit(
        "run", "01", "03", "--data", squares, "--profile", "full", "--model-name", "mine",
        "-p", "seed=3", "-p", "resume_work=false", "-p", "strategy=bayesian", "-p", "label_column=a=b",
    )  # fmt: skip
    assert code == 0
    assert runs == [
        {
            "notebooks": ["01", "03"], "data": str(squares), "profile": "full", "model_name": "mine", "seed": 3,
            "resume_work": False, "strategy": "bayesian", "label_column": "a=b",
        }
    ]  # fmt: skip
    assert re.search(r"2 notebooks in 69 s: .*run \[1\].index\.html", out)


def test_run_hands_a_plan_to_the_notebooks_as_an_absolute_path_once_it_can_be_read(
    lungkit, runs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    lungkit("plan", "new", "plan.yaml")
    assert "'hypothesis' is still that of the empty plan" in _refused(lungkit("run", "04", "--plan", "plan.yaml"))
    plan = tmp_path / "plan.yaml"
    plan.write_text(plan.read_text().replace("What the study is to show, in one or two sentences.", "It works."))
    lungkit("run", "04", "--plan", "plan.yaml")
    assert [call["plan"] for call in runs] == [str(plan)]
    assert "plan.yaml exists already" in _refused(lungkit("plan", "new", "plan.yaml"))


def test_run_says_what_the_folder_holds_besides_the_images(lungkit, runs, elsewhere):
    out = lungkit("run", "01", "--data", elsewhere)[1]
    assert out.startswith("files passed over: 1 (README.txt). They are no images, or hidden.\n")


def test_run_without_more_takes_the_phantom_and_leaves_the_models_name_to_the_notebook(lungkit, runs):
    lungkit("run", "all")
    assert runs == [{"notebooks": [f"{number:02}" for number in range(1, 12)], "data": "phantom", "profile": "quick"}]


def test_the_exercises_of_the_notebooks_are_run_if_asked_for(lungkit, runs):
    lungkit("run", "01", "--exercises")
    assert runs[0]["exercises"]


def test_a_folder_is_handed_on_as_an_absolute_path_and_a_name_as_it_is(lungkit, runs, squares, monkeypatch, tmp_path):
    monkeypatch.chdir(squares.parent)
    lungkit("run", "01", "--data", "squares")
    shutil.rmtree(tmp_path / "run [1]")
    lungkit("run", "01", "-p", "data=squares")
    (tmp_path / "phantom").mkdir()
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "run [1]")
    lungkit("run", "01", "--data", "phantom")
    shutil.rmtree(tmp_path / "run [1]")
    lungkit("run", "01", "--data", "./phantom")
    assert [call["data"] for call in runs] == [str(squares), str(squares), "phantom", str(tmp_path / "phantom")]


def test_decisions_are_handed_on_as_an_absolute_path(lungkit, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lungkit("run", "11", "-p", "decisions=decisions.csv")
    assert runs[0]["decisions"] == str(tmp_path / "decisions.csv")


def test_decisions_that_cannot_be_read_stop_a_training_before_an_image_is_read(lungkit, squares, tmp_path):
    (tmp_path / "d.csv").write_text("file,decision\n")
    code, _, error = lungkit("train", "ct-infection", "--data", squares, "--decisions", tmp_path / "d.csv")
    assert code == 1 and "no column sha256" in error


def test_run_ends_with_the_result_on_the_test_patients(lungkit, runs, monkeypatch):
    monkeypatch.setattr(notebooks, "headline", lambda _: "m@v1 on set, test split: accuracy 0.912")
    assert "m@v1 on set, test split: accuracy 0.912\n" in lungkit("run", "all")[1]


def test_in_place_executes_the_committed_notebooks_themselves(lungkit, runs, monkeypatch):
    refreshed = []
    monkeypatch.setattr(notebooks, "refresh", lambda file: refreshed.append(file.name[:2]))
    assert lungkit("run", "02", "01", "--in-place")[0] == 0
    assert refreshed == ["01", "02"]
    assert runs == []


# --- evaluating


@pytest.fixture(scope="module")
def trained(squares, tmp_path_factory) -> Path:
    """A registry with one version of an untrained network, registered on `squares`."""
    from lungkit.data import dataset, preprocess
    from lungkit.models import cnn
    from lungkit.training import release

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "artifacts"):
            patch.setenv(f"LUNGKIT_{name.upper()}", str(folder / name))
        recipe = {"label_column": None, "limit": None, "seed": 7}
        release.register(
            cnn.build((32, 32, 1), 2, filters=4, blocks=2),
            "squares-cnn",
            dataset.load_split(squares, **recipe),
            preprocess.Preprocessing(size=(32, 32)),
            architecture={},
            training={},
            recipe=recipe,
        )
    return folder / "artifacts"


@pytest.fixture
def version(trained) -> registry.Version:
    """The registered version in a registry of the test's own."""
    shutil.copytree(trained, config.artifacts_dir())
    return registry.find("squares-cnn")


def test_evaluate_as_json_prints_one_object_and_nothing_else(lungkit, version, squares):
    code, out, _ = lungkit("evaluate", "--model", "squares-cnn", "--data", squares, "--json")
    record = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert (record["model"], record["split"], record["classes"]) == ("squares-cnn@v1", "test", ["left", "right"])
    assert {"n", "patients", "accuracy", "auc", "ece", "per_class", "confusion", "intervals", "seconds"} <= set(record)
    assert record["seen_in_training"] == 0


def test_evaluate_shows_every_figure_with_its_interval(lungkit, version, squares):
    code, out, _ = lungkit("evaluate", "--model", "squares-cnn@v1", "--data", squares)
    assert code == 0
    assert "squares-cnn@v1 on squares, test" in out
    accuracy = next(line for line in out.splitlines() if "Accuracy" in line)
    assert re.search(r"\d\.\d{3} \(\d\.\d{3}–\d\.\d{3}\)", accuracy)
    assert "left" in out
    assert "right" in out
    assert "used to train" not in out
    assert re.search(r"left to a person as uncertain: \d+\.\d % of the images", out)
    assert re.search(r"accuracy of the rest \d\.\d{3} \(\d\.\d{3}–\d\.\d{3}\)", out)


def test_evaluate_by_an_attribute_shows_each_group_and_names_the_worst(lungkit, version, squares):
    code, out, _ = lungkit("evaluate", "--model", "squares-cnn", "--data", squares, "--by", "Other", "--split", "train")
    assert code == 0
    assert "groups, for right" in out and re.search(r"other +. a +. 42 \(21\)", out)
    assert "The worst group by AUC" in out or "No group is worse by AUC" in out
    assert "brightness" not in out, "only what was asked for"


def test_evaluate_by_all_keeps_the_groups_in_its_record(lungkit, version, squares):
    answer = lungkit("evaluate", "--model", "squares-cnn", "--data", squares, "--by", "all", "--json")[1]
    groups = json.loads(answer)["subgroups"]["groups"]
    assert {(one["attribute"], one["group"]) for one in groups} >= {("other", "a"), ("other", "b")}
    assert {"brightness"} <= {one["attribute"] for one in groups}
    plain = json.loads(lungkit("evaluate", "--model", "squares-cnn", "--data", squares, "--json")[1])
    assert "subgroups" not in plain


def test_evaluate_says_when_images_were_used_in_training(lungkit, version, squares):
    out = lungkit("evaluate", "--model", "squares-cnn", "--data", squares, "--split", "train")[1]
    assert re.search(r"(\d+) images *\n(.|\n)*\n\1 of these images were used to train or choose the model", out)


@pytest.fixture
def elsewhere(squares, tmp_path) -> Path:
    """Class folders with other pictures than the model was trained on: 12 of each class, and a README."""
    for file in sorted(squares.glob("*.png"))[:24]:
        place = tmp_path / "elsewhere" / ("Left", "RIGHT")[int(file.name[1:3]) % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.open(file).point(lambda grey: grey ^ 1).save(place / file.name)
    (tmp_path / "elsewhere" / "README.txt").write_text("from the other hospital")
    return tmp_path / "elsewhere"


def test_evaluate_scores_every_image_of_another_hospital_and_says_so(lungkit, version, elsewhere):
    code, out, _ = lungkit("evaluate", "--model", "squares-cnn", "--data", elsewhere)
    assert code == 0
    assert "on elsewhere, all: 24 images (the set has no published test part, so every image is scored)\n" in out
    assert out.endswith("files passed over: 1 (README.txt). They are no images, or hidden.\n")
    record = json.loads(lungkit("evaluate", "--model", "squares-cnn", "--data", elsewhere, "--json")[1])
    assert (record["n"], record["split"], record["unreadable"], record["not_scored"]) == (24, "all", [], {})
    refused = _refused(lungkit("evaluate", "--model", "squares-cnn", "--data", elsewhere, "--split", "test"))
    assert "no image in split 'test'; there are: 24 of no part. --split all scores every image" in refused


def test_evaluate_names_what_could_not_be_read(lungkit, version, elsewhere):
    for file in sorted((elsewhere / "Left").iterdir())[:7]:
        file.write_bytes(file.read_bytes()[:200])
    out = lungkit("evaluate", "--model", "squares-cnn", "--data", elsewhere)[1]
    assert "on elsewhere, all: 17 of 24 images" in out
    lines = out[out.index("not in these figures, because unreadable: 7\n") :].splitlines()
    assert all(re.match(r"  Left/p\d\d_\d\.png: truncated", line) for line in lines[1:6])
    assert lines[6] == "  and 2 more (--json lists all)"
    record = json.loads(lungkit("evaluate", "--model", "squares-cnn", "--data", elsewhere, "--json")[1])
    assert record["n"] == 17
    assert len(record["unreadable"]) == 7


def test_evaluate_says_which_parts_it_did_not_score(lungkit, version, squares):
    out = lungkit("evaluate", "--model", "squares-cnn", "--data", squares)[1]
    assert re.search(r"not scored: \d+ train, \d+ val \(--split all scores every image\)\n", out)


def test_evaluate_takes_another_label_column(lungkit, version, squares):
    answer = lungkit("evaluate", "--model", "squares-cnn", "--data", squares, "--label-column", "other", "--json")
    assert "squares-cnn@v1 knows left, right, but squares-other is labelled a, b" in answer[2]
    assert answer[:2] == (1, "")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "no/such"], "no folder or file no/such"),
        (["--data", "nothing"], "no data set 'nothing'"),
        (["--data", "SQUARES", "--split", "exam"], "no split 'exam'; accepted: train, val, test"),
        (["--data", "SQUARES", "--label-column", "age"], "has no column 'age'; it has: file, label"),
        (["--data", "SQUARES", "--by", "age"], "no attribute 'age'; there are: all, other, brightness"),
        (["--outside", "SQUARES", "--by", "other"], "--split and --by have no use with --outside"),
    ],
)
def test_evaluate_refuses_in_one_line(lungkit, version, squares, more, said):
    arguments = [str(squares) if text == "SQUARES" else text for text in more]
    assert said in lungkit("evaluate", "--model", "squares-cnn", *arguments)[2].splitlines()[-1]


def test_evaluate_refuses_a_tampered_model_by_name(lungkit, version, squares):
    (version.folder / "model.keras").write_bytes(b"something else")
    code, out, err = lungkit("evaluate", "--model", "squares-cnn", "--data", squares, "--json")
    assert (code, out) == (1, "")
    assert "squares-cnn@v1: model.keras was changed after it was registered" in err


# --- sources that a model has not seen


def _outside(version) -> dict:
    """What the registry keeps of a version's measurements elsewhere, by source."""
    return {one.source: one for one in registry.find(str(version)).card.outside or ()}


def test_a_version_is_measured_on_a_source_it_has_not_seen_and_each_look_is_counted(lungkit, version, elsewhere):
    code, out, _ = lungkit("evaluate", "--model", "squares-cnn", "--outside", elsewhere)
    (row,) = _rows(out, "elsewhere")
    assert code == 0 and (row[0], row[5:7], row[-1]) == ("elsewhere", ["24", "24"], "once")
    record = json.loads(lungkit("evaluate", "--model", "squares-cnn", "--outside", elsewhere, "--json")[1])
    assert [one["measured"]["times_scored"] for one in record["outside"]] == [2]
    kept = _outside(version)["elsewhere"]
    assert kept.to_dict() == record["outside"][0]
    same = json.loads(lungkit("evaluate", "--model", "squares-cnn", "--data", elsewhere, "--json")[1])
    assert kept.measured.figure("auc").value == same["auc"]
    registry.verify(registry.find("squares-cnn"))  # the version itself is as it was registered


def test_the_table_of_models_leads_with_the_worst_source(lungkit, version, elsewhere):
    assert _rows(lungkit("models", "table")[1], "worst unseen source")[0][0].endswith("not measured")
    assert "no model was measured on a source" in lungkit("models", "table", "--sources")[2]
    swapped = elsewhere.with_name("swapped")
    shutil.copytree(elsewhere, swapped)
    for name, other in (("Left", "x"), ("RIGHT", "Left"), ("x", "RIGHT")):
        (swapped / name).rename(swapped / other)
    lungkit("evaluate", "--model", "squares-cnn", "--outside", elsewhere, "--outside", swapped)
    aucs = {name: one.measured.figure("auc") for name, one in _outside(version).items()}
    assert aucs["elsewhere"].value == pytest.approx(1 - aucs["swapped"].value)
    worst = min(aucs, key=lambda name: aucs[name].value)
    shown = lungkit("models", "table")[1].splitlines()
    assert shown[1].split(maxsplit=3)[3].startswith(f"{worst}: AUC {aucs[worst]}, 24 images of 24 patients")
    listed = _rows(lungkit("models", "table", "--sources")[1], "squares-cnn@v1")
    assert [row[1] for row in listed] == sorted(aucs, key=lambda name: aucs[name].value)
    assert "| squares-cnn@v1 | " in lungkit("models", "table", "--sources", "--markdown")[1]
    card = lungkit("models", "show", "squares-cnn")[1]
    assert card.startswith(f"squares-cnn@v1. Worst unseen source: {worst}: AUC {aucs[worst]}")
    assert card.index(f"│ {worst}") < card.index(f"│ {max(aucs, key=lambda name: aucs[name].value)}")


def test_a_source_that_the_model_learned_from_is_refused_by_name(lungkit, version, squares, elsewhere):
    refused = lungkit("evaluate", "--model", "squares-cnn", "--outside", squares)[2].splitlines()[-1]
    assert re.search(r"squares is not outside for squares-cnn@v1, which has seen 10\d of its 120 images", refused)
    home = elsewhere.with_name("squares")  # other images of the same source
    shutil.copytree(elsewhere, home)
    assert "has seen other images of it" in lungkit("evaluate", "--model", "squares-cnn", "--outside", home)[2]
    assert not _outside(version)


def test_images_that_the_model_has_seen_are_left_out_and_counted(lungkit, version, squares, elsewhere):
    seen = set((version.folder / "trained_on.txt").read_text().split())
    known = next(file for file in sorted(squares.glob("*.png")) if sha256(file) in seen)
    shutil.copy(known, elsewhere / ("Left", "RIGHT")[int(known.name[1:3]) % 2] / "again.png")
    (row,) = _rows(lungkit("evaluate", "--model", "squares-cnn", "--outside", elsewhere)[1], "elsewhere")
    assert (row[5], row[7]) == ("24", "1 seen in training")


def test_images_of_another_modality_are_left_out_and_counted(lungkit, version, elsewhere):
    card = json.loads((version.folder / "card.json").read_text()) | {"modality": "X-ray"}
    registry.add("squares-cnn", ModelCard.from_dict(card), lambda to: _copy_files(version, to))
    files = sorted(path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*.png"))
    rows = [f"{file},{file.split('/')[0]},{('DX', 'CT', '')[i % 3]}" for i, file in enumerate(files)]
    (elsewhere / "labels.csv").write_text("\n".join(["file,label,modality", *rows]) + "\n")
    (row,) = _rows(lungkit("evaluate", "--model", "squares-cnn", "--outside", elsewhere)[1], "elsewhere")
    assert (row[5], row[7]) == ("16", "8 of another modality")


def test_labels_that_the_model_does_not_know_are_named_mapped_or_left_out(lungkit, version, elsewhere):
    (elsewhere / "RIGHT").rename(elsewhere / "Starboard")
    other = elsewhere / "Middle"
    other.mkdir()
    for file in sorted((elsewhere / "Left").iterdir())[:3]:
        file.rename(other / file.name)
    measure = ("evaluate", "--model", "squares-cnn", "--outside", elsewhere)
    assert "elsewhere has 'Middle', 'Starboard', but the classes are left, right. Name" in lungkit(*measure)[2]
    (row,) = _rows(lungkit(*measure, "--label", "right=Starboard", "--omit", "Middle")[1], "elsewhere")
    assert (row[5], row[7]) == ("21", "3 by label")
    kept = _outside(version)["elsewhere"]
    assert (kept.labels, kept.omitted, dict(kept.measured.support)) == (
        {"Starboard": "right"},
        3,
        {"left": 9, "right": 12},
    )
    assert "has no class 'up'" in lungkit(*measure, "--label", "up=Starboard", "--omit", "Middle")[2]
    assert "no image has the label 'Top'" in lungkit(*measure, "--label", "right=Starboard", "--omit", "Middle,Top")[2]


def test_evaluate_takes_one_of_data_and_outside(lungkit, version, squares, elsewhere):
    for given in ([], ["--data", squares, "--outside", elsewhere]):
        assert "give either --data, or --outside" in lungkit("evaluate", "--model", "squares-cnn", *given)[2]


def test_a_damaged_record_of_other_sources_is_refused_by_name(lungkit, version, elsewhere):
    lungkit("evaluate", "--model", "squares-cnn", "--outside", elsewhere)
    file = version.folder.with_name("v1.outside.json")
    file.write_text(file.read_text().replace('"source": "elsewhere"', '"source": 7'))
    assert "'outside[0].source' is 7; accepted: a text" in lungkit("models", "show", "squares-cnn")[2]


def test_evaluate_shows_each_source_of_a_joined_set_alone(lungkit, version, squares, elsewhere, tmp_path):
    assert lungkit("data", "join", tmp_path / "both", squares, elsewhere)[0] == 0
    out = lungkit("evaluate", "--model", "squares-cnn", "--data", tmp_path / "both")[1]
    rows = [row for row in _rows(out[out.index("each source alone") :], "│") if "(" in row[1]]
    assert {row[0]: row[5:7] for row in rows} == {"squares": ["120", "60"], "elsewhere": ["24", "24"]}
    record = json.loads(lungkit("evaluate", "--model", "squares-cnn", "--data", elsewhere, "--json")[1])
    assert record["auc"] == pytest.approx(float(next(row[1][:5] for row in rows if row[0] == "elsewhere")), abs=0.0006)


# --- compare


@pytest.fixture
def second(version) -> registry.Version:
    """A copy of the version."""
    return registry.add("squares-cnn", version.card, lambda to: _copy_files(version, to))


def test_two_versions_are_compared_at_home_on_test_patients_and_elsewhere(lungkit, version, second, squares, elsewhere):
    lungkit("evaluate", "--model", "squares-cnn@v1", "--outside", elsewhere)
    kept = _outside(version)["elsewhere"].measured
    compare = ["compare", "squares-cnn@v1", "squares-cnn@v2", "--data", elsewhere]
    _, out, _ = lungkit(*compare, "--data", squares)
    assert _outside(version)["elsewhere"].measured == dataclasses.replace(kept, times_scored=2)  # a look that counts
    home, away = _rows(out, "squares (home)")[0], _rows(out, "elsewhere  ")[0]
    columns = _rows(out, "McNemar")[0]
    test = version.card.data.counts["test"]
    assert home[columns.index("images")] == f"{test.images} of {test.patients} patients"
    assert away[columns.index("images")] == "24 of 24 patients"
    for name in ("p (DeLong)", "p (DeLong, Holm)", "p (McNemar)", "p (McNemar, Holm)"):
        assert home[columns.index(name)] == "1.000", name  # they are copies
    assert "both give the same answers for every image" in out
    assert f"squares: {test.images} of 120 images; left out: {120 - test.images} that a version was trained" in out
    assert out.splitlines()[-1].endswith("not enough to promote it.")
    record = json.loads(lungkit(*compare, "--json")[1])
    assert (record["enough"], record["pairs"][0]["auc_difference"][0]) == (False, 0)


@pytest.fixture
def a_run(lungkit, version, squares, tmp_path) -> Path:
    """The folder of a run that predicted the test part of `squares` with the version."""
    from lungkit.training import release

    scored = release.score(version, release.data_for(version, str(squares)))
    scored.evaluation.save(tmp_path / "a-run", scored.files)
    return tmp_path / "a-run"


def test_a_run_is_compared_with_a_version_on_the_images_of_both(lungkit, second, a_run, squares):
    table = pd.read_csv(a_run / "predictions.csv")
    table.iloc[2:].to_csv(a_run / "predictions.csv", index=False)
    _, out, _ = lungkit("compare", a_run, "squares-cnn@v2", "--data", squares)
    assert "2 that are not in every run's table" in out
    assert (
        out.splitlines()[-1] == "Compared with a-run, squares-cnn@v2 gives the same answers for every image of squares."
    )
    record = json.loads(lungkit("compare", a_run, "squares-cnn@v2", "--data", squares, "--json")[1])
    (pair,) = record["pairs"]
    assert (pair["images"], pair["auc_difference"][0]) == (len(table) - 2, 0)
    assert "enough" not in record  # a run is nothing to promote


def test_runs_alone_need_no_data_and_a_report_keeps_tables_and_forest_plot(lungkit, a_run, tmp_path):
    table = pd.read_csv(a_run / "predictions.csv")
    shutil.copytree(a_run, tmp_path / "other")
    table.assign(predicted="left").to_csv(tmp_path / "other" / "predictions.csv", index=False)
    _, out, _ = lungkit("compare", a_run, tmp_path / "other" / "predictions.csv", "--report", tmp_path / "kept")
    assert "Compared with a-run, other is" in out
    assert {path.name for path in (tmp_path / "kept").rglob("compare_*.*")} == {
        "compare_table.csv", "compare_table.json",
        "compare_forest.json", "compare_forest.png", "compare_forest.svg", "compare_forest.pdf",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("models", "options", "said"),
    [
        (["squares-cnn"], ["DATA"], "give two or more to compare"),
        (["squares-cnn", "squares-cnn@v2"], ["DATA"], "squares-cnn@v2 is there twice"),
        (["squares-cnn@v1", "squares-cnn@v2"], [], "squares-cnn@v1 is a version, which has to be scored: give a data"),
        (["squares-cnn@v1", "nobody"], ["DATA"], "no model 'nobody'"),
        (["squares-cnn@v1", "squares-cnn@v2", "SQUARES"], [], "has no predictions.csv: give a model"),
        (["RUN", "RUN/predictions.csv"], [], "a-run is there twice"),
        (["RUN", "COPY"], ["DATA"], "leave --data and options of labels out"),
        (["RUN", "squares-cnn"], ["DATA", "DATA"], "a-run is a run, which is of one data set: give one --data"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(lungkit, second, a_run, squares, tmp_path, models, options, said):
    shutil.copytree(a_run, tmp_path / "copy")
    paths = {
        "SQUARES": squares,
        "RUN": a_run,
        "RUN/predictions.csv": a_run / "predictions.csv",
        "COPY": tmp_path / "copy",
    }
    given = [paths.get(name, name) for name in models] + [text for _ in options for text in ("--data", squares)]
    assert said in _refused(lungkit("compare", *given))


def _copy_files(version, to) -> None:
    for name in version.card.files:
        shutil.copy(version.folder / name, to / name)


# --- models


def _rows(table: str, word: str) -> list[list[str]]:
    return [re.split(r"\s*[│┃|]\s*", line.strip(" │┃|")) for line in table.splitlines() if word in line]


def test_versions_are_listed_with_the_figures_that_count_and_where_they_were_measured(lungkit, version):
    registry.add("squares-cnn", _card(version, synthetic=True, metrics={}), _one_file)
    code, out, _ = lungkit("models", "list")
    assert code == 0
    split, measured = version.card.reported
    figures = [str(measured.figure("auc")), str(measured.figure("accuracy"))]
    assert _rows(out, "squares-cnn") == [
        ["squares-cnn", "v1", "", "squares", *figures, {"val": "validation only"}.get(split, split)],
        ["squares-cnn", "v2", "●", "squares (synthetic)", "–", "–", "nothing"],
    ]


def test_a_model_without_an_active_version_is_listed_too(lungkit, version):
    registry.add("candidate", _card(version), _one_file, promote=False)
    code, out, _ = lungkit("models", "list")
    assert code == 0
    assert _rows(out, "candidate")[0][:3] == ["candidate", "v1", ""]
    assert "●" in _rows(out, "squares-cnn")[0]


def test_without_a_model_the_list_is_empty(lungkit):
    code, out, _ = lungkit("models", "list")
    assert code == 0
    assert "measured on" in out


def test_an_intact_version_is_verified(lungkit, version):
    assert lungkit("models", "verify", "squares-cnn") == (0, "squares-cnn@v1: every file is as registered\n", "")


def test_a_tampered_version_is_not_verified(lungkit, version):
    (version.folder / "trained_on.txt").write_text("")
    assert "squares-cnn@v1: trained_on.txt was changed" in _refused(lungkit("models", "verify", "squares-cnn@v1"))


def test_a_version_is_promoted_and_rolled_back(lungkit, version):
    registry.add("squares-cnn", _card(version), _one_file, promote=False)
    assert lungkit("models", "promote", "squares-cnn@v2")[:2] == (0, "squares-cnn@v2 is active\n")
    assert registry.active("squares-cnn").version == "v2"
    assert lungkit("models", "rollback", "squares-cnn")[:2] == (0, "squares-cnn@v1 is active\n")
    assert registry.active("squares-cnn").version == "v1"
    assert "nothing to go back to" in _refused(lungkit("models", "rollback", "squares-cnn"))


def _card(version: registry.Version, **changes) -> ModelCard:
    return dataclasses.replace(version.card, **changes)


def _one_file(folder: Path) -> None:
    (folder / "weights").write_bytes(b"1")


# --- data


def test_an_audit_shows_its_findings_and_writes_tables_and_figure(lungkit, squares, tmp_path):
    copied = shutil.copytree(squares, tmp_path / "[old] squares")
    shutil.copy(copied / "p00_0.png", copied / "p01_0.png")  # the same picture, left and right
    code, out, _ = lungkit("data", "audit", copied, "--out", tmp_path / "audit")
    assert code == 0
    assert "Audit of [old] squares" in out
    assert next(row for row in _rows(out, "same picture under two labels"))[0] == "error"
    findings = pd.read_csv(tmp_path / "audit" / "findings.csv")
    found = findings.set_index("finding").loc["same picture under two labels"]
    assert (found["severity"], found["count"]) == ("error", 1)
    (pair,) = pd.read_csv(tmp_path / "audit" / "duplicates.csv").query("kind == 'exact'").itertuples()
    assert {pair.file_a, pair.file_b} == {"p00_0.png", "p01_0.png"}
    with Image.open(tmp_path / "audit" / "audit.png") as figure:
        assert min(figure.size) > 300


def test_an_audit_names_files_with_the_reason_and_is_strict_where_asked(lungkit, elsewhere, tmp_path):
    _, told, _ = lungkit("data", "audit", elsewhere, "--strict")
    assert "none found: unreadable files" in told and "│ unreadable" not in told, "one line for all that was not found"
    assert lungkit("data", "audit", elsewhere, "--strict")[0] == 0
    for file in (elsewhere / "Left").iterdir():
        file.write_bytes(file.read_bytes()[:200])
    code, out, _ = lungkit("data", "audit", elsewhere, "--out", tmp_path / "out")
    assert code == 0
    assert "\nunreadable: 12\n  Left/p00_0.png: truncated: the file ends before the picture does." in out
    assert "\n  and 2 more (unreadable.csv in the folder of --out lists all)\n" in out
    assert next(iter(_rows(out, "files passed over")))[-1] == "README.txt"
    table = pd.read_csv(tmp_path / "out" / "unreadable.csv")
    assert len(table) == 12
    assert table["reason"].str.startswith("truncated").all()
    assert lungkit("data", "audit", elsewhere, "--strict")[0] == 1


def test_an_audit_of_another_label_column_compares_its_classes(lungkit, squares, tmp_path):
    code, _, _ = lungkit("data", "audit", squares, "--label-column", "other", "--out", tmp_path)
    assert code == 0
    findings = (tmp_path / "findings.csv").read_text()
    assert "left" not in findings


def test_the_phantom_is_made_as_dicom_files_with_masks(lungkit, tmp_path):
    import pydicom

    folder = tmp_path / "made"
    code, out, _ = lungkit("data", "phantom", folder, "--slices", 6, "--seed", 3)
    assert code == 0
    assert out == f"{folder}\n"
    labels = pd.read_csv(folder / "labels.csv", keep_default_na=False)
    assert len(labels) == 6
    header = pydicom.dcmread(folder / labels["file"][0], stop_before_pixels=True)
    assert header.Modality == "CT"
    ill = labels[labels["mask"] != ""]
    assert len(ill)
    assert all((folder / mask).is_file() for mask in ill["mask"])


def test_fetch_prints_where_the_data_set_lies(lungkit, monkeypatch, tmp_path):
    from lungkit.data import fetch

    monkeypatch.setattr(fetch, "fetch", lambda name: tmp_path / f"{name}.npz")
    assert lungkit("data", "fetch", "pneumoniamnist") == (0, f"{tmp_path / 'pneumoniamnist.npz'}\n", "")


def test_fetch_refuses_an_unknown_name_in_one_line(lungkit):
    assert "chexpert" in _refused(lungkit("data", "fetch", "chexpert"))


# --- series ------------------------------------------------------------------------------------------------------


def test_series_shows_each_series_and_every_finding_in_words(lungkit, tmp_path):
    from tests.data.ct_series import change, files, stack

    made = stack(6)
    del made[2:4]
    scout = change(stack(1)[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for name, content in files([*made, scout]):
        (tmp_path / name).write_bytes(content)
    code, out, _ = lungkit("series", tmp_path)
    assert code == 0
    row = next(line for line in out.splitlines() if "slices only" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][:6] == [
        "1",
        "4",
        "24 x 24",
        "0.7 x 0.7 x 2",
        "-314.0 to -304.0",
        "axial",
    ]
    assert "1: SeriesInstanceUID 1.2.3.2, 0.dcm to 3.dcm" in out
    assert "1: slicewise: missing slices: 2 slices missing between z = -312.0 and -306.0 mm." in out
    assert "in no series: 1\n  4.dcm: localizer: " in out


def test_series_refuses_what_has_none(lungkit, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    code, out, err = lungkit("series", tmp_path)
    assert (code, "notes.txt: not a DICOM file" in out) == (1, True)
    assert err.count("error: ") == 1 and "no CT series" in err
    assert "no such file or folder" in _refused(lungkit("series", tmp_path / "missing"))
