"""DICOM objects that answer images: structured report, secondary capture, segmentation and rejection note.

`source_header` keeps of a file's header what they need, `result_of` words a prediction, and `encoded` gives the file.
"""

from lungkit.gateway.objects.capture import secondary_capture
from lungkit.gateway.objects.provenance import encoded
from lungkit.gateway.objects.rejection import rejection_note
from lungkit.gateway.objects.report import reviewed_report, structured_report
from lungkit.gateway.objects.result import Result, Review, result_of, result_of_case, review_of
from lungkit.gateway.objects.segmentation import segmentation
from lungkit.gateway.objects.source import Source, SourceRefused, packed, source_header, source_of, unpacked

__all__ = [
    "Result",
    "Review",
    "Source",
    "SourceRefused",
    "encoded",
    "packed",
    "rejection_note",
    "result_of",
    "result_of_case",
    "review_of",
    "reviewed_report",
    "secondary_capture",
    "segmentation",
    "source_header",
    "source_of",
    "structured_report",
    "unpacked",
]
