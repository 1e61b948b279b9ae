"""Made-up CT series: data sets that a test changes, and their files."""

import io
import zipfile
from collections.abc import Sequence

import numpy as np
from pydicom import Dataset, dcmwrite, uid
from pydicom import Sequence as Items
from pydicom.encaps import encapsulate, encapsulate_extended

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
START = (-120.0, -130.0, -314.0)
SIDE = 24  # pixels; fewer are refused


def normal(orientation: Sequence[float]) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def stack(count: int, spacing: float = 2.0, orientation=AXIAL, start=START, step=None, **tags) -> list[Dataset]:
    """Slices at even distances across their planes, or at each `step` (x, y, z) from `start`."""
    step = normal(orientation) * spacing if step is None else np.array(step)
    return [ct_slice(np.array(start) + number * step, orientation, number=number, **tags) for number in range(count)]


def ct_slice(corner, orientation=AXIAL, number: int = 0, **tags) -> Dataset:
    """A CT slice whose pixels are those of its number; a tag set to None is left out."""
    made = Dataset()
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.SOPClassUID, made.Modality = uid.CTImageStorage, "CT"
    made.SOPInstanceUID = f"1.2.3.9.{number}"
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    made.PatientName, made.SeriesNumber, made.AcquisitionNumber, made.InstanceNumber = "Doe^Jane", 4, 1, 1
    made.PatientPosition, made.SliceThickness = "HFS", None
    place(made, corner, orientation)
    _add_pixels(made, values(number))
    change(made, **tags)
    return made


def place(made: Dataset, corner, orientation=AXIAL) -> None:
    made.ImagePositionPatient = [round(float(number), 6) for number in corner]
    made.ImageOrientationPatient = [round(float(number), 9) for number in orientation]


def values(number: int) -> np.ndarray:
    """uint16 (24, 24), different for each number."""
    return np.random.default_rng(number).integers(0, 2**12, (SIDE, SIDE)).astype(np.uint16)


def change(made: Dataset, **tags) -> Dataset:
    for keyword, value in tags.items():
        if value is None:
            made.pop(keyword, None)
        else:
            setattr(made, keyword, value)
    return made


def file(made: Dataset, syntax=uid.ExplicitVRLittleEndian) -> bytes:
    made.file_meta = Dataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    content = io.BytesIO()
    dcmwrite(content, made, enforce_file_format=True)
    return content.getvalue()


def files(series: Sequence[Dataset]) -> list[tuple[str, bytes]]:
    """(name, bytes) of each slice; the name is its place in the list."""
    return [(f"{place}.dcm", file(made)) for place, made in enumerate(series)]


def zipped(members: dict[str, bytes], **options) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data, **options)
    return content.getvalue()


# --- enhanced CT -------------------------------------------------------------------------------------------------


def enhanced(corners, pixels: np.ndarray, orientation=AXIAL, slopes: Sequence[float] = (), **tags) -> Dataset:
    """Frames at `corners` of pixels uint16 (frames, rows, columns), each with the slope at its place, else 1."""
    made = ct_slice(corners[0], orientation)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        del made[keyword]
    made.pop("RescaleIntercept"), made.pop("SliceThickness", None)
    made.SOPClassUID, made.ImageType = uid.EnhancedCTImageStorage, ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    made.NumberOfFrames = len(corners)
    made.Rows, made.Columns = pixels.shape[1:]
    made.PixelData = pixels.astype("<u2").tobytes()
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([_item(PixelSpacing=[0.7, 0.7], SliceThickness=2)])
    shared.PlaneOrientationSequence = Items([_item(ImageOrientationPatient=list(orientation))])
    shared.PixelValueTransformationSequence = Items([_item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")])
    made.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for number, corner in enumerate(corners):
        group = Dataset()
        group.FrameContentSequence = Items([_item(FrameAcquisitionNumber=1, StackID="1")])
        group.PlanePositionSequence = Items([_item(ImagePositionPatient=[round(float(each), 6) for each in corner])])
        group.CTImageFrameTypeSequence = Items([_item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])])
        if slopes:
            transformed = _item(RescaleSlope=slopes[number], RescaleIntercept=-1000, RescaleType="HU")
            group.PixelValueTransformationSequence = Items([transformed])
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = Items(groups)
    return change(made, **tags)


def coded(made: Dataset, streams: list[bytes], table: str, fragments: int = 1) -> Dataset:
    """The same with compressed frames, and an offset table that is "basic", "extended" or "none"."""
    if table == "extended":
        made.PixelData, made.ExtendedOffsetTable, made.ExtendedOffsetTableLengths = encapsulate_extended(streams)
    else:
        made.PixelData = encapsulate(streams, fragments_per_frame=fragments, has_bot=table == "basic")
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    return made


def _item(**tags) -> Dataset:
    return change(Dataset(), **tags)


def _add_pixels(made: Dataset, pixels: np.ndarray) -> None:
    made.Rows, made.Columns = pixels.shape
    made.PixelSpacing = [0.7, 0.7]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.RescaleSlope, made.RescaleIntercept, made.RescaleType = 1, -1024, "HU"
    made.PixelData = pixels.astype("<u2").tobytes()
    made["PixelData"].VR = "OW"
