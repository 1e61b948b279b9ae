"""A made-up clinic has records like any other, and touches no others."""

import json
import os
from collections import Counter

import numpy as np
import pandas as pd
import sqlalchemy as sa

from lungkit import config
from lungkit.clinic.learning import made_up
from lungkit.clinic.records.tables import Reading, Review, Study, now
from lungkit.data import dataset
from lungkit.data.phantom import scanners


class Guessing:
    """Reads as the tests' predictions are."""

    def __init__(self, prediction):
        self.answer = prediction("Normal", classes=("Normal", "COVID-19"), probabilities=np.array([0.6, 0.4]))

    def read(self, image):
        return self.answer


def test_the_days_end_today_and_the_reader_labels_as_asked(tmp_path, prediction):
    clinic = made_up.opened(tmp_path)
    phases = [made_up.Phase(3, scanners.A, 1.0), made_up.Phase(2, scanners.CHANGED, 0.0)]
    made_up.live(clinic, Guessing(prediction), phases, made_up.Reader(blind=0.5, wrong=0.0), 4, 64)
    with clinic.store.read() as db:
        rows = db.execute(sa.select(Reading.id, Reading.read_at, Study.uploaded_at).join(Study)).all()
        reviews = db.execute(sa.select(Review.reading_id, Review.at, Review.label, Review.answer_shown)).all()
    days = Counter((now().date() - row.read_at.date()).days for row in rows)
    assert sum(days.values()) == 20
    assert set(days) <= set(range(6))
    assert all(row.read_at == row.uploaded_at <= now() for row in rows)
    of = {row.id: row for row in rows}
    assert len(reviews) == 12, "only those of the first scanner"
    assert Counter(review.label for review in reviews) == {"Normal": 6, "COVID-19": 6}
    assert {review.answer_shown for review in reviews} == {True, False}
    assert all(review.at > of[review.reading_id].read_at for review in reviews)
    clinic.store.close()


def test_the_first_images_are_a_data_set_that_says_it_is_drawn(tmp_path):
    folder = made_up.home_set(tmp_path / "home", 6, 64)
    data = dataset.load(folder)
    assert data.synthetic
    assert data.manifest["label"].value_counts().to_dict() == {"Normal": 3, "COVID-19": 3}
    assert data.manifest["patient_id"].nunique() == 6
    assert json.loads((folder / "dataset.json").read_text())["classes"] == ["Normal", "COVID-19"]
    assert pd.read_csv(folder / "labels.csv")["source"].unique().tolist() == ["home"]


def test_a_scanner_shows_the_same_patient_otherwise():
    shown = made_up.one_patient({"a": scanners.A, "b": scanners.CHANGED}, 64)
    again = made_up.one_patient({"a": scanners.A}, 64)
    np.testing.assert_array_equal(shown["a"], again["a"])
    assert np.abs(shown["a"] - shown["b"]).mean() > 0.05


def test_a_made_up_clinic_keeps_to_its_folder(tmp_path, monkeypatch):
    for name in ("LUNGKIT_ARTIFACTS", "LUNGKIT_DATA", "LUNGKIT_REPORTS"):
        monkeypatch.setenv(name, os.environ[name])  # put back at the end
    made_up.apart(tmp_path / "apart")
    assert config.artifacts_dir() == tmp_path / "apart" / "artifacts"
    assert config.data_dir() == tmp_path / "apart" / "data"
    assert config.reports_dir() == tmp_path / "apart" / "reports"
