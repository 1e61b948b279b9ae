"""/health and /metrics, for the programs that watch over the gateway; no key is needed, and no patient is in it."""

import shutil
from collections.abc import Iterator

from fastapi import APIRouter, Response

from lungkit import config
from lungkit.clinic.records import dispatches, jobs
from lungkit.errors import LungkitError
from lungkit.gateway import inbox
from lungkit.gateway.problems import Refused
from lungkit.gateway.requests import Gateway, Shared
from lungkit.gateway.schemas import Health

router = APIRouter(tags=["state"])
LEAST_FREE = 500 * 2**20  # bytes on the disk with the records or the data folder


@router.get("/health/live", summary="Whether the gateway runs")
async def live() -> Health:
    """Answers as long as the process answers anything."""
    return Health()


@router.get("/health/ready", summary="Whether images can be read")
def ready(gateway: Shared) -> Health:
    """503 names everything that is missing: the records, a model, a worker, room on the disk."""
    if reasons := list(_reasons(gateway)):
        raise Refused("unavailable", "; ".join(reasons), reasons=reasons)
    return Health()


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})  # fmt: skip
def metrics(gateway: Shared) -> Response:
    """Requests, times, and jobs by state."""
    counted = jobs.counts(gateway.store), dispatches.counts(gateway.store)
    return Response(gateway.metrics.text(*counted), media_type="text/plain; version=0.0.4")


def _reasons(gateway: Gateway) -> Iterator[str]:
    """Why the gateway is not ready."""
    try:
        jobs.counts(gateway.store)
    except LungkitError as error:
        yield str(error)
    try:
        gateway.pool.get(gateway.pool.default())
    except LungkitError as error:
        yield str(error)
    if not gateway.worker.alive():
        yield "no worker reads jobs"
    if not gateway.sender.alive():
        yield "no thread sends results"
    if gateway.door and not gateway.door.alive():
        yield "the DICOM port is not open"
    folder = gateway.store.path.parent if gateway.store.path else config.home()
    if shutil.disk_usage(folder).free < LEAST_FREE:
        yield f"less than {LEAST_FREE // 2**20} MiB are free on the disk"
    if not inbox.has_room():
        yield f"less than {inbox.LEAST_FREE // 2**20} MiB are free on the disk with the inbox"
