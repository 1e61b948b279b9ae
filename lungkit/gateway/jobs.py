"""/api/v1/jobs: what has become of images that were sent."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from lungkit.clinic.records.jobs import Jobs
from lungkit.gateway.requests import MayAdminister, MayRead, Shared
from lungkit.gateway.schemas import Job, State

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("", summary="The latest jobs")
def list_jobs(
    access: MayRead,
    state: Annotated[State | Literal[""], Query(description="Only jobs in this state; failed: the dead letters")] = "",
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many")] = 100,
) -> list[Job]:
    """The program's own jobs, newest first; with the scope admin those of all programs."""
    return [Job.of(job) for job in Jobs(access).latest(state, limit)]


@router.get("/{job_id}", summary="A job")
def get_job(job_id: str, access: MayRead) -> Job:
    """A job of the program; with the scope admin any."""
    return Job.of(Jobs(access).job(job_id))


@router.delete("/{job_id}", summary="Cancel a job")
def cancel_job(job_id: str, access: MayRead) -> Job:
    """Cancel a job that is not at an end. Nothing of its image is kept."""
    return Job.of(Jobs(access).cancel(job_id))


@router.post("/{job_id}/again", summary="Read a failed job again")
def read_again(job_id: str, access: MayAdminister, gateway: Shared) -> Job:
    """Queue a failed job again, whose file is kept for seven days if the image itself was not refused."""
    job = Jobs(access).again(job_id)
    gateway.worker.put(job.id, job.priority)
    return Job.of(job)
