"""Readings in the records as if they had come as DICOM, for tests of what is sent."""

import uuid
from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa

from lungkit import files
from lungkit.clinic.records import accounts, jobs, received, routing
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.jobs import JobAccess, SourceHeaders
from lungkit.clinic.records.received import Arrival
from lungkit.clinic.records.routing import Rule
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import ReceivedFile, ReceivedStudy, Review
from lungkit.data import images
from lungkit.gateway import objects
from lungkit.models.prediction import Prediction

NAME, NUMBER = "Anna Invented", "T-1"


class Readings:
    """Records with a scanner, a rule that reads its images, and the destinations that get the results."""

    def __init__(self, store: Store):
        self.store, self._destinations = store, []
        with store.write() as db:
            caller = routing.add_caller(db, "SCANNER1")
            self._sender = routing.admitted(db, caller.ae_title, "127.0.0.1")[0]
            self._route = routing.add_route(db, Rule(name="all", model="lung")).id
            self._switch_on(db)

    def destination(self, name: str, kind: str, address: dict, objects: Sequence[str] = ()) -> int:
        """Enter a system that gets the results from now on."""
        with self.store.write() as db:
            self._destinations.append(routing.add_destination(db, name, kind, address, objects).id)
            rule = Rule(name="all", model="lung", destinations=tuple(self._destinations))
            routing.change_route(db, self._route, rule)
            self._switch_on(db)
        return self._destinations[-1]

    def _switch_on(self, db) -> None:
        routing.note_trial(db, self._route)
        routing.set_route(db, self._route, True)

    def save(self, sent: Sequence[bytes], answer: Prediction) -> str:
        """A study that comes and is read; sent later with more slices it is read again. The id of the reading."""
        headers = [objects.source_header(file) for file in sent]
        study, series = str(headers[0].StudyInstanceUID), str(headers[0].SeriesInstanceUID)
        with self.store.write() as db:  # what came before was long ago
            for row in db.scalars(sa.select(ReceivedFile)):
                row.arrived_at -= timedelta(hours=1)
            for row in db.scalars(sa.select(ReceivedStudy)):
                row.closed_at = row.closed_at and row.closed_at - timedelta(minutes=1)
        for file, header in zip(sent, headers, strict=True):
            patient = {"name": NAME, "birth_year": 1970, "sex": "female"}
            arrival = Arrival(
                id=str(uuid.uuid4()), study_uid=study, series_uid=series, instance_uid=str(header.SOPInstanceUID),
                patient_number=NUMBER, patient=patient, modality="CT", body_part="CHEST", descriptions=(),
                set_aside="", sha256=files.sha256(file), bytes=len(file),
            )  # fmt: skip
            received.arrive(self.store, self._sender, "SCANNER1", arrival)
        made = [job for one in received.complete(self.store, timedelta())
                for job, _ in received.close(self.store, one, timedelta())]  # fmt: skip
        claimed = jobs.claim(self.store, made[-1])
        access = JobAccess(self.store, claimed, SourceHeaders(study, series, objects.packed(headers)))
        image, digest = images.read(sent[0], "the image"), files.sha256(sent[0])
        Records(access).save_case(claimed.patient, image, digest, answer, reading_id=claimed.id)
        return claimed.id

    def doctor(self, name: str = "weber") -> Records:
        """The records as a new doctor sees them."""
        with self.store.write() as db:
            password = accounts.add_user(db, name, f"Dr {name.title()}", "doctor")
        return Records(accounts.Access(self.store, accounts.sign_in(self.store, name, password, "192.0.2.1")))

    def review_ids(self, reading_id: str) -> list[str]:
        """The reviews of a reading, oldest first."""
        with self.store.read() as db:
            return list(db.scalars(sa.select(Review.id).where(Review.reading_id == reading_id).order_by(Review.at)))
