"""The registry: what add leaves, what verify refuses, and that a kill at any moment leaves the old version active."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import datetime

import pytest

from lungkit import config, files
from lungkit.errors import LungkitError
from lungkit.models import registry
from lungkit.models.card import ModelCard
from lungkit.models.registry import ModelDamaged, ModelMissing

CARD = {
    "classes": ("Normal", "Pneumonia"),
    "preprocessing": {"size": [96, 96], "window": [-600.0, 1500.0], "mean": 0.25, "std": 0.5},
    "data": {"name": "phantom", "fingerprint": "ab12", "patients": 75},
    "metrics": {
        "val": {
            "n": 40,
            "patients": 10,
            "accuracy": 0.9,
            "auc": None,
            "per_class": {"Pneumonia": {"recall": 0.875, "support": 20}},
            "intervals": {"accuracy": [0.81, 0.96], "per_class": {"Pneumonia": {"recall": [0.7, 1.0]}}},
        }
    },
    "operating_point": {"kind": "threshold", "positive": "Pneumonia", "threshold": 0.42},
    "synthetic": True,
}


def write(folder):
    (folder / "model.keras").write_bytes(b"weights")
    (folder / "graph").mkdir()
    (folder / "graph" / "model.xml").write_text("<net/>")


def add(model="lung", card=CARD, **options):
    return registry.add(model, ModelCard.from_dict(card), write, **options)


def hidden(model="lung"):
    return sorted(f.name for f in (config.artifacts_dir() / model).glob(".staging.*"))


# --- adding and finding


def test_add_seals_files_card_readme_and_hashes_in_one_folder():
    version = add()
    assert (version.model, version.version, str(version)) == ("lung", "v1", "lung@v1")
    assert version.folder == config.artifacts_dir() / "lung" / "v1"
    assert sorted(p.name for p in version.folder.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "card.json",
        "graph",
        "model.keras",
    ]
    assert version.card.classes == ("Normal", "Pneumonia")
    assert version.card.files["graph/model.xml"].bytes == 6
    assert datetime.fromisoformat(version.card.created).utcoffset().total_seconds() == 0
    assert hidden() == []


def test_sha256sum_itself_accepts_a_version():
    folder = add().folder
    checked = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0
    assert {"card.json: OK", "README.md: OK", "graph/model.xml: OK"} <= set(checked.stdout.splitlines())


def test_a_notebook_finds_the_model_of_its_data_set_or_is_told_what_to_run():
    with pytest.raises(
        ModelMissing, match=r"no model was trained on phantom-1200 yet: run notebook 03 first .*run 03`\)$"
    ):
        registry.for_notebook("", "phantom-1200")
    add("ct-infection", CARD | {"data": CARD["data"] | {"name": "phantom-1500"}})
    add("brain", CARD | {"data": CARD["data"] | {"name": "tumours"}})
    with pytest.raises(ModelMissing, match=r"run notebook 03 first .*, or set model_name='ct-infection'$"):
        registry.for_notebook("", "phantom-1200")
    with pytest.raises(ModelMissing, match=r", or name another model in model_name: brain, ct-infection$"):
        registry.for_notebook("", "mosmed_ct")
    assert str(registry.for_notebook("ct-infection@v1", "phantom-1200")) == "ct-infection@v1"
    with pytest.raises(ModelMissing, match="no model 'heart'"):
        registry.for_notebook("heart", "phantom-1200")
    add("phantom-1200-cnn")
    assert str(registry.for_notebook("", "phantom-1200")) == "phantom-1200-cnn@v1"


def test_a_readme_sets_the_accuracy_next_to_the_largest_class():
    measured = CARD["metrics"]["val"] | {"largest_class": {"class": "Normal", "share": 0.768}}
    readme = (add("m", CARD | {"metrics": {"val": measured}}).folder / "README.md").read_text()
    assert "| Accuracy | 0.900 (0.810–0.960) |  |\n| Always answering 'Normal' | 0.768 |  |" in readme
    assert "Always answering '" not in (add("older").folder / "README.md").read_text()


def test_versions_are_sorted_as_numbers():
    for _ in range(11):
        add()
    assert registry.versions("lung")[-3:] == ["v9", "v10", "v11"]


def test_a_bare_name_finds_the_active_version_and_an_at_finds_any():
    add()
    add()
    assert registry.find("lung").version == "v2"
    assert registry.find("lung@v1").version == "v1"
    assert registry.models() == ["lung"]


def test_which_version_is_active_is_known_even_if_its_card_is_damaged():
    assert registry.active_name("lung") is None
    add(promote=False)
    assert registry.active_name("lung") is None
    (add().folder / "card.json").write_text("{")
    assert registry.active_name("lung") == "v2"
    with pytest.raises(ModelDamaged, match="not JSON"):
        registry.active("lung")


def test_a_missing_model_lists_the_models_and_a_missing_version_the_versions():
    with pytest.raises(ModelMissing, match="no model 'lung'; there are: none yet"):
        registry.find("lung")
    add()
    with pytest.raises(ModelMissing, match="no model 'heart'; there are: lung"):
        registry.find("heart")
    with pytest.raises(ModelMissing, match="lung has no version 'v7'; there are: v1"):
        registry.find("lung@v7")


@pytest.mark.parametrize("name", ["", "..", "../lung", "Lung", "lung/v1", ".hidden", "lung\n", "a" * 101, "a b"])
def test_a_name_that_could_leave_the_folder_or_confuse_people_is_refused(name):
    with pytest.raises(LungkitError, match="cannot name a model"):
        add(name)
    with pytest.raises(LungkitError, match="cannot name a model"):
        registry.find(name)


@pytest.mark.parametrize("version", ["", "1", "v0", "../v1", "v1/graph", "active.json"])
def test_a_version_is_found_by_its_exact_name_only(version):
    add()
    with pytest.raises(ModelMissing, match="there are: v1"):
        registry.find(f"lung@{version}")


def test_the_registry_states_itself_which_version_a_card_is_of():
    first = add()
    again = registry.add("heart", first.card, write)
    assert (again.card.model, again.card.version) == ("heart", "v1")
    assert replace(again.card, model=None, created=None) == replace(first.card, model=None, created=None)


def test_a_card_that_is_not_strict_json_is_refused_by_name():
    with pytest.raises(LungkitError, match="'training' cannot be written as JSON"):
        add(card=CARD | {"training": {"seconds": float("nan")}})
    assert registry.models() == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"metrics": {"val": {"accuracy": "high"}}}, r"'metrics.val.accuracy' is 'high'; accepted: a number"),
        ({"classes": None}, r"'classes' is None; accepted: a list"),
        ({"schema": 99}, r"'schema' is 99; this lungkit reads up to 1: install a newer one"),
    ],
)
def test_a_damaged_card_is_refused_with_its_file_and_key(damage, message):
    path = add().folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ModelDamaged, match=rf"lung@v1: .*/lung/v1/card\.json: {message}"):
        registry.find("lung")


def test_model_files_may_not_take_the_registrys_own_names():
    with pytest.raises(LungkitError, match=r"card.json: written by the registry itself"):
        registry.add("lung", ModelCard.from_dict(CARD), lambda folder: (folder / "card.json").write_text("{}"))


def test_when_writing_fails_nothing_is_registered():
    add()

    def fail(folder):
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        registry.add("lung", ModelCard.from_dict(CARD), fail)
    assert registry.versions("lung") == ["v1"]
    assert hidden() == []


def test_the_readme_is_a_card_for_people():
    readme = (add().folder / "README.md").read_text()
    assert "Normal or Pneumonia" in readme
    assert "Not a medical device" in readme
    assert "Synthetic data" in readme
    assert "0.900 (0.810–0.960)" in readme
    assert "| Sensitivity |  | 0.875 (0.700–1.000) |" in readme
    assert "40 images of 10 patients" in readme
    assert "Pneumonia is the answer from 42 % on" in readme
    assert 'registry.find("lung@v1")' in readme


def test_the_readme_of_a_model_of_real_images_has_no_synthetic_warning():
    assert "Synthetic" not in (add(card=CARD | {"synthetic": False}).folder / "README.md").read_text()


# --- the active version


def test_a_version_added_without_promotion_waits_for_it():
    add(promote=False)
    with pytest.raises(ModelMissing, match="no active version; promote one of: v1"):
        registry.find("lung")
    registry.promote("lung", "v1")
    assert registry.active("lung").version == "v1"


def test_rollback_goes_back_one_promotion_at_a_time():
    for _ in range(3):
        add()
    registry.promote("lung", "v1")
    assert [registry.rollback("lung").version for _ in range(3)] == ["v3", "v2", "v1"]
    with pytest.raises(ModelMissing, match="no version was active before v1"):
        registry.rollback("lung")
    assert registry.active("lung").version == "v1"


def test_promoting_the_active_version_again_changes_nothing():
    add()
    add()
    registry.promote("lung", "v2")
    assert registry.rollback("lung").version == "v1"


def test_a_number_that_was_promoted_is_not_given_again():
    add()
    folder = add().folder
    registry.rollback("lung")
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    assert add().version == "v3"


def test_a_deleted_active_version_is_missing_by_name():
    version = add(promote=False)
    add()
    assert registry.active("lung").version == "v2"
    registry.active("lung").folder.rename(version.folder.parent / "elsewhere")
    with pytest.raises(ModelMissing, match="lung has no version 'v2'; there are: v1"):
        registry.find("lung")


# --- damage


def test_an_untouched_version_passes():
    add()
    registry.verify(registry.find("lung@v1"))


def change(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("file", ["model.keras", "graph/model.xml", "README.md"])
def test_one_changed_bit_is_refused_by_the_files_name(file):
    version = add()
    change(version.folder / file)
    with pytest.raises(ModelDamaged, match=rf"lung@v1: {file} was changed after it was registered"):
        registry.verify(version)


def test_an_edited_card_is_refused_by_name():
    version = add()
    card = version.folder / "card.json"
    card.write_text(card.read_text().replace("0.42", "0.99"))
    with pytest.raises(ModelDamaged, match=r"card.json was changed"):
        registry.verify(registry.find("lung"))


def test_an_edited_card_is_refused_even_with_its_hash_renewed():
    version = add()
    card, sums = version.folder / "card.json", version.folder / "SHA256SUMS"
    before = files.sha256(card)
    card.write_text(card.read_text().replace("0.42", "0.99"))
    sums.write_text(sums.read_text().replace(before, files.sha256(card)))
    with pytest.raises(ModelDamaged, match="SHA256SUMS is not the one that was promoted"):
        registry.verify(version)


@pytest.mark.parametrize("file", ["model.keras", "SHA256SUMS", "card.json"])
def test_a_missing_file_is_refused_by_name(file):
    version = add()
    (version.folder / file).unlink()
    with pytest.raises(ModelDamaged, match=rf"{file} is missing"):
        registry.verify(version)


def test_a_file_that_was_not_registered_is_refused_by_name():
    version = add()
    (version.folder / "graph" / "model.bin").write_bytes(b"?")
    with pytest.raises(ModelDamaged, match=r"graph/model.bin was not registered"):
        registry.verify(version)


def test_hashes_that_name_a_file_outside_the_version_are_refused():
    version = add(promote=False)
    with (version.folder / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  ../v2/model.keras\n")
    with pytest.raises(ModelDamaged, match=r"\.\./v2/model.keras is missing"):
        registry.verify(version)


def test_unreadable_hashes_are_refused():
    version = add(promote=False)
    (version.folder / "SHA256SUMS").write_text("rubbish\n")
    with pytest.raises(ModelDamaged, match="SHA256SUMS has a line"):
        registry.verify(version)


def test_a_damaged_version_is_not_promoted_nor_rolled_back_to():
    first = add()
    add()
    change(first.folder / "model.keras")
    with pytest.raises(ModelDamaged):
        registry.promote("lung", "v1")
    with pytest.raises(ModelDamaged):
        registry.rollback("lung")
    assert registry.active("lung").version == "v2"


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "v1"}', '{"version": "../v1", "history": [], "sums": {}}'])
def test_a_damaged_pointer_is_refused_by_name(content):
    pointer = add().folder.parent / "active.json"
    pointer.write_text(content)
    with pytest.raises(ModelDamaged, match=r"active.json"):
        registry.find("lung")


def test_a_card_that_is_not_json_is_refused_by_name():
    version = add()
    (version.folder / "card.json").write_text("{")
    with pytest.raises(ModelDamaged, match=r"lung@v1: card.json is not JSON"):
        registry.find("lung")


# --- kills and races, with real processes


def run(code, **options):
    """A Python process with the registry, CARD and write at hand, on this test's artifacts folder."""
    setup = f"""
        import json, os, signal, time
        from pathlib import Path
        from lungkit.models import registry
        from lungkit.models.card import ModelCard
        CARD = ModelCard.from_dict(json.loads('''{json.dumps(CARD)}'''))
        def write(folder): (folder / "model.keras").write_bytes(b"new")
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
    """
    source = textwrap.dedent(setup) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", source], env=os.environ, **options)


KILLS = {
    "while the files are written": 'registry.add("lung", CARD, lambda folder: (write(folder), die()))',
    "while the card is written": 'registry.card_text.markdown = die; registry.add("lung", CARD, write)',
    "before the rename": 'registry.Path.rename = die; registry.add("lung", CARD, write)',
    "between rename and promotion": 'registry._activate = die; registry.add("lung", CARD, write)',
    "before the pointer is replaced": 'registry.Path.replace = die; registry.add("lung", CARD, write)',
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_process_killed_leaves_the_old_version_active_and_the_next_add_works(moment):
    old = add()
    assert run(KILLS[moment]).wait() == -signal.SIGKILL
    assert registry.find("lung") == old
    registry.verify(old)
    for version in registry.versions("lung"):  # whatever is visible is whole
        registry.verify(registry.find(f"lung@{version}"))
    new = add()
    assert registry.find("lung") == new
    assert hidden() == []
    assert registry.rollback("lung") == old


def test_an_add_leaves_the_staging_folder_of_a_living_process_alone():
    other = run(
        """
        def slow(folder):
            write(folder)
            print("writing", flush=True)
            input()
        registry.add("lung", CARD, slow)
        """,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"writing\n"
    assert add().version == "v1"
    assert len(hidden()) == 1
    other.communicate(b"\n")
    assert other.returncode == 0
    assert registry.find("lung").version == "v2"
    assert hidden() == []


def test_processes_that_add_at_once_each_get_a_version_of_their_own():
    processes = [run('for _ in range(5): registry.add("lung", CARD, write)') for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    assert registry.versions("lung") == [f"v{n}" for n in range(1, 16)]
    pointer = json.loads((config.artifacts_dir() / "lung" / "active.json").read_text())
    assert sorted([pointer["version"], *pointer["history"]]) == sorted(registry.versions("lung"))
    for version in registry.versions("lung"):
        registry.verify(registry.find(f"lung@{version}"))


def test_importing_the_registry_stays_light():
    code = "import sys, lungkit.models.registry; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "keras", "sklearn", "pandas", "matplotlib"} & set(loaded)
