"""Studies that come file by file: complete after a quiet time, read once, and superseded by what comes late."""

import uuid
from datetime import timedelta

import pytest
import sqlalchemy as sa

from lungkit.clinic.records import dispatches, jobs, keys, received, routing
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.jobs import JobAccess, SourceHeaders
from lungkit.clinic.records.received import Arrival, ArrivalRefused
from lungkit.clinic.records.routing import Rule
from lungkit.clinic.records.tables import Dispatch, Job, ReadingSource, ReceivedFile, ReceivedStudy, Review
from tests.clinic.rows import count, everything

QUIET = timedelta(seconds=30)
SHA = "ab" * 32


@pytest.fixture
def sender(store) -> int:
    """The account of a scanner that may send; a rule reads its CT and its DX, and a PACS gets the results."""
    with store.write() as db:
        caller = routing.add_caller(db, "SCANNER1")
        pacs = routing.add_destination(db, "PACS", "dicom", {"host": "h", "port": 104, "ae_title": "PACS"})
        for modality in ("CT", "DX"):
            row = routing.add_route(db, Rule(name=modality, model="lung", modality=modality, destinations=(pacs.id,)))
            routing.note_trial(db, row.id)
            routing.set_route(db, row.id, True)
        return routing.admitted(db, caller.ae_title, "127.0.0.1")[0]


@pytest.fixture
def doctor(signed_in):
    return signed_in("doctor")


@pytest.fixture
def send(store, sender, tmp_path, monkeypatch):
    """A function: a file that arrives; returns what `arrive` does."""
    monkeypatch.setenv("LUNGKIT_INBOX", str(tmp_path / "inbox"))

    def arrive(instance: str = "1.1", **more) -> str:
        file = {
            "id": str(uuid.uuid4()), "study_uid": "1.2", "series_uid": "1.2.3", "instance_uid": instance,
            "patient_number": "T-1", "patient": {"name": "Anna Invented", "birth_year": 1970, "sex": "female"},
            "modality": "CT", "body_part": "CHEST", "descriptions": ("Thorax",), "set_aside": "",
            "sha256": f"{hash(instance) & 0xFF:02x}" * 32, "bytes": 1000,
        }  # fmt: skip
        arrival = Arrival(**file | more)
        received.inbox(arrival.id).parent.mkdir(parents=True, exist_ok=True)
        received.inbox(arrival.id).write_bytes(b"pixels")
        return received.arrive(store, sender, "SCANNER1", arrival)

    return arrive


@pytest.fixture
def close(store):
    """A function: time passes, and the study is closed; the ids of its new jobs."""

    def closed() -> list[str]:
        _later(store, QUIET)
        return [job for study in received.complete(store, QUIET) for job, _ in received.close(store, study, QUIET)]

    return closed


@pytest.fixture
def read(store, chest_image, prediction):
    """A function: a worker reads a job."""

    def save(job_id: str) -> None:
        claimed = jobs.claim(store, job_id)
        assert claimed
        records = Records(JobAccess(store, claimed, SourceHeaders("1.2", "1.2.3", b"packed")))
        records.save_case(claimed.patient, chest_image(), SHA, prediction(), reading_id=claimed.id)

    return save


def _later(store, by: timedelta) -> None:
    with store.write() as db:
        for study in db.scalars(sa.select(ReceivedStudy)):
            study.last_at -= by
            study.closed_at = study.closed_at and study.closed_at - by
        for file in db.scalars(sa.select(ReceivedFile)):
            file.arrived_at -= by


def _outcome(store) -> str:
    with store.read() as db:
        return received.latest(db)[0].outcome


def test_a_study_is_complete_a_quiet_time_after_its_last_file(store, send):
    send("1.1")
    _later(store, QUIET / 2)
    send("1.2", series_uid="9")
    assert received.complete(store, QUIET) == []
    _later(store, QUIET)
    assert len(received.complete(store, QUIET)) == 1


def test_slices_of_a_series_become_one_job_and_xrays_one_each(store, send, close):
    for number in range(3):
        send(f"1.{number}")
        send(f"2.{number}", series_uid="1.2.4", modality="DX")
    made = close()
    with store.read() as db:
        pairs = sorted((job.series_uid, job.instance_uid or "") for job in db.scalars(sa.select(Job)))
    assert pairs == [("1.2.3", ""), ("1.2.4", "2.0"), ("1.2.4", "2.1"), ("1.2.4", "2.2")]
    assert [len(jobs.claim(store, job).files) for job in made] == [3, 1, 1, 1]


def test_two_gateways_that_close_a_study_make_its_jobs_once(store, send):
    send()
    _later(store, QUIET)
    (study,) = received.complete(store, QUIET)
    assert [len(received.close(store, study, QUIET)) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"modality": "MR"}, "no rule fits a series (MR CHEST)"),
        ({"set_aside": "localizer"}, "a series (CT CHEST) is set aside: localizer"),
        ({"patient_number": ""}, "a series (CT CHEST) is not read: its files have no PatientID"),
    ],
)
def test_what_is_not_read_is_said(store, send, close, file, words):
    send(**file)
    assert close() == []
    assert _outcome(store) == words


def test_a_file_that_was_there_already_is_not_kept_twice_and_does_not_open_the_study(store, send, close):
    send()
    close()
    again = str(uuid.uuid4())
    assert send(id=again) == again
    assert received.complete(store, timedelta()) == []
    assert count(store, ReceivedFile) == 1


def test_a_study_that_no_rule_read_is_read_when_it_is_sent_again_under_a_new_rule(store, send, close):
    first = str(uuid.uuid4())
    send(id=first, modality="MR")
    assert close() == []
    with store.write() as db:
        row = routing.add_route(db, Rule(name="MR", model="lung", modality="MR"))
        routing.note_trial(db, row.id)
        routing.set_route(db, row.id, True)
    assert send(modality="MR") == first  # which the caller deletes
    assert len(close()) == 1


def test_a_file_that_is_gone_from_the_inbox_is_taken_again(store, send, close, read):
    first = str(uuid.uuid4())
    send(id=first)
    read(*close())
    received.inbox(first).unlink()
    assert send() == first


def test_no_clock_decides_which_files_are_new(store, send, close):
    send("1.1", modality="DX")
    close()
    with store.write() as db:  # as if another gateway's clock were an hour ahead
        db.scalar(sa.select(ReceivedStudy)).closed_at += timedelta(hours=1)
    send("1.2", modality="DX")
    (job,) = close()
    with store.read() as db:
        assert db.get(Job, job).instance_uid == "1.2"


def test_a_series_supersedes_the_reading_of_its_first_slice(store, send, close, read):
    send("1.1")
    (first,) = close()
    read(first)
    send("1.2")
    (second,) = close()
    claimed = jobs.claim(store, second)
    assert (len(claimed.files), claimed.supersedes) == (2, first)


def test_what_came_with_an_api_key_is_not_read_once_the_key_is_revoked(store, send, sender):
    with store.write() as db:
        key = keys.add_key(db, "archive", ["predict"]).split("_")[1]
    send("1.1")
    with store.write() as db:
        study = db.scalar(sa.select(ReceivedStudy))
        study.key_id, study.caller = key, ""
    _later(store, QUIET)
    (study,) = received.complete(store, QUIET)
    ((job, _),) = received.close(store, study, QUIET)
    with store.write() as db:
        keys.revoke_key(db, key)
    assert jobs.claim(store, job) is None
    with store.read() as db:
        assert db.get(Job, job).reason == "its API key was revoked"


def test_another_file_with_the_same_uid_takes_its_place(store, send):
    first = str(uuid.uuid4())
    send(id=first)
    assert send(sha256="cd" * 32) == first
    assert count(store, ReceivedFile) == 1


def test_a_file_of_another_patient_does_not_get_into_the_study(store, send):
    send()
    with pytest.raises(ArrivalRefused, match="another PatientID"):
        send("1.2", patient_number="T-2")
    assert count(store, ReceivedFile) == 1


@pytest.mark.parametrize("what", ["study_uid", "series_uid", "instance_uid"])
def test_a_file_without_a_uid_is_refused(send, what):
    for text in ("", "1" * 65):
        with pytest.raises(ArrivalRefused, match="UID of 1 to 64"):
            send(**{"instance": "1.1", what: text} if what != "instance_uid" else {"instance": text})


def test_late_slices_make_a_reading_that_supersedes_the_first(store, send, close, read):
    send("1.1")
    send("1.2")
    (first,) = close()
    read(first)
    send("1.3")
    (second,) = close()
    assert len(jobs.claim(store, second).files) == 3
    with store.write() as db:  # as if the claim had not been
        db.get(Job, second).state = "queued"
    read(second)
    with store.read() as db:
        assert db.get(ReadingSource, first).supersedes is None
        assert db.get(ReadingSource, second).supersedes == first


def test_late_slices_cancel_a_job_that_still_waits(store, send, close):
    send("1.1")
    send("1.2")
    (first,) = close()
    send("1.3")
    close()
    with store.read() as db:
        assert (db.get(Job, first).state, db.get(Job, first).reason) == ("cancelled", "more files of its study came")


def test_the_result_is_listed_for_its_destinations_and_so_is_a_review(store, send, close, read, doctor):
    send()
    (job,) = close()
    read(job)
    with store.read() as db:
        assert {(row.object, row.review_id) for row in dispatches.latest(db)} == {("report", ""), ("capture", "")}
    Records(doctor).review(job, Records(doctor).case(job).label)
    with store.read() as db:
        review = db.scalar(sa.select(Review.id))
        assert [row.object for row in dispatches.latest(db) if row.review_id == review] == ["report"]


def test_a_sender_that_may_send_no_more_has_its_jobs_cancelled(store, send, close):
    send()
    (job,) = close()
    with store.write() as db:
        routing.set_caller(db, routing.list_callers(db)[0].id, active=False)
    assert jobs.claim(store, job) is None
    with store.read() as db:
        assert db.get(Job, job).reason == "its sender may not send any more"


def test_a_study_is_kept_for_a_day_and_while_a_job_needs_it(store, send, close, read):
    send()
    (job,) = close()
    _later(store, received.KEPT)
    assert received.tidy(store) == []  # the job waits
    read(job)
    assert len(received.tidy(store)) == 1
    assert (count(store, ReceivedStudy), count(store, ReceivedFile)) == (0, 0)
    with store.read() as db:
        assert db.get(Job, job).state == "done"


def test_erasing_a_patient_erases_what_came_of_the_patient(store, send, close, read, signed_in):
    file = str(uuid.uuid4())
    send(id=file)
    read(*close())
    administration = Administration(signed_in("admin"))
    administration.erase_patient(administration.patients("T-1")[0].id)
    assert not received.inbox(file).exists()
    assert [count(store, table) for table in (ReceivedStudy, ReceivedFile, ReadingSource, Dispatch)] == [0, 0, 0, 0]
    assert "Anna" not in str(everything(store))


# --- sending


@pytest.fixture
def listed(store, send, close, read) -> str:
    """A reading that waits to be sent."""
    send()
    (job,) = close()
    read(job)
    return job


def test_a_result_is_claimed_by_one_sender_until_its_lease_ends(store, listed):
    first, second = dispatches.claim(store), dispatches.claim(store)
    assert {first.object, second.object} == {"report", "capture"}
    assert dispatches.claim(store) is None
    with store.write() as db:
        db.get(Dispatch, first.id).due_at -= dispatches.LEASE
    assert dispatches.claim(store).id == first.id
    with pytest.raises(dispatches.DispatchLost):
        dispatches.sent(store, first)


def test_a_failed_one_is_tried_again_later_and_given_up_at_the_end(store, listed):
    for turn in range(dispatches.MOST_TRIES):
        with store.write() as db:
            db.execute(sa.delete(Dispatch).where(Dispatch.object == "capture"))
            for row in db.scalars(sa.select(Dispatch)):
                row.due_at -= timedelta(days=2)
        claimed = dispatches.claim(store)
        assert claimed is not None, turn
        dispatches.fail(store, claimed, "the PACS did not answer")
    with store.write() as db:
        (row,) = dispatches.latest(db, "failed")
        assert (row.tries, row.reason) == (dispatches.MOST_TRIES, "the PACS did not answer")
        dispatches.again(db, row.id)
    assert dispatches.claim(store).id == row.id


def test_a_review_is_sent_after_the_reading_it_is_about(store, listed, doctor):
    Records(doctor).review(listed, Records(doctor).case(listed).label)
    objects = [dispatches.claim(store) for _ in range(3)]
    assert [one and one.review_id for one in objects] == ["", "", None]
    report = next(one for one in objects if one and one.object == "report")
    dispatches.sent(store, report)
    assert dispatches.claim(store).review_id


def test_nothing_is_sent_to_a_destination_that_is_switched_off(store, listed):
    with store.write() as db:
        routing.set_destination(db, routing.list_destinations(db)[0].id, active=False)
    assert dispatches.claim(store) is None
