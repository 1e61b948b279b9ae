"""What a header tells of the patient's age and the year of the study; a birth date itself is never kept."""

import io

import pytest
from pydicom import Dataset, dcmwrite, uid
from pydicom.dataset import FileMetaDataset

from lungkit.data import images


def tags(**header) -> dict[str, str]:
    """What the reader keeps of a radiograph with this header."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2.3.4.5"
    image.Modality, image.PhotometricInterpretation = "DX", "MONOCHROME2"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PixelRepresentation = 32, 32, 1, 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelData = 7, bytes(range(256)) * 4
    for keyword, value in header.items():
        setattr(image, keyword, value)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    stream = io.BytesIO()
    dcmwrite(stream, image, enforce_file_format=True)
    return images.read(stream.getvalue()).tags


@pytest.mark.parametrize(
    ("header", "age"),
    [
        ({"PatientAge": "047Y"}, "047Y"),
        ({"PatientAge": "006M", "PatientBirthDate": "20190715", "StudyDate": "20200101"}, "006M"),
        ({"PatientAge": "046Y", "PatientBirthDate": "19730201", "StudyDate": "20200101"}, "046Y"),
        ({"PatientAge": "104Y", "PatientBirthDate": "19160201", "StudyDate": "20200101"}, "090Y"),
        # What stands for "not known" is no age, and leaves it to the other one.
        *(({"PatientAge": age}, None) for age in ("000Y", "000M", "000D", "131Y", "999Y")),
        ({"PatientAge": "000Y", "PatientBirthDate": "19500601", "StudyDate": "20200101"}, "069Y"),
        *(({"PatientBirthDate": born, "StudyDate": "20200101"}, None) for born in ("19000101", "18990101", "18000101")),
        ({"PatientAge": "004Y", "PatientBirthDate": "19000101", "StudyDate": "20200101"}, "004Y"),
        # Of two that contradict each other none is taken.
        ({"PatientAge": "006M", "PatientBirthDate": "19500101", "StudyDate": "20200101"}, None),
        ({"PatientAge": "very old", "PatientBirthDate": "19500601", "StudyDate": "20200101"}, "069Y"),
        ({"PatientBirthDate": "19500601", "StudyDate": "20200101"}, "069Y"),
        ({"PatientBirthDate": "20190701", "StudyDate": "20200101"}, "006M"),
        ({"PatientBirthDate": "19100101", "StudyDate": "20200101"}, "090Y"),
        ({"PatientAge": "104Y"}, "090Y"),
        ({"PatientBirthDate": "20210101", "StudyDate": "20200101"}, None),
        ({"PatientBirthDate": "20200101", "StudyDate": "20200101"}, "000M"),
        ({"PatientBirthDate": "19500101"}, None),
        ({}, None),
    ],
)
def test_the_age_at_the_study_is_stated_or_follows_from_the_birth_date(header, age):
    assert tags(**header).get("age") == age


def test_an_age_that_contradicts_the_birth_date_is_said_to_do_so_without_the_date():
    kept = tags(PatientAge="006M", PatientBirthDate="19500607", StudyDate="20200809")
    assert kept["note"] == "PatientAge contradicts the birth date: the age is taken as not known"


@pytest.mark.parametrize(
    ("value", "meaning", "view"),
    [
        *(("399348003", "any", "AP"), ("R-10206", "any", "AP"), ("272479007", "any", "PA"), ("R-40888", "any", "PA")),
        *(
            ("399173006", "any", "LL"),
            ("399198007", "any", "RL"),
            ("", "Antero-posterior oblique", "ANTERO-POSTERIOR OBLIQUE"),
        ),
        ("", "", None),
    ],
)
def test_the_view_is_that_of_its_code_where_the_header_has_no_other(value, meaning, view):
    code = Dataset()
    code.CodeValue, code.CodeMeaning = value, meaning
    assert tags(ViewCodeSequence=[code]).get("view") == view
    assert tags(ViewCodeSequence=[code], ViewPosition="LL")["view"] == "LL"
    assert "view" not in tags(ViewCodeSequence=[])


@pytest.mark.parametrize(
    ("cosines", "lies"),
    [
        *(([1, 0, 0, 0, 1, 0], r"L\P"), ([1, 0, 0, 0, 0.94, -0.34], r"L\P"), ([-1, 0, 0, 0, -1, 0], r"R\A")),
        *(([-1, 0, 0, 0, 1, 0], r"R\P"), ([1, 0, 0, 0, 0, -1], r"L\F"), ([0, 1, 0, 0, 0, -1], r"P\F")),
        *(([1, 0, 0], None), (None, None)),
    ],
)
def test_a_ct_says_by_its_axes_how_it_lies(cosines, lies):
    ct = {"SOPClassUID": uid.CTImageStorage, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}
    axes = {} if cosines is None else {"ImageOrientationPatient": cosines}
    assert tags(**ct, **axes).get("orientation") == lies
    assert "orientation" not in tags(**axes), "an X-ray has no such axes"


def test_of_dates_only_the_year_of_the_study_is_kept():
    kept = tags(PatientBirthDate="19500607", StudyDate="20200809")
    assert kept["study_year"] == "2020"
    assert not [value for value in kept.values() if "1950" in value or "0607" in value or "0809" in value]


def test_how_a_radiograph_lies_is_kept_as_its_header_states_it():
    assert tags(PatientOrientation=["R", "F"])["orientation"] == "R\\F"
