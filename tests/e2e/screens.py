"""Pictures of the clinic's screens for the README, showing phantoms and made-up people: python -m tests.e2e.screens"""

import hashlib
import os
import shutil
import tempfile
import uuid
from datetime import timedelta
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from PIL import Image
from playwright import sync_api

from lungkit.clinic import series_reading
from lungkit.clinic.learning import nightly
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import accounts, keys, received, routing, settings, trials
from lungkit.clinic.records.accounts import Access
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.received import Arrival
from lungkit.clinic.records.routing import Rule
from lungkit.clinic.records.tables import SignIn, Study
from lungkit.clinic.records.trials import RollbackRule
from lungkit.data import images, phantom, series
from lungkit.progress import bar
from tests import trials as made
from tests.e2e.conftest import Clinic, Visitor

SAMPLES = Path(__file__).parents[2] / "reports" / "samples"
PATIENTS = 18
DAYS = 28  # that the demo's records are spread over


def fill(clinic: Clinic, folder: Path, patients: int = PATIENTS) -> None:
    """Records of some weeks: phantoms read by two doctors, most readings reviewed with what was drawn."""
    rng = np.random.default_rng(5)
    model = ModelPool()
    seats = [Records(Access(clinic.store, clinic.token(name))) for name in ("ada", "ben")]
    for number in bar(range(patients), label="demo patients", unit="patient"):
        drawn = phantom.CLASSES[number % len(phantom.CLASSES)]
        slices = phantom.make_patient(f"demo{number}", drawn, seed=100 + number, slices=3, size=512)
        sex = ("female", "male")[number % 2]
        patient = NewPatient(f"P-{1001 + number}", f"Demo Patient {number + 1}", 1935 + 3 * number, sex)
        for cut in slices[: 1 + number % 3]:
            seat = seats[int(rng.integers(2))]
            file = phantom.write_dicom(cut, folder / f"{number}-{cut.index}.dcm")
            image = images.read(file.read_bytes(), file.name)
            answer = model.get("ct-infection").read(image)
            case = seat.save_case(patient, image, hashlib.sha256(file.read_bytes()).hexdigest(), answer, "")
            patient = case.patient.id
            if rng.random() < 0.7:
                seat.review(case.reading_id, drawn, "")
    with clinic.store.write() as db:
        for study in db.scalars(sa.select(Study)).all():
            earlier = timedelta(days=int(rng.integers(1, DAYS)), minutes=int(rng.integers(-200, 100)))
            study.uploaded_at -= earlier
            for reading in study.readings:
                reading.read_at -= earlier
                for review in reading.reviews:
                    review.at -= earlier
        for day in range(1, DAYS):
            for user in rng.integers(1, 4, int(rng.integers(1, 5))):
                token = hashlib.sha256(rng.bytes(8)).hexdigest()
                row = SignIn(token_sha256=token, user_id=int(user), address="127.0.0.1")
                db.add(row)
                db.flush()
                row.created_at = row.seen_at = row.revoked_at = row.created_at - timedelta(days=day)


def fill_series(clinic: Clinic, folder: Path, slices: int = 60) -> None:
    """A phantom's CT series, read and saved as one."""
    (folder / "series").mkdir()
    for cut in phantom.make_patient("series", "Pneumonia", 46, slices, 256, (30, 80)):
        phantom.write_dicom(cut, folder / "series" / f"{cut.index:04}.dcm", original=True)
    (one,) = series.read(folder / "series").series
    said = series_reading.read(ModelPool().get("ct-infection"), one)
    records = Records(Access(clinic.store, clinic.token("ada")))
    records.save_series(NewPatient("P-3001", "Demo Patient, series", 1958, "male"), one, said)


def fill_blind(clinic: Clinic, folder: Path) -> None:
    """Images that the second doctor has read blind."""
    model = ModelPool()
    ben = Records(Access(clinic.store, clinic.token("ben")))
    with clinic.store.write() as db:
        settings.put(db, settings.BLIND_SHARE, 1.0)
    for number, drawn in enumerate(phantom.CLASSES):
        cut = phantom.make_patient(f"blind{number}", drawn, seed=300 + number, slices=3, size=512)[1]
        file = phantom.write_dicom(cut, folder / f"blind-{number}.dcm")
        image = images.read(file.read_bytes(), file.name)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        patient = NewPatient(f"P-{5001 + number}", f"Demo Patient, blind {number + 1}", 1950 + number)
        case = ben.save_case(patient, image, digest, model.get("ct-infection").read(image), "")
        ben.review(case.reading_id, drawn)
    with clinic.store.write() as db:
        settings.put(db, settings.BLIND_SHARE, 0.0)  # the picture of a reading shows its answer


def fill_gateway(clinic: Clinic) -> None:
    """Made-up programs, systems, rules and destinations, and a study that came."""
    with clinic.store.write() as db:
        keys.add_key(db, "ris", ["predict", "read"])
        keys.add_key(db, "research", ["read"], days=30)
        routing.add_caller(db, "CT_EMERGENCY", ["10.1.2.0/24"])
        routing.add_caller(db, "DX_WARD3")
        account, _ = routing.admitted(db, "DX_WARD3", "10.1.3.4")
        pacs = {"host": "pacs.example.org", "port": 104, "ae_title": "ARCHIVE"}
        to = [
            routing.add_destination(db, "Hospital PACS", "dicom", pacs).id,
            routing.add_destination(db, "FHIR server", "fhir", {"url": "https://fhir.example.org/r4"}).id,
        ]
        rules = (
            Rule(name="Chest CT", model="ct-infection", modality="CT", body_part="CHEST", destinations=tuple(to)),
            Rule(name="CT of the ward", model="ct-infection", caller="DX_WARD3", rank=50, destinations=(to[0],)),
        )
        for turn, rule in enumerate(rules):
            row = routing.add_route(db, rule)
            if not turn:
                routing.note_trial(db, row.id)
                routing.set_route(db, row.id, True)
    for number in range(121):
        scout = number == 120
        uid = f"1.2.{1 + scout}"
        file = Arrival(
            id=str(uuid.uuid4()), study_uid="1.2", series_uid=uid, instance_uid=f"{uid}.{number}",
            patient_number="P-4001", patient={"name": "Demo Patient"}, modality="CT", body_part="CHEST",
            descriptions=("CT chest", "Topogram" if scout else "Lung 1.0"), set_aside="localizer" if scout else "",
            sha256=f"{number:064x}", bytes=1,
        )  # fmt: skip
        received.arrive(clinic.store, account, "DX_WARD3", file)
    for study in received.complete(clinic.store, timedelta()):
        received.close(clinic.store, study, timedelta())


def fill_trial(clinic: Clinic) -> None:
    """A made-up trial of a made-up model, which one person has signed, and what a night found."""
    made.versions(2, "demo-ct")
    sets = (
        made.of_set("locked", (0.031, 0.014, 0.049), source="this clinic", data="blind-v3"),
        made.of_set("home", (0.001, -0.006, 0.009), source="first hospital"),
        made.of_set(
            "new", (0.044, 0.012, 0.078), source="this clinic", data="reviews-v5", patients=96, answer_shown=1.0
        ),
    )
    rule = RollbackRule.from_dict(made.ROLLBACK | {"derived_from": "demo-ct@v1: 92 % agreed (400 reviews)"})
    with clinic.store.write() as db:
        trial_id = trials.open_trial(db, made.evidence(*sets, model="demo-ct"), rule)
        eva = accounts.add_user(db, "eva", "Second Admin", "admin")
    token = accounts.sign_in(clinic.store, "eva", eva, "127.0.0.1")
    second = Administration(Access(clinic.store, token))
    second.sign_trial(trial_id, second.trials()[0].sha256)
    nightly.keep(clinic.store, "demo clinic")


def take(visitor: Visitor, name: str, height: int = 900) -> None:
    """reports/samples/clinic_NAME.png, in few colours: it stays small."""
    page = visitor.page
    page.set_viewport_size({"width": 1280, "height": height})
    page.wait_for_timeout(700)  # tables and pictures draw themselves after they were resized
    page.evaluate("document.querySelectorAll('*').forEach((part) => { part.scrollTop = 0; })")
    path = SAMPLES / f"clinic_{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256).save(path, optimize=True)


def main() -> None:
    with sync_api.sync_playwright() as playwright, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clinic = Clinic(folder)
        os.environ["LUNGKIT_ARTIFACTS"] = str(clinic.artifacts)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            fill(clinic, folder)
            fill_series(clinic, folder)
            fill_gateway(clinic)
            fill_blind(clinic, folder)
            clinic.start()
            doctor_screens(Visitor(browser, clinic, 1280), folder)
            admin_screens(Visitor(browser, clinic, 1280))
        finally:
            browser.close()
            clinic.close()


def doctor_screens(ada: Visitor, folder: Path) -> None:
    """Signing in, a new case from the form to its reading, the worklist, a patient's images side by side."""
    page = ada.page
    page.goto(ada.clinic.url)
    page.get_by_label("User name").fill("ada")
    take(ada, "sign_in", 560)
    ada.sign_in("ada")
    ada.new_patient("P-2001", "Demo Patient, new", "1961", "female")
    take(ada, "new_case", 760)
    cuts = phantom.make_patient("demo", "Pneumonia", seed=46, slices=3, size=512)
    ada.upload(phantom.write_dicom(cuts[1], folder / "phantom-slice.dcm"))
    page.locator(".viewer-canvas").wait_for()
    take(ada, "reading", 1400)
    ada.go("Worklist")
    page.locator("tbody tr").first.wait_for()
    take(ada, "worklist")
    page.locator("tbody tr", has_text="P-3001").click()
    page.get_by_role("button", name="Open case").click()
    page.wait_for_function("() => document.querySelector('.stack')?.measured.whole > 0")
    take(ada, "series", 900)
    ada.go("Second opinions")
    page.locator("tbody tr", has_text="P-5001").wait_for()
    take(ada, "opinions", 1000)
    page.locator("tbody tr", has_text="P-5002").click()
    page.get_by_role("button", name="Open image").first.click()
    page.locator(".choices").first.wait_for()
    take(ada, "label_first", 1000)
    ada.go("Patient")
    page.get_by_label("Patient number or name").press_sequentially("P-1003")
    page.get_by_role("button", name="P-1003").click()
    page.locator(".patient-name").wait_for()
    take(ada, "patient", 1100)


def admin_screens(eve: Visitor) -> None:
    """One picture of each."""
    with eve.clinic.store.write() as db:
        settings.put(db, settings.BLIND_SHARE, 0.2)
    eve.sign_in("eve")
    heights = {"People": 700, "Patients": 900, "Usage": 1000, "Models": 700, "Health": 800, "Settings": 500}
    for screen, height in heights.items():
        eve.go(screen)
        if screen == "Models":
            eve.page.locator("tbody tr").first.click()
            eve.page.get_by_role("button", name="Show card").click()
        take(eve, screen.lower(), height)
    for screen, height in (("Programs", 800), ("Routing", 1000), ("Queue", 900)):
        eve.go(screen)
        eve.page.locator("tbody tr").first.wait_for()
        take(eve, screen.lower(), height)
    fill_trial(eve.clinic)
    eve.go("Trials")
    eve.page.locator("tbody tr").first.wait_for()
    eve.page.wait_for_timeout(1500)  # a click while the table is drawn again is lost
    eve.page.locator("tbody tr").first.click()
    eve.page.locator(".trial svg").first.wait_for()
    take(eve, "trials", 1500)
    eve.go("Drift")
    take(eve, "drift", 1200)
    eve.go("Audit trail")
    eve.page.get_by_role("button", name="Verify").click()
    eve.page.locator(".notice").first.wait_for()
    take(eve, "audit_trail")


if __name__ == "__main__":
    main()
