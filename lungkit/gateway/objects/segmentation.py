"""A reading's heat map as a segmentation: what spoke for the model's answer, in the geometry of its images."""

from collections.abc import Sequence
from typing import Literal

import highdicom
import numpy as np
from highdicom import seg
from pydicom import uid
from pydicom.dataset import Dataset

from lungkit.data.overlay import resized
from lungkit.errors import LungkitError
from lungkit.gateway.objects import codes as our
from lungkit.gateway.objects import provenance
from lungkit.gateway.objects.report import tracking
from lungkit.gateway.objects.result import Result
from lungkit.gateway.objects.source import Source, SourceRefused, one_line, source_of
from lungkit.models.class_names import class_name

_PLACED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_ONE_FRAME = (
    *(uid.CTImageStorage, uid.ComputedRadiographyImageStorage, uid.SecondaryCaptureImageStorage),
    *(uid.DigitalXRayImageStorageForPresentation, uid.DigitalXRayImageStorageForProcessing),
)


def segmentation(
    source: Source | Dataset | Sequence[Dataset],
    result: Result,
    kind: Literal["FRACTIONAL", "BINARY"] = "FRACTIONAL",
    threshold: float = 0.5,
) -> seg.Segmentation:
    """The heat maps of all images that have one, in rows and columns of the images.

    kind: FRACTIONAL has the weight in 256 steps, BINARY says where it is `threshold` (above 0, up to 1) or more.
    Raises LungkitError without a heat map, and for a refused result; SourceRefused where a CT has no position or
    thickness, and for objects of several frames.
    """
    source = source_of(source)
    if result.refusal:
        raise LungkitError(f"no segmentation is made: {result.refusal.lower()}, so the model gives no finding")
    if not result.heat:
        raise LungkitError("a segmentation is made from a heat map, and the result has none")
    if not 0 < threshold <= 1:
        raise LungkitError(f"threshold {threshold} of a segmentation; accepted: above 0, up to 1")
    images = source.of([*result.heat])
    _check(source, images)
    weights = np.stack([_weights(heat, image) for heat, image in zip(result.heat.values(), images, strict=True)])
    drawn = weights if kind == "FRACTIONAL" else (weights >= threshold).astype(np.uint8)
    made = seg.Segmentation(
        source_images=images,
        pixel_array=drawn,
        segmentation_type=kind,
        segment_descriptions=[_segment(source, result, kind, threshold)],
        omit_empty_frames=bool(drawn.any()),
        content_label="HEAT_MAP",
        content_description="Heat map of a model, research use only",
        specific_character_set="ISO_IR 192",
        **provenance.identity(source, result, "segmentation"),
    )
    if "ImageOrientationPatient" not in images[0]:  # of a CT the planes say it
        made.PatientOrientation = images[0].get("PatientOrientation", "")
    _name_dimensions(made, provenance.uid(source, result, "dimensions"))
    provenance.sealed(made, source, result.read_at)
    return made


def _check(source: Source, images: list[Dataset]) -> None:
    for image in images:
        if image.SOPClassUID not in _ONE_FRAME:
            raise SourceRefused("a segmentation of an object of several frames is not made")
        missing = [keyword for keyword in _PLACED if keyword not in image]
        if missing and image.SOPClassUID == uid.CTImageStorage:
            raise SourceRefused(f"a segmentation needs {missing[0]}, and the CT image has none")


def _weights(heat: np.ndarray, image: Dataset) -> np.ndarray:
    """float32 (rows, columns) of the image, 0..1."""
    return np.asarray(np.clip(np.nan_to_num(resized(heat, (int(image.Columns), int(image.Rows)))), 0, 1))


def _segment(source: Source, result: Result, kind: str, threshold: float) -> seg.SegmentDescription:
    tracking_uid, tracking_id = tracking(source, result, result.label)
    how = "weight in 256 steps" if kind == "FRACTIONAL" else f"weight of {threshold:g} or more"
    return seg.SegmentDescription(
        segment_number=1,
        segment_label=one_line(f"Support of {class_name(result.label)}")[:64].rstrip(),
        segmented_property_category=our.SPATIAL_CONCEPT,
        segmented_property_type=our.GRAD_CAM,
        algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=one_line(result.model)[:64],
            family=our.ARTIFICIAL_INTELLIGENCE,
            version=one_line(result.version)[:64],
            parameters={"heat map": f"Grad-CAM, {how}"},
        ),
        tracking_uid=tracking_uid,
        tracking_id=tracking_id,
        anatomic_regions=[our.LUNG],
    )


def _name_dimensions(made: Dataset, name: str) -> None:
    """In place of highdicom's random UID, for a resend to be the same object."""
    for item in (*made.get("DimensionOrganizationSequence", []), *made.get("DimensionIndexSequence", [])):
        item.DimensionOrganizationUID = name
