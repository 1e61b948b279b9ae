"""The clinic as people use it: real server, real browser, a model that was trained on the phantom."""

import base64
import hashlib
import io
import json
import re
import shutil
import struct
import time
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pypdf
import pytest
import sqlalchemy as sa
from PIL import Image
from playwright.sync_api import expect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from lungkit import config
from lungkit.clinic import predictor
from lungkit.clinic.records import accounts
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.corrections import SAME_IMAGE
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import Patient, Reading, Review, Study, User
from lungkit.data import images, phantom
from lungkit.models import registry

HOSTILE = "<img src=x onerror=alert(1)>"
RESEARCH = "Research use only, not a diagnosis"


def readings(clinic, number: str) -> list[sa.Row]:
    """Each reading of a patient, oldest first: sha256 (of the upload), label, model, version, by (user name)."""
    found = sa.select(Study.sha256, Reading.label, Reading.model, Reading.version, User.name.label("by"))
    found = found.join(Reading, Reading.study_id == Study.id).join(Patient).join(User, User.id == Study.uploaded_by)
    with clinic.store.read() as db:
        return db.execute(found.where(Patient.number == number).order_by(Reading.read_at)).all()


# --- signing in and out


def test_sign_in_refuses_a_wrong_password_and_lets_the_right_one_in(visit, clinic, open_pages):
    ada = visit()
    page = ada.page
    page.goto(clinic.url)
    expect(page).to_have_url(re.compile(r"/login\b"))
    for password in ("not the password", clinic.passwords["ada"]):
        page.get_by_role("textbox", name="User name").fill("ada")
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        if password == "not the password":
            expect(page.get_by_role("alert")).to_have_text(accounts.REFUSED)
            assert not ada.usable()
    page.locator(".clinic-nav").wait_for()
    ada.sees("Demo Doctor, doctor")
    ada.sees(RESEARCH)
    open_pages["ada"] = ada


# --- reading an image


def drawn(visitor) -> np.ndarray:
    """The image as it is drawn, heat map included: (height, width, 3)."""
    address = visitor.page.locator(".viewer-canvas").evaluate("(canvas) => canvas.toDataURL()")
    png = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int16)


def test_a_slice_is_read_looked_at_reviewed_and_printed(visit, clinic, slices):
    ada = visit("ada")
    page = ada.page
    ada.new_patient("P-100", "Demo Patient Hundred", "1961", "female")
    assert not ada.usable()
    ada.upload(slices["Pneumonia"])

    # Decision, probabilities of all classes, input checks, model, warning.
    assert "Pneumonia" in ada.line(slices["Pneumonia"])
    expect(page.get_by_role("region", name="Reading of the model")).to_contain_text("Pneumonia")
    bars = page.locator(".probabilities tr")
    expect(bars).to_have_count(3)
    assert [re.split(r"\s", row)[0] for row in bars.all_inner_texts()] == ["Normal", "Pneumonia", "COVID-19"]
    checks = page.locator(".checks li").all_inner_texts()
    assert len(checks) == 3
    assert all("Passed:" in check for check in checks)
    ada.sees("P-100", "Demo Patient Hundred", "born 1961, female", "CT · 512 × 512 pixels", "ct-infection@v2",
             "Synthetic images, not of patients", RESEARCH)  # fmt: skip
    assert not ada.usable()

    # The overlay answers in the browser: without it grey, with more of it more colour, and the kernel hears nothing.
    page.wait_for_timeout(300)
    before = ada.sent()
    colours = []
    for opacity in (0, 40, 90):
        page.get_by_label("Opacity").fill(str(opacity))
        picture = drawn(ada)
        colours.append(np.abs(picture[..., 0] - picture[..., 2]).mean())
    assert colours[0] == 0 < colours[1] < colours[2]
    lung = drawn(ada)
    page.get_by_role("button", name="Bone window").click()
    assert np.abs(drawn(ada) - lung).mean() > 5
    page.get_by_role("combobox", name="Heat map of").select_option("Normal")
    assert ada.sent() == before

    # Agree, then think better of it: both stay, the latest counts.
    page.get_by_label("Comment").fill(f"seen {HOSTILE}")
    page.get_by_role("button", name="Agree: Pneumonia").click()
    history = page.locator(".review li")
    expect(history).to_have_count(1)
    page.get_by_label("Correct to").select_option("COVID-19")
    page.get_by_role("button", name="Save correction").click()
    expect(history).to_have_count(2)
    assert f"seen {HOSTILE}" in history.nth(0).inner_text()
    assert "corrected to COVID-19" in history.nth(1).inner_text()
    with clinic.store.read() as db:
        saved = db.execute(
            sa.select(Review.agrees, Review.label, User.name).join(User).join(Reading).join(Study).join(Patient)
            .where(Patient.number == "P-100").order_by(Review.at)
        ).all()  # fmt: skip
    assert saved == [(True, "Pneumonia", "ada"), (False, "COVID-19", "ada")]

    # The same file again is not saved twice.
    page.get_by_role("button", name="More images of this patient").click()
    ada.upload(slices["Pneumonia"])
    assert "was already read for this patient" in ada.line(slices["Pneumonia"])
    assert len(readings(clinic, "P-100")) == 1
    page.get_by_role("button", name="Open the earlier reading").click()
    expect(page.get_by_role("button", name="Shown below")).to_have_count(2)
    expect(history).to_have_count(2)

    # The report says all of it.
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download report (PDF)").click()
    document = pypdf.PdfReader(waiting.value.path())
    text = " ".join(" ".join(sheet.extract_text() for sheet in document.pages).split())
    for words in ("P-100", "Demo Patient Hundred", "1961", "Pneumonia", "COVID-19", "ct-infection", "v2",
                  "Demo Doctor", f"seen {HOSTILE}", RESEARCH):  # fmt: skip
        assert words in text
    assert sum(len(sheet.images) for sheet in document.pages) >= 2
    assert waiting.value.suggested_filename.endswith(".pdf")


def refused_files(folder: Path) -> dict[Path, str]:
    """A file of each kind that is not read, and words that its refusal must hold."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8))
    folder.mkdir()
    whole = io.BytesIO()
    noise.save(whole, "PNG")
    noise.save(folder / "animation.gif")
    noise.resize((9, 9)).save(folder / "tiny.png")
    noise.save(folder / "pages.tiff", save_all=True, append_images=[noise])
    (folder / "half.png").write_bytes(whole.getvalue()[:1500])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "letter.png").write_text("Dear colleague")
    (folder / "page.dcm").write_text("<script>alert(1)</script>")
    return {
        folder / name: words
        for name, words in {
            "animation.gif": "Not an image. PNG, JPEG, TIFF and DICOM",
            "tiny.png": "9 x 9",
            "pages.tiff": "",
            "half.png": "",
            "empty.jpg": "empty",
            "letter.png": "Not an image. PNG, JPEG, TIFF and DICOM",
            "page.dcm": "Not an image. PNG, JPEG, TIFF and DICOM",
        }.items()
    }


def test_each_refused_file_says_why_and_the_others_are_read(visit, clinic, slices, tmp_path):
    ben = visit("ben")
    files = refused_files(tmp_path / "files")
    ben.new_patient("P-200", "Demo Patient Two Hundred")
    ben.upload(*files, slices["COVID-19"])
    for file, words in files.items():
        line = ben.line(file)
        assert line.startswith("✗"), line
        assert words in line
        assert len(line) > len(file.name) + 25, line  # what was wrong, and what would be accepted
    assert ben.line(slices["COVID-19"]).startswith("✓")
    assert len(readings(clinic, "P-200")) == 1
    assert not ben.usable()


def test_a_file_over_the_limit_is_refused_before_anything_is_sent_and_a_large_one_arrives_whole(
    visit, clinic, tmp_path
):
    ben = visit("ben")
    ben.new_patient("P-201", "Demo Patient Large")
    too_large = tmp_path / "series.dcm"
    with too_large.open("wb") as file:
        file.truncate(config.upload_bytes() + 1)
    ben.page.locator("input[type=file]:enabled").set_input_files(too_large)
    expect(ben.page.get_by_role("alert").filter(has_text="series.dcm was not sent")).to_contain_text("64 MiB")
    assert not [url for url in ben.requests if "/upload/" in url]
    assert readings(clinic, "P-201") == []

    noise = np.random.default_rng(0).integers(0, 255, (3000, 3000), np.uint8)
    large = tmp_path / "large.tiff"
    Image.fromarray(noise).save(large)
    ben.upload(large)
    assert [row.sha256 for row in readings(clinic, "P-201")] == [hashlib.sha256(large.read_bytes()).hexdigest()]


def test_a_chest_x_ray_is_flagged_by_the_model_of_ct(visit, clinic, shared_data):
    xray = min((shared_data / "chest_xray_paediatric_224" / "test" / "NORMAL").glob("*.jpeg"))
    ben = visit("ben")
    ben.new_patient("P-202", "Demo Patient X-ray")
    ben.upload(xray)
    assert "Review needed" in ben.line(xray)
    expect(ben.page.get_by_role("region", name="Reading of the model")).to_contain_text("Review needed")
    failed = ben.page.locator(".checks li.failed").all_inner_texts()
    assert any("not a CT slice" in words for words in failed)
    # Nothing to agree with: the doctor names the class.
    assert ben.page.get_by_role("button", name=re.compile("^Agree")).count() == 0
    ben.page.get_by_label("Your finding").select_option("Normal")
    ben.page.get_by_role("button", name="Save finding").click()
    expect(ben.page.locator(".review li")).to_have_count(1)


def test_two_doctors_at_once_see_only_what_is_their_own(visit, clinic, tmp_path):
    uploads = {}
    for place, name in enumerate(("ada", "ben")):
        (tmp_path / name).mkdir()
        uploads[name] = []
        for number in range(4):  # of one series each: slices of the same would be one case
            seed = 60 + 4 * place + number
            made = phantom.make_patient(f"both-{seed}", "Pneumonia", seed=seed, slices=3, size=256)
            uploads[name].append(phantom.write_dicom(made[1], tmp_path / name / f"{name}-{number}.dcm"))
    doctors = {name: visit(name) for name in uploads}
    for name, doctor in doctors.items():
        doctor.new_patient(f"BOTH-{name}", f"Demo Patient of {name}")
    for name, doctor in doctors.items():
        doctor.page.locator("input[type=file]:enabled").set_input_files(uploads[name])
    for name, doctor in doctors.items():
        expect(doctor.page.locator(".file-line.file-read, .file-line.file-review")).to_have_count(4)
        page_text = doctor.visible_text()
        other = "ben" if name == "ada" else "ada"
        assert all(file.name in page_text for file in uploads[name])
        assert f"Demo Patient of {name}" in page_text
        assert f"{other}-" not in page_text
        assert f"of {other}" not in page_text
    for name, files in uploads.items():
        sent = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        saved = readings(clinic, f"BOTH-{name}")
        assert sorted(row.sha256 for row in saved) == sent
        assert {row.by for row in saved} == {name}


# --- finding what was read


@pytest.fixture
def earlier(clinic, slices, monkeypatch):
    """Two readings of a patient, one of them reviewed, that a doctor saved before."""
    if not readings(clinic, "P-300"):
        save_readings(clinic, monkeypatch, "ben", "P-300", "Demo Patient Three Hundred", slices)


def save_readings(clinic, monkeypatch, name, number, patient_name, slices) -> None:
    """A reading of Normal, then one of COVID-19 that was corrected to Pneumonia, as a kernel saves them."""
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(clinic.artifacts))
    doctor = Records(accounts.Access(clinic.store, clinic.token(name)))
    model = predictor.ModelPool().get("ct-infection")
    patient, saved = NewPatient(number, patient_name, 1950, "male"), []
    for label in ("Normal", "COVID-19"):
        image = images.read(slices[label])
        sha256 = hashlib.sha256(slices[label].read_bytes()).hexdigest()
        case = doctor.save_case(patient, image, sha256, model.read(image), confirmed=[SAME_IMAGE])
        saved.append(case.reading_id)
        patient = case.patient.id
    doctor.review(saved[1], "Pneumonia", "see the follow-up")


def test_the_worklist_finds_filters_and_opens_what_a_colleague_read(visit, clinic, earlier):
    ada = visit("ada")
    page = ada.page
    ada.go("Worklist")
    table = page.locator(".clinic-screen table").filter(has=page.locator("tbody"))
    of_patient = table.locator("tbody tr", has_text="P-300")
    expect(of_patient).to_have_count(2)
    assert not ada.usable()
    page.get_by_label("Finding", exact=True).select_option("COVID-19")
    expect(of_patient).to_have_count(1)
    page.get_by_label("Review", exact=True).select_option("Not reviewed")
    expect(of_patient).to_have_count(0)
    page.get_by_label("Review", exact=True).select_option("Reviewed")
    expect(of_patient).to_have_count(1)
    page.get_by_label("From", exact=True).fill("2001-01-01")
    page.get_by_label("To", exact=True).fill("2001-12-31")
    expect(of_patient).to_have_count(0)
    page.get_by_role("button", name="Clear filters").click()
    expect(of_patient).to_have_count(2)

    of_patient.filter(has_text="Corrected to Pneumonia").click()
    page.get_by_role("button", name="Open case").click()
    page.locator(".reading").wait_for()
    ada.sees("Demo Patient Three Hundred", "by Second Doctor", "corrected to Pneumonia", "see the follow-up")
    assert not ada.usable()


def test_the_page_of_a_patient_shows_all_images_in_order_and_compares_two(visit, clinic, slices, monkeypatch):
    save_readings(clinic, monkeypatch, "ben", "P-301", HOSTILE, slices)
    ada = visit("ada")
    page = ada.page
    ada.go("Patient")
    page.get_by_label("Patient number or name").press_sequentially("onerror P-30")
    page.get_by_role("button", name="P-301").click()
    studies = page.locator(".study")
    expect(studies).to_have_count(2)
    assert "Normal" in studies.nth(0).inner_text()
    assert "Corrected to Pneumonia" in studies.nth(1).inner_text()
    ada.sees(HOSTILE)
    assert not ada.usable()
    for study in studies.all():
        study.get_by_label("Compare").check()
    page.get_by_role("button", name="Compare two images").click()
    expect(page.locator(".compared canvas.viewer-canvas")).to_have_count(2)
    assert not ada.usable()
    studies.nth(0).get_by_role("button", name="Open").click()
    page.locator(".reading").wait_for()
    ada.sees(HOSTILE)


def test_a_name_that_is_a_script_does_nothing_on_any_screen(visit, clinic, slices):
    ada = visit("ada")
    ada.new_patient("P-302", HOSTILE)
    file = slices["Normal"].with_name("<b>bold<b>.dcm")
    file.write_bytes(slices["Normal"].read_bytes())
    ada.upload(file)
    ada.sees(HOSTILE)
    ada.go("Worklist")
    expect(ada.page.locator("tbody tr", has_text="P-302")).to_contain_text(HOSTILE)
    eve = visit("eve")
    eve.go("Patients")
    expect(eve.page.locator("tbody tr", has_text="P-302")).to_contain_text(HOSTILE)
    eve.page.locator("tbody tr", has_text="P-302").click()
    eve.page.get_by_role("button", name="Show images and readings").click()
    expect(eve.page.locator(".patient-name")).to_have_text(HOSTILE)
    for visitor in (ada, eve):  # `visit` looks for dialogs and requests, too
        assert visitor.page.locator("img[src=x]").count() == 0


# --- the administrator's side


def test_every_screen_of_the_administrator_opens(visit, clinic, earlier):
    eve = visit("eve")
    expected = {
        "People": "Second Doctor",
        "Patients": "Demo Patient Three Hundred",
        "Usage": "Readings",
        "Models": "ct-infection",
        "Trials": "No version reads in the shadow",
        "Drift": "No night has been looked at yet",
        "Programs": "Make a key",
        "Routing": "Systems that may send",
        "Queue": "Received in the last day",
        "Audit trail": "Case saved",
        "Health": "SQLite",
        "Settings": "No upload is read blind",
    }
    assert [entry.strip() for entry in eve.page.locator(".nav-entry").all_inner_texts()] == list(expected)
    for screen, words in expected.items():
        eve.go(screen)
        eve.sees(words)
        assert eve.page.locator(".notice.problem").all_inner_texts() == []
        assert not eve.usable(), screen
    assert "New case" not in eve.visible_text()


def test_an_administrator_adds_a_person_and_changes_of_that_account_count_from_the_next_click(visit, clinic):
    eve = visit("eve")
    eve.page.get_by_role("textbox", name="User name").fill("fred")
    eve.page.get_by_role("textbox", name="Full name").fill("Second Admin")
    eve.page.get_by_label("Role", exact=True).select_option(label="admin")
    eve.page.get_by_role("button", name="Add person").click()
    clinic.passwords["fred"] = eve.page.locator(".password code").inner_text()
    fred = visit("fred", ends=True)
    fred.sees("Second Admin, administrator")

    with clinic.store.write() as db:
        accounts.set_role(db, "fred", "doctor")
    fred.page.get_by_role("textbox", name="User name").fill("mallory")
    fred.page.get_by_role("textbox", name="Full name").fill("Nobody")
    fred.page.get_by_role("button", name="Add person").click()
    fred.page.get_by_text("This needs the role admin").wait_for()
    with clinic.store.read() as db:
        assert "mallory" not in [user.name for user in accounts.list_users(db)]

    eve.page.locator("tbody tr", has_text="fred").click()
    eve.page.get_by_role("button", name="Disable account …").click()
    eve.page.get_by_role("button", name="Disable account", exact=True).click()
    expect(eve.page.locator("tbody tr", has_text="fred")).to_contain_text("disabled")
    fred.page.locator(".nav-entry", has_text="Usage").click()
    fred.page.get_by_role("heading", name="You are signed out").wait_for()


def test_a_version_that_is_promoted_reads_the_next_image_without_a_restart(visit, clinic, slices, monkeypatch):
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(clinic.artifacts))
    second = copy_of_active("ct-infection")
    ada, eve = visit("ada"), visit("eve")
    ada.new_patient("P-400", "Demo Patient Four Hundred")
    ada.upload(slices["Normal"])

    eve.go("Models")
    eve.page.locator("tbody tr", has_text=second).click()
    eve.page.get_by_role("button", name="Use this version …").click()
    eve.page.get_by_role("button", name="Use this version", exact=True).click()
    eve.page.get_by_text(f"ct-infection@{second} is in use now").wait_for()
    ada.page.get_by_role("button", name="More images of this patient").click()
    ada.upload(slices["Pneumonia"])

    eve.page.locator("tbody tr", has_text=second).click()
    eve.page.get_by_role("button", name="Roll back ct-infection …").click()
    eve.page.get_by_role("button", name="Roll back", exact=True).click()
    eve.page.get_by_text("ct-infection@v2 is in use now").wait_for()
    ada.upload(slices["COVID-19"])
    assert [row.version for row in readings(clinic, "P-400")] == ["v2", second, "v2"]


def copy_of_active(model: str) -> str:
    """Register the active version again, not promoted; returns the copy's number."""
    old = registry.active(model)

    def write(folder: Path) -> None:
        for name in old.card.files:
            shutil.copyfile(old.folder / name, folder / name)

    return registry.add(model, old.card, write, promote=False).version


# --- what is not allowed


class Forger:
    """A program that speaks to a page's kernel with the cookie of the person who opened it."""

    def __init__(self, visitor):
        config_data = json.loads(visitor.page.locator("#jupyter-config-data").text_content())
        self.kernel_id = config_data["kernelId"]
        address = visitor.clinic.url.replace("http", "ws") + f"api/kernels/{self.kernel_id}/channels"
        cookie = {"Cookie": f"{accounts.COOKIE}={visitor.cookie()}"}
        self._way = connect(address, additional_headers=cookie, subprotocols=["v1.kernel.websocket.jupyter.org"])

    def __enter__(self) -> "Forger":
        self.socket = self._way.__enter__()
        return self

    def __exit__(self, *how) -> None:
        self._way.__exit__(*how)

    def send(self, kind: str, content: dict, *buffers: bytes) -> None:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "username": "", "session": "forger", "version": "5.3",
                  "date": "2026-01-01T00:00:00Z"}  # fmt: skip
        parts = [b"shell", *(json.dumps(part).encode() for part in (header, {}, {}, content)), *buffers]
        ends = np.cumsum([8 * (len(parts) + 2), *map(len, parts)])
        self.socket.send(struct.pack(f"<{len(ends) + 1}Q", len(ends), *ends) + b"".join(parts))

    def hear(self, enough: Callable[[list[dict]], bool], seconds: float = 20) -> list[dict]:
        """What the kernel says until that is enough, or for so long: {"type", "content"}."""
        heard, end = [], time.monotonic() + seconds
        while not enough(heard):
            try:
                message = self.socket.recv(timeout=max(0, end - time.monotonic()))
            except TimeoutError:
                break
            count = struct.unpack_from("<Q", message)[0]
            parts = [message[a:b] for a, b in pairwise(struct.unpack_from(f"<{count}Q", message, 8))]
            heard.append({"type": json.loads(parts[1])["msg_type"], "content": json.loads(parts[4])})
        return heard

    def widgets(self) -> dict[str, dict]:
        """Every widget there is in the kernel, shown or not: identifier to state. What was sent before was heard."""
        self.send("comm_info_request", {"target_name": "jupyter.widget"})
        replies = self.hear(lambda heard: any(message["type"] == "comm_info_reply" for message in heard))
        wanted = next(message["content"]["comms"] for message in replies if message["type"] == "comm_info_reply")
        for comm in wanted:
            self.tell(comm, {"method": "request_state"})
        states = {}

        def all_there(heard: list[dict]) -> bool:
            if heard and heard[-1]["type"] == "comm_msg" and "state" in heard[-1]["content"]["data"]:
                states[heard[-1]["content"]["comm_id"]] = heard[-1]["content"]["data"]["state"]
            return states.keys() >= wanted.keys()

        self.hear(all_there)
        return states

    def tell(self, comm: str, data: dict, *buffers: bytes) -> None:
        self.send("comm_msg", {"comm_id": comm, "data": data}, *buffers)


def test_the_kernel_of_a_colleague_does_not_answer(visit, clinic):
    ada, ben = visit("ada"), visit("ben")
    ben.page, page = ada.page, ben.page  # ben's cookie, ada's kernel
    with pytest.raises(InvalidStatus, match="403"), Forger(ben):
        pass
    assert ben.send_file(b"for ada") == 403
    ben.page = page
    with Forger(ben) as forger:
        assert forger.widgets()


def test_a_doctor_gets_no_further_with_forged_messages(visit, clinic, tmp_path, slices):
    with clinic.store.write() as db:
        clinic.passwords["ida"] = accounts.add_user(db, "ida", "Third Doctor", "doctor")
    ida = visit("ida", ends=True)
    entries = ida.page.locator(".nav-entry").all_inner_texts()
    assert [entry.strip() for entry in entries] == ["New case", "Worklist", "Patient", "Second opinions"]
    before = everything(clinic)
    with Forger(ida) as forger:
        # No code runs.
        code = f"open({str(tmp_path / 'pwned')!r}, 'w')"
        forger.send("execute_request", {"code": code, "silent": False, "store_history": False, "user_expressions": {},
                                        "allow_stdin": False, "stop_on_error": True})  # fmt: skip
        forger.send("complete_request", {"code": code, "cursor_pos": 4})
        heard = forger.hear(lambda heard: False, seconds=1)
        assert not {"execute_reply", "execute_result", "error", "complete_reply"} & {
            message["type"] for message in heard
        }

        # An image although no patient is chosen; every button pressed, hidden ones too; values that no list offers.
        widgets = forger.widgets()
        assert len(widgets) > 20
        upload = next(comm for comm, state in widgets.items() if "limit" in state and "hint" in state)
        forger.tell(upload, {"method": "update", "state": {"disabled": False, "limit": 2**40}, "buffer_paths": []})
        content = slices["Normal"].read_bytes()
        assert ida.send_file(content) == 204
        forger.tell(upload, {"method": "custom", "content": {"name": "x.dcm", "number": 1, "of": 1}}, content)
        for comm, state in widgets.items():
            match state["_model_name"]:
                case "ButtonModel":
                    forger.tell(comm, {"method": "custom", "content": {"event": "click"}})
                case "DropdownModel":
                    forger.tell(comm, {"method": "update", "state": {"index": 99}, "buffer_paths": []})
                case "HTMLModel":
                    forger.tell(comm, {"method": "update", "state": {"value": "forged"}, "buffer_paths": []})
        buttons = {state.get("description") for state in forger.widgets().values()}
        assert not (tmp_path / "pwned").exists()
        assert everything(clinic) == before
        assert not buttons & {"Add person", "Reset password …", "Use this version …", "Erase patient …"}


def everything(clinic) -> dict[str, int]:
    """How many rows there are of what people make."""
    with clinic.store.read() as db:
        return {
            table.__tablename__: db.scalar(sa.select(sa.func.count()).select_from(table))
            for table in (User, Patient, Study, Reading, Review)
        }


# --- sessions that end; the pages end with them


def test_after_signing_out_the_back_button_shows_no_record(visit, clinic, slices):
    ada = visit("ada", ends=True)
    token = ada.cookie()
    ada.new_patient("OUT-1", "Demo Patient Out")
    ada.upload(slices["Normal"])
    ada.sees("Demo Patient Out")
    ada.page.get_by_role("button", name="Sign out").click()
    ada.page.get_by_label("User name").wait_for()
    ada.page.go_back()
    ada.page.get_by_label("User name").wait_for()
    assert "Demo Patient Out" not in ada.page.content()
    with pytest.raises(accounts.SignedOut):
        accounts.whoami(clinic.store, token)


def test_a_session_ended_in_mid_work_is_refused_at_the_next_click(visit, clinic, slices):
    ben = visit("ben", ends=True)
    ben.new_patient("END-1", "Demo Patient End")
    ben.upload(slices["Normal"])
    ben.page.get_by_role("button", name="Agree: Normal").wait_for()
    ben.page.route("**/clinic/there/*", lambda _: None)  # the page asks by itself too, and could be first
    accounts.sign_out(clinic.store, ben.cookie())
    ben.page.get_by_role("button", name="Agree: Normal").click()
    ben.page.get_by_role("heading", name="You are signed out").wait_for()
    assert "Demo Patient End" not in ben.page.content()
    with clinic.store.read() as db:
        assert not db.scalars(sa.select(Review).join(Reading).join(Study).join(Patient).filter_by(number="END-1")).all()
    ben.page.get_by_role("link", name="Sign in").click()
    ben.page.get_by_label("User name").wait_for()
