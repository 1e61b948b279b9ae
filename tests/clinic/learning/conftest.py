"""Readers, cases that they review, and two versions that read a phantom's images."""

import hashlib
import shutil
from itertools import count

import pytest

from lungkit import files
from lungkit.clinic.predictor import Predictor
from lungkit.clinic.records.cases import NewPatient, Records
from lungkit.data import images, phantom
from lungkit.models import registry
from tests import trials


@pytest.fixture
def readers(signed_in) -> list[Records]:
    """Three doctors; the first one saves the cases."""
    return [Records(signed_in("doctor", name)) for name in ("anna", "bert", "cleo")]


@pytest.fixture
def reviewed(readers, chest_image, prediction):
    """A function: the id of a new reading with the labels of the first readers, one after the other."""
    numbers = count(1)

    def make(*labels, patient=None, shown=True, seed=None, sha256=None, units="intensity", **changes) -> str:
        number = next(numbers)
        seed = number if seed is None else seed
        image = chest_image(units, "CT" if units == "HU" else "DX", seed=seed)
        answer = prediction(**changes)
        digest = sha256 or hashlib.sha256(f"{seed} {units}".encode()).hexdigest()
        whose = patient or NewPatient(f"NUMBER-{number}", f"Name {number}")
        reading_id = readers[0].save_case(whose, image, digest, answer).reading_id
        for reader, label in zip(readers, labels, strict=False):
            if label:
                reader.review(reading_id, label == answer.label, label, answer_shown=shown)
        return reading_id

    return make


@pytest.fixture
def versions(trained, tmp_path, monkeypatch) -> list[registry.Version]:
    """tiny-cnn@v1, in use, and v2, which is the same once more."""
    shutil.copytree(trained, tmp_path / "artifacts")
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("LUNGKIT_DATA", str(tmp_path / "data"))
    return [registry.active("tiny-cnn"), trials.once_more()]


@pytest.fixture
def ward(versions, readers, tmp_path):
    """A function: phantom patients, an image each, read and reviewed, or blind, without the answer; their readings."""
    predictor = Predictor(versions[0])

    def make(cases: int, blind: bool, seed: int) -> list[str]:
        made = []
        for number in range(cases):
            truth = predictor.classes[number % len(predictor.classes)]
            (cut,) = phantom.make_patient(f"p{seed}-{number}", truth, seed=1000 * seed + number, slices=1, size=96)
            path = tmp_path / "one.dcm"
            phantom.write_dicom(cut, path, compressed=False, original=True)
            image = images.read(path)
            answer = predictor.read(image)
            patient = NewPatient(f"{seed}-{number}", f"Name {seed} {number}")
            saved = readers[0].save_case(patient, image, files.sha256(path), answer)
            readers[1].review(saved.reading_id, truth == answer.label, truth, answer_shown=not blind)
            made.append(saved.reading_id)
        return made

    return make
