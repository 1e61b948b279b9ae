"""From reviews to a version that reads, and back: commands on the clinic's machine, people at browsers.

Patients are drawn. Since the clinic's model learned, its scanner was changed and shows air white. Reviews repair that.
"""

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from lungkit.backend import seeded

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from playwright.sync_api import Locator, expect

from lungkit.clinic.learning import made_up
from lungkit.clinic.predictor import Predictor
from lungkit.clinic.records import accounts, settings
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.tables import Reading, Study
from lungkit.data.phantom.scanners import CHANGED, Scanner
from lungkit.models import registry
from lungkit.training import finetune, recipes
from tests.e2e.conftest import Clinic, Visitor

SIDE = 64
LEARNED, KEPT = 60, 64  # patients whose reviews are learned from, and blind ones of the locked set
BY_HAND = 6  # of each are reviewed at the browser; the rest is reviewed by the same person past it
MODEL = "made-up-covid"
NORMAL, COVID = made_up.NORMAL, made_up.COVID


class Inverted(Scanner):
    """Air is white."""

    def picture(self, *of) -> np.ndarray:
        return 255 - super().picture(*of)


NOW = Inverted(**vars(CHANGED))


@pytest.fixture(scope="module")
def clinic(start_clinic, tmp_path_factory) -> Clinic:
    """A clinic whose model learned from patients of another scanner than it has now. It has a second administrator."""
    folder, patch = tmp_path_factory.mktemp("clinic"), pytest.MonkeyPatch()
    for name in ("data", "artifacts", "reports"):
        patch.setenv(f"LUNGKIT_{name.upper()}", str(folder / name))
    try:
        seeded(3)
        recipe = recipes.Recipe(
            name=MODEL,
            modality="CT",
            backbone="cnn",
            side=SIDE,
            epochs=16,
            learning_rate=3e-3,
            label_smoothing=0.0,
            mixup=0.0,
            augmentation={},
            mirrored=False,
        )
        finetune.train_recipe(recipe, made_up.home_set(folder / "home", 160, SIDE), folder / "work")
    finally:
        patch.undo()
    running = start_clinic(folder)
    with running.store.write() as db:
        running.passwords["eva"] = accounts.add_user(db, "eva", "Second Admin", "admin")
    return running


@pytest.fixture
def lungkit(clinic):
    """A function: what a command of the clinic's machine prints."""

    def run(*arguments: object) -> str:
        command = [Path(sys.executable).with_name("lungkit"), *map(str, arguments)]
        done = subprocess.run(command, env=clinic.environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    return run


def visited(clinic, patients: range, blind: bool, monkeypatch) -> dict[str, str]:
    """Patients come to the changed scanner and are read; the id of each reading to what is true of its patient."""
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(clinic.artifacts))
    predictor = Predictor(registry.active(MODEL))
    with clinic.store.write() as db:
        settings.put(db, settings.BLIND_SHARE, float(blind))
    doctor, truth = records_of(clinic, "ada"), {}
    for number in patients:
        label = (NORMAL, COVID)[number % 2]
        truth[made_up.visit(doctor, predictor, f"VISITOR-{number:03}", label, NOW, SIDE)] = label
    with clinic.store.write() as db:
        settings.put(db, settings.BLIND_SHARE, 0.0)
    return truth


def records_of(clinic, name: str) -> Records:
    return Records(accounts.Access(clinic.store, clinic.token(name)))


def versions_that_read(clinic) -> list[str]:
    """The version of each reading that was uploaded at a browser, oldest first."""
    with clinic.store.read() as db:
        rows = sa.select(Reading.version).join(Study).where(Study.notes == "by browser").order_by(Reading.read_at)
        return list(db.scalars(rows))


def review_by_hand(doctor: Visitor, number: str, label: str, blind: bool) -> None:
    """Open a patient's case from the worklist and say what is seen."""
    page = doctor.page
    doctor.go("Worklist")
    page.get_by_role("searchbox").fill(number)
    select(page.locator(".worklist-table tbody tr", has_text=number), page.get_by_role("button", name="Open case"))
    page.get_by_role("button", name="Open case").click()
    if blind:
        doctor.sees("Read this image first")
        page.get_by_label(label).check()
        page.get_by_role("button", name="Save label and show the answer").click()
    else:
        page.locator(".review").wait_for()
        if (agree := page.get_by_role("button", name=f"Agree: {label}")).count():
            agree.click()
        else:
            page.get_by_label(re.compile("Correct to|Your finding")).select_option(label)
            page.get_by_role("button", name=re.compile("Save correction|Save finding")).click()
    expect(page.locator(".review li")).to_have_count(1)


def select(row: Locator, button: Locator) -> None:
    """Click a row until it is selected: a table that has just changed is drawn again, and loses a click in between."""
    for _ in range(5):
        row.click()
        with suppress(AssertionError):
            expect(button).to_be_enabled(timeout=3000)
            return
    raise AssertionError("the row was not selected")


def upload(doctor: Visitor, folder: Path, number: int) -> None:
    """A patient of the changed scanner, at the page that is open."""
    drawn = made_up.one_patient({"now": NOW}, SIDE, seed=number)["now"]
    file = folder / f"visit-{number}.png"
    Image.fromarray(np.rint(drawn * 255).astype(np.uint8)).save(file)
    doctor.start_over()
    doctor.new_patient(f"BROWSER-{number}", "Demo Patient")
    doctor.page.get_by_label(re.compile("^Notes")).fill("by browser")
    doctor.upload(file)


def sign(admin: Visitor) -> None:
    admin.go("Trials")
    button = admin.page.get_by_role("button", name="Sign …")
    select(admin.page.locator("tbody tr", has_text=MODEL), button)
    button.click()
    admin.page.get_by_role("button", name="Sign", exact=True).click()
    admin.sees("You have signed the trial")


def test_reviews_become_a_version_that_two_people_sign_and_one_takes_back(
    visit, clinic, lungkit, tmp_path, monkeypatch
):
    ada, ben, eve, eva = (visit(name) for name in ("ada", "ben", "eve", "eva"))
    upload(ada, tmp_path, 1)
    assert versions_that_read(clinic) == ["v1"]

    # Sixty cases are reviewed with the answer on screen, and more of them blind.
    for patients, blind in ((range(LEARNED), False), (range(LEARNED, LEARNED + KEPT), True)):
        truth = visited(clinic, patients, blind, monkeypatch)
        for place, (reading_id, label) in enumerate(truth.items()):
            if place < BY_HAND:
                review_by_hand(ben, f"VISITOR-{patients[place]:03}", label, blind)
            else:
                records_of(clinic, "ben").review(reading_id, label)
    sets = tmp_path / "sets"
    assert f"{LEARNED} images of {LEARNED} patients" in lungkit("learn", "collect", sets / "reviews", "--model", MODEL)
    assert f"{KEPT} images of {KEPT} patients" in lungkit("learn", "collect", sets / "locked", "--locked")

    # A challenger learns, and is measured next to the version in use.
    told = lungkit("learn", "train", MODEL, "--reviews", sets / "reviews" / "reviews-v1")
    assert "It reads nothing until a trial has promoted it." in told
    home = made_up.home_set(tmp_path / "home", 70, SIDE, seed=11)
    said = lungkit(
        "learn", "trial", f"{MODEL}@v2", "--locked", sets / "locked" / "locked-v1", "--reviews",
        sets / "reviews" / "reviews-v1", "--data", home, "--margin", "0.2", "--json",
    )  # fmt: skip
    trial = json.loads(said)
    print(
        "TRIAL",
        [
            (
                o["source"],
                o["kind"],
                o["patients"],
                o["champion"]["auc"],
                o["challenger"]["auc"],
                o["auc"],
                o["ece"],
                o["brier"],
            )
            for o in trial["evidence"]["sets"]
        ],
        trial["verdict"],
        trial["reasons"],
    )
    assert trial["verdict"] == "promote", trial

    # One signature is not enough, and two are for one click.
    sign(eve)
    use = eve.page.get_by_role("button", name="Use this version …")
    expect(use).to_be_disabled()
    expect(eve.page.get_by_role("button", name="Sign …")).to_be_enabled()
    sign(eva)
    use = eva.page.get_by_role("button", name="Use this version …")
    use.click()
    eva.page.get_by_role("button", name="Use this version", exact=True).click()
    eva.sees(f"{MODEL}@v2 is in use now. No restart is needed.")

    # The page that was open all the time reads with it.
    upload(ada, tmp_path, 2)
    assert versions_that_read(clinic) == ["v1", "v2"]

    # And back.
    eve.go("Models")
    back = eve.page.get_by_role("button", name=f"Roll back {MODEL} …")
    select(eve.page.locator("tbody tr", has_text=f"{MODEL}@v2"), back)
    back.click()
    eve.page.get_by_role("button", name="Roll back", exact=True).click()
    eve.sees(f"{MODEL}@v1 is in use now.")
    upload(ada, tmp_path, 3)
    assert versions_that_read(clinic) == ["v1", "v2", "v1"]
    eva.go("Trials")
    expect(eva.page.locator("tbody tr", has_text=MODEL)).to_contain_text("rolled back")
