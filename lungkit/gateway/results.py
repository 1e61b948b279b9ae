"""/api/v1/results: a reading as JSON, as FHIR and as DICOM objects, its heat map as PNG, and its report as PDF."""

import io
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import PIL.Image
from fastapi import APIRouter, Query, Response
from pydicom.dataset import Dataset

from lungkit.clinic import report
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.patients import RecordRefused
from lungkit.gateway import fhir
from lungkit.gateway.deliveries import Delivery, NoSource, card_of
from lungkit.gateway.objects import SourceRefused, encoded
from lungkit.gateway.problems import Refused
from lungkit.gateway.requests import MayRead
from lungkit.gateway.schemas import Result

router = APIRouter(prefix="/results", tags=["results"])


def _file(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of an answer that is a file."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"content": content, "description": description}}


@router.get("/{reading_id}", summary="A result")
def get_result(reading_id: str, access: MayRead) -> Result:
    """A reading of the program; with the scope admin any. The trail notes that it was opened."""
    return Result.of(Records(access).case(reading_id))


@router.get(
    "/{reading_id}/heat.png",
    summary="Its heat map",
    response_class=Response,
    responses=_file("image/png", "Grey, 8 bits: white has the most weight. In the image's aspect, not in its size"),
)
def get_heat(
    reading_id: str,
    access: MayRead,
    of_class: Annotated[str, Query(alias="class", description="Default: the label's")] = "",
) -> Response:
    """Which parts of the image moved the score of a class; not where disease is. 404 where `refusal` is set."""
    case = Records(access).case(reading_id)
    if case.refusal:
        raise Refused("not-found", f"{case.refusal}: the model gives no finding, so there is no heat map")
    name = of_class or case.label
    if name not in case.classes:
        raise RecordRefused(f"no class {name[:100]!r}; there are: {', '.join(case.classes)}")
    drawn = io.BytesIO()
    PIL.Image.fromarray(np.rint(255 * case.heat[case.classes.index(name)]).astype(np.uint8)).save(drawn, "PNG")
    return Response(drawn.getvalue(), media_type="image/png")


@router.get(
    "/{reading_id}/report.pdf",
    summary="Its report",
    response_class=Response,
    responses=_file("application/pdf", "Two A4 pages"),
)
def get_report(reading_id: str, access: MayRead) -> Response:
    """The report of the reading, as the clinic prints it. It names the patient."""
    records = Records(access)
    case, series = records.case(reading_id), records.series(reading_id)
    content = report.pdf(case, card_of(case), slices=series.slices if series else None)
    return Response(content, media_type="application/pdf")


@router.get(
    "/{reading_id}/fhir",
    summary="It as FHIR R4",
    response_class=Response,
    responses={
        200: {
            "content": {fhir.MEDIA_TYPE: {"schema": {"type": "object", "required": ["resourceType", "type", "entry"]}}},
            "description": "A Bundle of type transaction, to be sent to a FHIR server as it is. It names the patient",
        }
    },
)
def get_fhir(reading_id: str, access: MayRead) -> Response:
    """DiagnosticReport, an Observation for each class, Device and Patient; final once a clinician has reviewed it.

    Where the model refuses the patient or the image, there is no Observation, and the report says why.
    """
    made = Delivery(Records(access), reading_id)
    return Response(made.bundle({}), media_type=fhir.MEDIA_TYPE)


@router.get(
    "/{reading_id}/sr",
    summary="Its structured report as DICOM",
    response_class=Response,
    responses=_file("application/dicom", "Comprehensive 3D SR, TID 1500: of the latest review, if there is one"),
)
def get_sr(reading_id: str, access: MayRead) -> Response:
    """What a PACS gets. It names the patient as the images do. 404 where the images did not come as DICOM."""
    return _object(Delivery(Records(access), reading_id), Delivery.reviewed)


@router.get(
    "/{reading_id}/capture",
    summary="Its picture as DICOM",
    response_class=Response,
    responses=_file("application/dicom", "Secondary Capture, RGB: the picture with heat map and decision"),
)
def get_capture(reading_id: str, access: MayRead) -> Response:
    """What a PACS gets. 404 where the images did not come as DICOM, or the image was turned before it was read."""
    return _object(Delivery(Records(access), reading_id), Delivery.capture)


def _object(of: Delivery, make: Callable[[Delivery], Dataset]) -> Response:
    try:
        return Response(encoded(make(of)), media_type="application/dicom")
    except (NoSource, SourceRefused) as refused:
        raise Refused("not-found", str(refused)) from refused
