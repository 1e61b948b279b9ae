"""A note to a PACS that objects which it has do not count: a Key Object Selection, titled with the reason.

IHE Imaging Object Change Management (RAD TF-1, 27): a PACS that follows it hides what the note names, or deletes it.
"""

from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from lungkit.gateway.objects import provenance
from lungkit.gateway.objects.report import review_identity
from lungkit.gateway.objects.result import Result, Review
from lungkit.gateway.objects.source import Source, source_of

REJECTED = "A clinician has withdrawn the image. Do not use these results."
_CLASSES = {
    "report": uid.Comprehensive3DSRStorage,
    "capture": uid.SecondaryCaptureImageStorage,
    "segmentation": uid.SegmentationStorage,
}


def rejection_note(
    source: Source | Dataset | Sequence[Dataset],
    result: Result,
    kinds: Collection[str],
    reviews: Iterable[Review],
    at: datetime,
) -> KeyObjectSelectionDocument:
    """The note for objects of a reading, "Rejected for Patient Safety Reasons".

    kinds: report, capture, segmentation. reviews: those whose reports are rejected too. at: when the image was
    withdrawn. The same arguments give the same bytes. Raises SourceRefused for a source that no result can be filed
    next to, and ValueError where nothing is rejected.
    """
    source = source_of(source)
    rejected = [_named(source, kind, provenance.identity(source, result, kind)) for kind in _CLASSES if kind in kinds]
    rejected += [_named(source, "report", review_identity(source, result, review)) for review in reviews]
    made = KeyObjectSelectionDocument(
        evidence=rejected,
        content=KeyObjectSelection(codes.DCM.RejectedForPatientSafetyReasons, rejected, description=REJECTED),
        **provenance.identity(source, result, "rejection"),
    )
    for item in made.ContentSequence[1:]:
        del item.ConceptNameCodeSequence  # TID 2010 has no name for a reference
    provenance.sealed(made, source, at)
    return made


def _named(source: Source, kind: str, identity: dict[str, Any]) -> Dataset:
    """What a reference needs of an object, which is not made again: a segmentation takes seconds."""
    named = deepcopy(source.headers[0])
    named.SOPClassUID, named.SOPInstanceUID = _CLASSES[kind], identity["sop_instance_uid"]
    named.SeriesInstanceUID = identity["series_instance_uid"]
    if kind == "report":
        del named.Rows, named.Columns  # it is no image
    return named
