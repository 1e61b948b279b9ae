"""Readers, cases that they review, and two versions that read a phantom's images."""

import hashlib
import shutil
from datetime import timedelta
from itertools import count

import numpy as np
import pytest

from lungkit import files
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.clinic.records import pixels, settings
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.corrections import SAME_IMAGE
from lungkit.clinic.records.patients import NewPatient
from lungkit.clinic.records.tables import (
    CLASS,
    NOT_ASSESSABLE,
    OTHER_FINDING,
    REVIEW_KINDS,
    Patient,
    Reading,
    Review,
    Study,
    User,
    now,
)
from lungkit.data import images, phantom
from lungkit.models import registry
from tests import trials


@pytest.fixture
def readers(signed_in) -> list[Records]:
    """Three doctors; the first one saves the cases."""
    return [Records(signed_in("doctor", name)) for name in ("anna", "bert", "cleo")]


@pytest.fixture
def reviewed(store, readers, chest_image, prediction):
    """A function: the id of a new reading with the labels of the first readers, one after the other.

    shown: False: it is chosen to be read blind, unless its file was there before.
    """
    numbers = count(1)

    def make(*labels, patient=None, shown=True, seed=None, sha256=None, units="intensity", **changes) -> str:
        number = next(numbers)
        seed = number if seed is None else seed
        image = chest_image(units, "CT" if units == "HU" else "DX", seed=seed)
        answer = prediction(**changes)
        digest = sha256 or hashlib.sha256(f"{seed} {units}".encode()).hexdigest()
        whose = patient or NewPatient(f"NUMBER-{number}", f"Name {number}")
        with store.write() as db:
            settings.put(db, settings.BLIND_SHARE, 0.0 if shown else 1.0)
        reading_id = readers[0].save_case(whose, image, digest, answer, confirmed=[SAME_IMAGE]).reading_id
        for reader, label in zip(readers, labels, strict=False):
            if label:
                say(reader, reading_id, label)
        return reading_id

    return make


def say(reader: Records, reading_id: str, said: str) -> None:
    """A review that gives a class, or one of another of tables.REVIEW_KINDS."""
    if said in REVIEW_KINDS:
        reader.review(reading_id, "", kind=said, finding="x" if said == OTHER_FINDING else "")
    else:
        reader.review(reading_id, said)


@pytest.fixture
def filled(store):
    """A function: readings of 30 days, four a day, where the last five days can be others, or as many
    readings as `late` says.

    skip: days without any since then.
    """

    def fill(model="lung", uploader="anna", role="doctor", days=30, skip=0, **recent) -> None:
        rng = np.random.default_rng(len(model))
        with store.write() as db:
            user = User(name=uploader, full_name="x", role=role, password_hash="-")
            db.add(user)
            db.flush()
            patients = [
                Patient(number=f"NUMBER-{uploader}-{model}-{n}", name="Some Name", created_by=user.id) for n in range(6)
            ]
            for number in range(4 * days):
                ago, late = number // 4, number < recent.get("late", 20)
                brighter = recent.get("brighter", 0) if late else 0
                picture = np.clip(rng.normal(0.4 + brighter, 0.1, (32, 40)), 0, 1).astype(np.float32)
                image = images.Image(picture, "intensity", "DX", "x", {})
                study = Study(
                    patient=patients[number % 6], kind="X-ray", units="intensity", sha256=f"{number:064x}", width=40,
                    height=32, tags={"view": "PA", "manufacturer": "ACME", "device": "Ray 1"}, uploaded_by=user.id,
                    pixels=pixels.encode(image), uploaded_at=now(),
                )  # fmt: skip
                left = rng.random() < (recent.get("left", 0.1) if late else 0.1)
                label = str(rng.choice(["Normal", "Pneumonia"]))
                reading = Reading(
                    study=study, model=model, version="v2", probabilities={label: 0.9}, label=label,
                    decision=REVIEW if left else label, point={}, checks=[_check(rng)], milliseconds=1.0, heat=b"",
                    read_at=now() - timedelta(days=ago + skip),
                )  # fmt: skip
                agrees = bool(rng.random() < (recent.get("agree", 0.9) if late else 0.9))
                poor = rng.random() < recent.get("poor", 0) if late else False
                kind, agrees = (NOT_ASSESSABLE, None) if poor else (CLASS, agrees)
                reading.reviews.append(
                    Review(reviewer_id=user.id, kind=kind, agrees=agrees, label="" if poor else label)
                )
                db.add(reading)

    return fill


def _check(rng) -> dict:
    return {"name": "kind", "passed": True, "value": float(rng.normal(1, 0.1)), "limit": 2.0, "words": "x"}


@pytest.fixture
def versions(trained, tmp_path, monkeypatch) -> list[registry.Version]:
    """tiny-cnn@v1, in use, and v2, which is the same once more."""
    shutil.copytree(trained, tmp_path / "artifacts")
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("LUNGKIT_DATA", str(tmp_path / "data"))
    return [registry.active("tiny-cnn"), trials.once_more()]


@pytest.fixture
def ward(store, versions, readers, tmp_path):
    """A function: phantom patients, an image each, read and reviewed, or blind, without the answer; their readings."""
    predictor = Predictor(versions[0])

    def make(cases: int, blind: bool, seed: int) -> list[str]:
        made = []
        with store.write() as db:
            settings.put(db, settings.BLIND_SHARE, float(blind))
        for number in range(cases):
            truth = predictor.classes[number % len(predictor.classes)]
            (cut,) = phantom.make_patient(f"p{seed}-{number}", truth, seed=1000 * seed + number, slices=1, size=96)
            path = tmp_path / "one.dcm"
            phantom.write_dicom(cut, path, compressed=False, original=True)
            image = images.read(path)
            answer = predictor.read(image)
            patient = NewPatient(f"{seed}-{number}", f"Name {seed} {number}")
            saved = readers[0].save_case(patient, image, files.sha256(path), answer)
            readers[1].review(saved.reading_id, truth)
            made.append(saved.reading_id)
        return made

    return make
