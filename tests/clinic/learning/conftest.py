"""Readers, and cases that they review."""

import hashlib
from itertools import count

import pytest

from lungkit.clinic.records import settings
from lungkit.clinic.records.cases import NewPatient, Records


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
        reading_id = readers[0].save_case(whose, image, digest, answer).reading_id
        for reader, label in zip(readers, labels, strict=False):
            if label:
                reader.review(reading_id, None, label)
        return reading_id

    return make
