"""Jobs: read into the records exactly once, whatever ends in the middle, and nothing kept that is not needed."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from lungkit.clinic.records import accounts, audit_trail, jobs, keys
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.jobs import JobAccess, JobInProgress, JobMissing, Jobs, LeaseLost, PayloadDiffers
from lungkit.clinic.records.keys import KeyAccess
from lungkit.clinic.records.patients import PatientDiffers, RecordMissing, RecordRefused, StatedPatient
from lungkit.clinic.records.tables import AuditEvent, Job, JobFile, Patient, Reading, Study
from tests.clinic.rows import count, events, everything

SHA = "ab" * 32
ANNA = StatedPatient("T-1", "Anna Invented", 1970, "female")


@pytest.fixture
def program(store):
    """A function: the jobs of a new key."""

    def make(name: str = "pacs", *scopes: str) -> Jobs:
        scopes = scopes or ("predict", "read")
        with store.write() as db:
            key = keys.add_key(db, name, list(scopes))
        return Jobs(KeyAccess(store, key, *scopes))

    return make


@pytest.fixture
def pacs(program) -> Jobs:
    return program()


@pytest.fixture
def submit(pacs):
    """A function: the id of a new job."""
    return lambda patient=ANNA, content=b"bytes", **more: pacs.submit(content, "lung", patient, **more)[0].id


@pytest.fixture
def finish(store, chest_image, prediction):
    """A function: save a reading for a claimed job, as a worker does."""

    def save(claimed) -> None:
        records = Records(JobAccess(store, claimed))
        records.save_case(claimed.patient, chest_image(), SHA, prediction(), reading_id=claimed.id)

    return save


def _later(store, by: timedelta) -> None:
    """As if that much time had passed for all jobs."""
    with store.write() as db:
        for job in db.scalars(sa.select(Job)):
            job.due_at -= by
            job.created_at -= by
            job.ended_at = job.ended_at and job.ended_at - by


def _state(store, job_id) -> str:
    with store.read() as db:
        return db.get(Job, job_id).state


# --- once


def test_a_job_that_is_done_is_a_case_of_its_program_and_its_file_is_gone(store, pacs, submit, finish):
    job_id = submit()
    claimed = jobs.claim(store, job_id)
    assert (claimed.content, claimed.model, claimed.patient) == (b"bytes", "lung", ANNA)
    assert claimed.birth_year == 1970
    finish(claimed)
    job = pacs.job(job_id)
    assert (job.state, job.tries, job.reason, job.ended) == ("done", 1, "", True)
    case = Records(pacs.access).case(job_id)
    assert (case.patient.name, case.uploaded_by) == ("Anna Invented", "pacs")
    assert count(store, JobFile) == 0
    saved = events(store, "case.save")
    assert [(event.object, event.detail["new_patient"]) for event in saved] == [(f"reading:{job_id}", True)]


def test_a_worker_saves_a_series_once_and_only_its_program_sees_it(
    store, pacs, submit, program, ct_series, series_said
):
    job_id = submit()
    claimed = jobs.claim(store, job_id)
    said = series_said(ct_series)
    records = Records(JobAccess(store, claimed))
    assert records.save_series(claimed.patient, ct_series, said, reading_id=claimed.id).reading_id == job_id
    assert (_state(store, job_id), count(store, JobFile)) == ("done", 0)
    with pytest.raises(LeaseLost):
        records.save_series(claimed.patient, ct_series, said, reading_id=claimed.id)
    assert count(store, Reading) == 1
    own, others = Records(pacs.access), Records(program("other").access)
    own.case(job_id)
    assert own.series(job_id).slices == 8 and own.series_slices(job_id, [0])[0].startswith(b"\x89PNG")
    for action in (others.case, others.series, lambda reading_id: others.series_slices(reading_id, [0])[0]):
        with pytest.raises(RecordMissing):
            action(job_id)


def test_of_many_workers_one_gets_the_job(store, submit):
    job_id = submit()
    with ThreadPoolExecutor(8) as threads:
        claimed = [one for one in threads.map(lambda _: jobs.claim(store, job_id), range(16)) if one]
    assert len(claimed) == 1


def test_a_worker_that_lost_its_lease_saves_nothing(store, submit, finish):
    job_id = submit()
    slow = jobs.claim(store, job_id)
    _later(store, jobs.LEASE)
    assert jobs.sweep(store) == [(job_id, "routine")]
    quick = jobs.claim(store, job_id)
    for late in (lambda: finish(slow), lambda: jobs.fail(store, slow, "late", final=True)):
        with pytest.raises(LeaseLost):
            late()
    assert [count(store, table) for table in (Patient, Study, Reading)] == [0, 0, 0]
    finish(quick)
    with pytest.raises(LeaseLost):
        finish(quick)
    assert [count(store, table) for table in (Patient, Study, Reading)] == [1, 1, 1]
    assert len(events(store, "case.save")) == 1


def test_reading_and_state_are_saved_together_or_not_at_all(store, submit, finish, monkeypatch):
    claimed = jobs.claim(store, submit())
    before = everything(store)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(jobs, "end", lambda *_: 1 / 0)
        finish(claimed)
    assert everything(store) == before
    finish(claimed)


def test_a_job_that_ends_its_worker_each_time_fails(store, submit):
    job_id = submit()
    for _ in range(jobs.MOST_TRIES):
        assert jobs.claim(store, job_id)
        _later(store, jobs.LEASE)
        jobs.sweep(store)
    assert jobs.claim(store, job_id) is None
    assert _state(store, job_id) == "failed"


def test_the_sweep_finds_jobs_that_were_never_queued_and_leaves_the_others(store, submit):
    old = submit(priority="urgent")
    _later(store, jobs.UNHEARD)
    new = submit()
    assert jobs.sweep(store) == [(old, "urgent")]
    assert jobs.sweep(store) == []
    assert {_state(store, job_id) for job_id in (old, new)} == {"queued"}


# --- not at once, or not at all


def test_an_error_is_tried_again_later_and_the_last_one_can_be_started_by_hand(store, program, submit, finish):
    admin, job_id = program("admins", "admin"), submit()
    for wait in jobs.BACK_OFF:
        jobs.fail(store, jobs.claim(store, job_id), "the model is damaged", final=False)
        assert (_state(store, job_id), jobs.sweep(store)) == ("queued", [])
        _later(store, wait)
        assert jobs.sweep(store) == [(job_id, "routine")]
    jobs.fail(store, jobs.claim(store, job_id), "the model is damaged", final=False)
    assert [(job.id, job.reason) for job in admin.latest("failed")] == [(job_id, "the model is damaged")]
    assert (admin.again(job_id).state, admin.job(job_id).tries) == ("queued", 0)
    finish(jobs.claim(store, job_id))
    assert admin.job(job_id).state == "done"
    with pytest.raises(JobInProgress, match="only a failed one"):
        admin.again(job_id)


def test_a_failed_jobs_file_is_deleted_after_a_week(store, pacs, submit):
    job_id = submit()
    for _ in range(jobs.MOST_TRIES):
        jobs.fail(store, jobs.claim(store, job_id), "the model is damaged", final=False)
    _later(store, jobs.KEPT - timedelta(minutes=1))
    jobs.sweep(store)
    assert count(store, JobFile) == 1
    _later(store, timedelta(minutes=2))
    jobs.sweep(store)
    assert count(store, JobFile) == 0
    with pytest.raises(JobInProgress, match="no longer kept; send the image again"):
        pacs.again(job_id)


def test_nothing_is_kept_of_an_image_that_the_reader_refused(store, pacs, submit):
    job_id = submit()
    jobs.fail(store, jobs.claim(store, job_id), "not an image", final=True)
    assert (pacs.job(job_id).state, pacs.job(job_id).reason) == ("failed", "not an image")
    assert count(store, JobFile) == 0


def test_a_cancelled_job_is_not_read_even_by_the_worker_that_has_begun(store, pacs, submit, finish):
    waiting, begun = submit(), submit()
    claimed = jobs.claim(store, begun)
    assert {pacs.cancel(waiting).state, pacs.cancel(begun).state, pacs.cancel(begun).state} == {"cancelled"}
    assert jobs.claim(store, waiting) is None
    with pytest.raises(LeaseLost):
        finish(claimed)
    assert [count(store, table) for table in (Patient, Reading, JobFile)] == [0, 0, 0]


def test_a_job_that_is_done_cannot_be_cancelled(store, pacs, submit, finish):
    job_id = submit()
    finish(jobs.claim(store, job_id))
    with pytest.raises(JobInProgress, match="the job is done"):
        pacs.cancel(job_id)


def test_a_revoked_keys_jobs_are_not_read(store, pacs, submit):
    job_id = submit()
    with store.write() as db:
        (row,) = keys.list_keys(db)
        keys.revoke_key(db, row.id)
    assert jobs.claim(store, job_id) is None
    assert (_state(store, job_id), count(store, JobFile)) == ("cancelled", 0)


# --- the same request again


def test_the_same_request_is_one_job_and_gives_the_same_answer(store, pacs, finish):
    first, new = pacs.submit(b"bytes", "lung", ANNA, idempotency_key="one")
    assert new
    with pytest.raises(JobInProgress, match="still queued") as refused:
        pacs.submit(b"bytes", "lung", ANNA, idempotency_key="one")
    assert refused.value.job_id == first.id
    finish(jobs.claim(store, first.id))
    again, new = pacs.submit(b"bytes", "lung", ANNA, idempotency_key="one")
    assert (again.id, again.state, new) == (first.id, "done", False)
    assert count(store, Job) == 1


@pytest.mark.parametrize("changes", [{"content": b"other"}, {"model": "other"}, {"priority": "batch"},
                                     {"patient": StatedPatient("T-2", "Bert Invented")}])  # fmt: skip
def test_an_idempotency_key_is_not_for_another_request(pacs, changes):
    request = {"content": b"bytes", "model": "lung", "patient": ANNA, "idempotency_key": "one"}
    pacs.submit(**request)
    with pytest.raises(PayloadDiffers):
        pacs.submit(**request | changes)


def test_idempotency_keys_of_programs_do_not_meet(pacs, program):
    one = pacs.submit(b"bytes", "lung", ANNA, idempotency_key="one")[0]
    two = program("ris").submit(b"bytes", "lung", ANNA, idempotency_key="one")[0]
    assert one.id != two.id


def test_the_same_request_at_the_same_time_is_one_job(store, pacs):
    def send(_):
        try:
            return pacs.submit(b"bytes", "lung", ANNA, idempotency_key="one")[1]
        except JobInProgress:
            return False

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(send, range(12))) == 1
    assert count(store, Job) == 1


# --- whose


def test_a_program_sees_its_own_jobs_and_results_and_an_admin_key_all(store, pacs, submit, finish, program):
    job_id = submit()
    finish(jobs.claim(store, job_id))
    ris, admin = program("ris"), program("ops", "admin")
    for action in (ris.job, ris.cancel, ris.again):
        with pytest.raises(JobMissing):
            action(job_id)
    with pytest.raises(RecordMissing):
        Records(ris.access).case(job_id)
    assert (ris.latest(), [job.id for job in admin.latest()]) == ([], [job_id])
    assert Records(admin.access).case(job_id).reading_id == job_id


@pytest.mark.parametrize("text", ["", "x", "0" * 36, "'; DROP TABLE jobs", "\0" * 36])
def test_what_is_no_job_is_not_found(pacs, text):
    with pytest.raises(JobMissing):
        pacs.job(text)


# --- patients


def test_two_images_of_a_new_patient_at_once_are_two_studies_of_one(store, submit, finish):
    for claimed in [jobs.claim(store, job_id) for job_id in (submit(), submit(content=b"more"))]:
        finish(claimed)
    assert [count(store, table) for table in (Patient, Study, Reading)] == [1, 2, 2]


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (StatedPatient("T-1", "Bert Invented"), "another name"),
        (StatedPatient("T-1", birth_year=1971), "another year of birth"),
        (StatedPatient("T-1", sex="male"), "another sex"),
    ],
)
def test_an_image_of_another_patient_with_the_same_number_is_refused(store, pacs, submit, finish, stated, words):
    finish(jobs.claim(store, submit()))
    before = everything(store)
    with pytest.raises(PatientDiffers, match=words) as refused:
        pacs.submit(b"bytes", "lung", stated)
    assert everything(store) == before
    assert "Invented" not in str(refused.value)
    assert pacs.submit(b"bytes", "lung", StatedPatient("T-1"))[1]


def test_a_patient_who_becomes_another_while_a_job_waits_is_not_mixed_up(store, submit, finish):
    first, second = submit(), submit(StatedPatient("T-1", "Bert Invented"))
    finish(jobs.claim(store, first))
    with pytest.raises(PatientDiffers):
        finish(jobs.claim(store, second))
    assert count(store, Study) == 1


def test_a_new_patient_needs_a_name(store, pacs):
    with pytest.raises(RecordRefused, match="a name is needed"):
        pacs.submit(b"bytes", "lung", StatedPatient("T-9"))
    assert count(store, Job) == 0


def test_an_erased_patient_does_not_come_back_with_a_job_that_waits(store, submit, finish, signed_in):
    done, waiting, begun = submit(), submit(content=b"more"), submit(content=b"most")
    finish(jobs.claim(store, done))
    claimed = jobs.claim(store, begun)
    administration = Administration(signed_in("admin"))
    administration.erase_patient(administration.patients()[0].id)
    assert jobs.claim(store, waiting) is None
    with pytest.raises(LeaseLost):
        finish(claimed)
    assert [count(store, table) for table in (Patient, Study, Reading, JobFile)] == [0, 0, 0, 0]
    assert "Invented" not in str(everything(store))


def test_neither_a_job_nor_the_trail_names_a_patient(store, submit, finish):
    finish(jobs.claim(store, submit(idempotency_key="one")))
    with store.read() as db:
        for table in (Job, AuditEvent):
            rows = str(db.execute(sa.select(table.__table__)).all())
            assert "T-1" not in rows
            assert "Invented" not in rows
    assert audit_trail.verify(store)


@pytest.mark.parametrize("changes", [{"priority": "page"}, {"priority": "now"}, {"idempotency_key": "x" * 201},
                                     {"idempotency_key": "with space"}])  # fmt: skip
def test_what_a_job_cannot_have_is_refused(store, pacs, changes):
    with pytest.raises(RecordRefused):
        pacs.submit(b"bytes", "lung", ANNA, **changes)
    assert count(store, Job) == 0


def test_people_cannot_send_jobs(store, signed_in):
    doctor = signed_in("doctor")
    with pytest.raises(accounts.Forbidden):
        Jobs(doctor).submit(b"bytes", "lung", ANNA)
    assert count(store, Job) == 0
