"""The gateway's application: routes, errors, and what OpenAPI says of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

import lungkit
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records.store import Store
from lungkit.gateway import jobs, models, predictions, problems, requests, results, state, stow
from lungkit.gateway.dicom import Door, Settings
from lungkit.gateway.metrics import Metrics
from lungkit.gateway.periodic import Periodic
from lungkit.gateway.schemas import API, RESEARCH, FieldProblem, Problem
from lungkit.gateway.sending import AE_TITLE, Sender
from lungkit.gateway.worker import QUIET, Worker

_SCHEMA = "#/components/schemas/{model}"
_OPEN = ("400", "404", "405", "429", "500", "503")  # statuses that any route can answer with
_KEYED = ("401", "403", "422")
_BODY = ("408", "409", "413", "415")


def make_app(store: Store, threads: int = 1, quiet: timedelta = QUIET, dicom: Settings | None = None) -> FastAPI:
    """The application on these records, whose tables are up to date.

    While it runs, `threads` read images, and the DICOM port is open if there are settings for it. quiet: for so long no
    file of a study comes, then it is complete. Raises LungkitError for settings that cannot be used.
    """
    pool, metrics = ModelPool(), Metrics()
    worker = Worker(store, pool, metrics, threads, quiet)
    door = Door(store, metrics, dicom) if dicom else None
    periodic = Periodic(store)
    sender = Sender(store, metrics, dicom.ae_title if dicom else AE_TITLE)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        sender.start()
        periodic.start()
        if door:
            door.open()
        yield
        if door:
            await to_thread.run_sync(door.close)
        await to_thread.run_sync(periodic.stop)
        await to_thread.run_sync(sender.stop)
        worker.stop()

    # The documentation pages of FastAPI load scripts from elsewhere.
    app = FastAPI(
        title="lungkit gateway",
        version=lungkit.__version__,
        description=f"Reads images of the chest with the clinic's models, and keeps the results. {RESEARCH}",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=running,
        redirect_slashes=False,
    )
    app.state.gateway = requests.Gateway(store, pool, worker, sender, metrics, door)
    app.add_middleware(requests.Observed, metrics=metrics)
    problems.install(app)
    for part in (predictions, jobs, results, models, stow):
        app.include_router(part.router, prefix=API)
    app.include_router(state.router)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1 of the app, in which every error is a problem."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = schema["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in (Problem, FieldProblem):
        schemas[model.__name__] = model.model_json_schema(ref_template=_SCHEMA) | {"$defs": {}}
    problem = {problems.MEDIA_TYPE: {"schema": {"$ref": _SCHEMA.format(model="Problem")}}}
    for path in schema["paths"].values():
        for operation in path.values():
            statuses = (*_OPEN, *(_KEYED if "security" in operation else ()), *_BODY)
            for status in statuses:
                titles = dict.fromkeys(kind.title for kind in problems.KINDS.values() if str(kind.status) == status)
                said = operation["responses"].get(status, {}) if status != "422" else {}
                words = "; or: ".join(filter(None, (said.get("description"), *titles)))
                operation["responses"][status] = {"description": words, "content": said.get("content", {}) | problem}
    app.openapi_schema = schema
    return schema
