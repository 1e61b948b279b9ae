"""Results as DICOM objects: valid whatever the headers of the images say, and the same when they are sent again."""

import io
import shutil
import subprocess
import time
import uuid
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmwrite, uid
from pydicom.dataset import FileMetaDataset

from lungkit.clinic.records.tables import CLASS, NOT_ASSESSABLE, OTHER_FINDING, WRONG_IMAGE
from lungkit.data import phantom
from lungkit.errors import LungkitError
from lungkit.gateway import objects
from lungkit.gateway.objects import codes, source
from lungkit.models.prediction import Check, Prediction
from lungkit.models.rule import DecisionRule
from tests.cards import model_card

# dciodvfy asks for the side of a paired body part, and the chest is none.
FALSE_ALARMS = {"Error - Missing attribute Type 2C Conditional Element=<Laterality> Module=<GeneralSeries>"}
# What DicomSRValidator runs, with the limits of XPath lifted, which its rules exceed, and a quick start.
JAVA = [*(f"-Djdk.xml.xpath{limit}Limit=0" for limit in ("TotalOp", "ExprOp", "ExprGrp")), "-XX:TieredStopAtLevel=1"]
PIXELMED = "/usr/share/java/pixelmed.jar"
HOSTILE = {
    "PatientName": "Ünsal^" + "Ayşe" * 200,
    "PatientBirthDate": "31.12.1950",
    "PatientSex": "female",
    "PatientAge": "very old",
    "StudyID": "S" * 300,
    "StudyDate": "yesterday",
    "StudyTime": "25:61",
    "StudyDescription": "Thorax\x1b[31m\x00" * 40,
    "AccessionNumber": "A" * 17,
    "ReferringPhysicianName": "^^^^^^^^=\\=",
    "SeriesInstanceUID": "09bc8aea-ff9c-4106-8514-294cbcf9a082",
    "SeriesNumber": "first",
    "InstanceNumber": "99999999999999",
    "Modality": "c\\t",
    "TimezoneOffsetFromUTC": "CET",
    "PatientOrientation": "left",
    "PatientWeight": "1e400",
}
NAMES = ("report", "capture", "segmentation")
CLASSES = ("Normal", "Pneumonia", "COVID-19", "Something new")
HEAT = np.zeros((32, 32), np.float32)
HEAT[20:28, 4:12] = np.linspace(0.25, 1, 8)
CHECKS = (Check("size", True, 128, 64, "128 x 128 pixels"), Check("kind", False, 2.5, 2, "may show something else"))
READ_AT = datetime(2026, 3, 9, 14, 5, tzinfo=UTC)
REVIEW = objects.Review(
    reviewer="Dr Anna Weber", agrees=False, label="COVID-19", comment="Seen again", at=READ_AT + timedelta(hours=1)
)


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> list[bytes]:
    """The files of a phantom's series."""
    folder = tmp_path_factory.mktemp("phantom")
    made = phantom.make_patient("P1", "Pneumonia", seed=3, slices=3, size=64)
    return [phantom.write_dicom(one, folder / f"{one.index}.dcm").read_bytes() for one in made]


def radiograph(kind: str, **tags) -> bytes:
    """The file of an X-ray image without pixels."""
    image = Dataset()
    image.SOPClassUID = {
        "CR": uid.ComputedRadiographyImageStorage,
        "DX": uid.DigitalXRayImageStorageForPresentation,
        "SC": uid.SecondaryCaptureImageStorage,
    }[kind]
    image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3.4.5", "1.2.3.4", "1.2.3.4.6"
    image.PatientName, image.PatientID, image.PatientSex = "Doe^Jane", "1234", "F"
    image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20260309", "140000", "7", "X-99"
    image.Modality, image.Rows, image.Columns = kind, 90, 70
    if kind == "DX":
        image.PatientOrientation, image.ImagerPixelSpacing = ["L", "F"], [0.2, 0.2]
    return changed(filed(image), **tags)


def filed(image: Dataset) -> bytes:
    stream = io.BytesIO()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dcmwrite(stream, image, enforce_file_format=True)
    return stream.getvalue()


def changed(file: bytes, **tags) -> bytes:
    """A file with other values, as texts of any length and form; None removes one."""
    image = pydicom.dcmread(io.BytesIO(file))
    image.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in tags.items():
        image.pop(keyword, None)
        if value is not None:
            image[keyword] = pydicom.DataElement(keyword, "UT", value)
    stream = io.BytesIO()
    dcmwrite(stream, image)
    return stream.getvalue()


def source_of(*files: bytes) -> objects.Source:
    return objects.source_of([objects.source_header(file) for file in files])


def result(of: objects.Source, **other) -> objects.Result:
    facts = {
        "reading": "r-17",
        "model": "ct-infection",
        "version": "v2",
        "question": "Chest CT: normal or not?",
        "learned_from": "a phantom: 900 CT images of 90 patients",
        "synthetic": True,
        "classes": CLASSES,
        "probabilities": (0.123456789, 0.6, 0.2, 0.076543211),
        "label": "Pneumonia",
        "named": ("Pneumonia",),
        "answer": "Pneumonia",
        "rule": "Operating point: The likeliest class is the answer",
        "uncertain": False,
        "reason": "",
        "checks": CHECKS,
        "read_at": READ_AT,
        "heat": {of.instances[0]: HEAT},
    }
    return objects.Result(**(facts | other))


def made(of: objects.Source, **other) -> dict[str, Dataset]:
    """Every object of a result."""
    given = result(of, **other)
    report = objects.structured_report(of, given)
    return {
        "report": report,
        "review": objects.reviewed_report(of, given, REVIEW, report),
        "capture": objects.secondary_capture(of, given, np.full((64, 64), 0.4, np.float32)),
        "fractional": objects.segmentation(of, given),
        "binary": objects.segmentation(of, given, "BINARY", 0.5),
        "rejection": objects.rejection_note(of, given, NAMES, [REVIEW], READ_AT + timedelta(hours=2)),
    }


def report_of(of: objects.Source, **other) -> Dataset:
    return objects.structured_report(of, result(of, **other))


def read_back(one: Dataset) -> Dataset:
    return pydicom.dcmread(io.BytesIO(objects.encoded(one)))


def groups(report: Dataset) -> list[Dataset]:
    tree = highdicom.sr.Comprehensive3DSR.from_dataset(read_back(report)).content
    return tree.get_image_measurement_groups()


def code(concept) -> tuple[str, str, str]:
    return concept.value, concept.scheme_designator, concept.meaning


def texts(report: Dataset, name: str) -> list[str]:
    """The texts of one name anywhere in a report."""
    return [
        item.TextValue
        for item in _items(read_back(report))
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeMeaning == name
    ]


def _items(parent: Dataset):
    for item in parent.get("ContentSequence", []):
        yield item
        yield from _items(item)


# --- valid, whatever the header says


@pytest.fixture(scope="module")
def sources(slices) -> dict[str, objects.Source]:
    plain = {
        "CT slice": [slices[0]],
        "CT series": slices,
        **{kind: [radiograph(kind)] for kind in ("CR", "DX", "SC")},
    }
    hostile = {f"hostile {kind}": [changed(file, **HOSTILE) for file in files] for kind, files in plain.items()}
    return {kind: source_of(*files) for kind, files in (plain | hostile).items()}


KINDS = [f"{how}{kind}" for how in ("", "hostile ") for kind in ("CT slice", "CT series", "CR", "DX", "SC")]


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy, of dicom3tools")
@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error_in_any_object(sources, kind, tmp_path):
    without = {one: reviewed_without_class(sources[kind], one) for one in (NOT_ASSESSABLE, WRONG_IMAGE, OTHER_FINDING)}
    for name, one in (made(sources[kind]) | without).items():
        assert errors_of(one, tmp_path / f"{name}.dcm") <= (FALSE_ALARMS if name == "capture" else set()), name


def errors_of(one: Dataset, file: Path) -> set[str]:
    """What dciodvfy finds wrong with an object."""
    file.write_bytes(objects.encoded(one))
    said = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
    return {line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")}


@pytest.mark.skipif(not shutil.which("DicomSRValidator"), reason="needs DicomSRValidator, of pixelmed-apps")
@pytest.mark.parametrize(
    ("kind", "template"), [("report", "TID_1500 (MeasurementReport)"), ("rejection", "TID_2010 (KeyObjectSelection)")]
)
def test_the_template_of_a_document_is_valid(sources, tmp_path, kind, template):
    file = tmp_path / "document.dcm"
    two = {"classes": ("Normal", "Pneumonia"), "probabilities": (0.3, 0.7)}
    file.write_bytes(objects.encoded(made(sources["CT slice"], **two)[kind]))
    command = ["java", *JAVA, "-cp", PIXELMED, "com.pixelmed.validate.DicomSRValidator", file]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (said.stdout + said.stderr).splitlines()
    assert f"Found Root Template {template}" in lines
    assert "Root Template Validation Complete" in lines and "IOD validation complete" in lines
    assert not [line for line in lines if line.startswith("Error")]


@pytest.mark.skipif(not shutil.which("dsrdump"), reason="needs dsrdump, of dcmtk")
def test_dcmtk_reads_a_report(sources, tmp_path):
    file = tmp_path / "report.dcm"
    file.write_bytes(objects.encoded(made(sources["hostile CR"])["review"]))
    said = subprocess.run(["dsrdump", file], capture_output=True, text=True, check=True).stdout
    assert "Comprehensive 3D SR Document" in said and "Verification Flag   : VERIFIED" in said
    assert '"Finding")=(233604007,SCT,"Pneumonia")' in said


@pytest.mark.parametrize("kind", ["CT series", "hostile DX"])
def test_the_same_result_gives_the_same_bytes(sources, kind):
    first = made(sources[kind])
    time.sleep(1.1)  # the clock must not show
    again = made(sources[kind])
    assert {name: objects.encoded(one) for name, one in first.items()} == {
        name: objects.encoded(one) for name, one in again.items()
    }


def test_a_rejection_note_names_what_is_rejected_and_nothing_else(sources):
    of = sources["CT series"]
    sent = made(of)
    note = read_back(sent["rejection"])
    assert note.Modality == "KO" and note.StudyInstanceUID == sent["report"].StudyInstanceUID
    assert code_of(note.ConceptNameCodeSequence[0]) == ("113037", "DCM", "Rejected for Patient Safety Reasons")
    named = [item.ReferencedSOPSequence[0] for item in note.ContentSequence if "ReferencedSOPSequence" in item]
    rejected = [sent[name] for name in ("report", "capture", "fractional", "review")]
    pairs = [(one.SOPClassUID, one.SOPInstanceUID) for one in rejected]
    assert [(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in named] == pairs
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    assert [one.SeriesInstanceUID for one in study.ReferencedSeriesSequence] == [
        one.SeriesInstanceUID for one in rejected
    ]
    some = read_back(objects.rejection_note(of, result(of), {"capture"}, (), READ_AT))
    assert [one.ValueType for one in some.ContentSequence] == ["TEXT", "IMAGE"]


def code_of(item: Dataset) -> tuple[str, str, str]:
    return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning


def test_objects_of_one_reading_have_their_own_uids_and_those_of_another_reading_have_others(sources):
    of = sources["CR"]
    both = [*made(of).values(), *made(of, reading="r-18").values()]
    instances = [one.SOPInstanceUID for one in both]
    assert len({*instances}) == 10  # the two kinds of segmentation are one object, in two forms
    assert len({one.SeriesInstanceUID for one in both}) == 10
    assert all(uid.UID(one).is_valid for one in instances)


def test_ordinary_headers_are_written_without_a_warning(sources):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in (sources["CT series"], sources["DX"]):
            made(one)
            assert one.notes == ()


# --- a refused reading


ADULT = Check("age", False, 40, 5, "the patient is 40 years old; this model learned from patients of 1 to 5 years")
REFUSED = "Not for this patient: a clinician has to decide"
FINDING = {"Finding", "Finding category", "Presence of property", "Probability"}


def refused(of: objects.Source, *checks: Check) -> objects.Result:
    """The result of a reading whose version is not for the patient."""
    prediction = Prediction(
        model="ct-infection", version="v2", classes=("Normal", "Pneumonia"), probabilities=np.array([0.1, 0.9]),
        label="Pneumonia", decision="uncertain: review", rule=DecisionRule(kind="argmax"), heat=np.stack([HEAT, HEAT]),
        checks=(ADULT, *checks), milliseconds=10.0,
    )  # fmt: skip
    return objects.result_of("r-17", prediction, None, READ_AT, of.instances[0])


def test_a_refused_reading_has_no_finding_and_no_probability_in_its_report(sources):
    of = sources["CR"]
    report = objects.structured_report(of, refused(of))
    (group,) = groups(report)
    assert (group.finding_type, group.finding_category) == (None, None)
    assert not {item.ConceptNameCodeSequence[0].CodeMeaning for item in _items(read_back(report))} & FINDING
    assert group.tracking_identifier == "No answer, reading r-17", "no finding would mean that it is normal"
    assert f"{REFUSED}." in texts(report, "Comment")
    assert texts(report, "Why it is left to a person") == [
        "The patient is 40 years old; this model learned from patients of 1 to 5 years."
    ]
    assert f"age: failed. {ADULT.words}" in texts(report, "Check of the image")


def test_a_review_of_a_refused_reading_gives_what_the_person_sees_and_judges_no_answer(sources):
    of = sources["CR"]
    given = refused(of)
    report = objects.reviewed_report(of, given, REVIEW, objects.structured_report(of, given))
    (group,) = groups(report)
    assert (code(group.finding_type)[2], _presence(group)[2]) == ("COVID-19", "Present")
    assert "Assessment of the AI result" not in _values(read_back(report))
    assert not [item for item in _items(read_back(report)) if item.ValueType == "NUM"]
    assert "Review: the model gave no answer. Seen again" in texts(report, "Comment")


def test_a_refused_reading_has_no_segmentation_and_its_picture_no_heat(sources):
    of = sources["CR"]
    with pytest.raises(LungkitError, match="not for this patient, so the model gives no finding"):
        objects.segmentation(of, refused(of))
    capture = objects.secondary_capture(of, refused(of), np.full((64, 64), 0.4, np.float32))
    picture = read_back(capture).pixel_array[:700]
    assert np.ptp(picture, axis=2).max() == 0, "grey"
    assert capture.DerivationDescription == "Picture as the model saw it"


def test_a_refused_result_that_has_a_finding_is_refused(sources):
    for other in ({}, {"classes": (), "probabilities": ()}, {"heat": {}, "label": "", "named": ()}):
        with pytest.raises(LungkitError, match="a refused result has no class"):
            result(sources["CR"], checks=(ADULT,), uncertain=True, reason="Not for adults.", **other)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy, of dicom3tools")
@pytest.mark.parametrize("kind", ["CT slice", "CT series", "hostile CR", "DX", "SC"])
def test_dciodvfy_finds_no_error_in_objects_of_a_refused_reading(sources, kind, tmp_path):
    of = sources[kind]
    given = refused(of)
    report = objects.structured_report(of, given)
    no_class = replace(REVIEW, agrees=None, label="", kind=NOT_ASSESSABLE)
    for name, one in {
        "report": report,
        "review": objects.reviewed_report(of, given, REVIEW, report),
        "without class": objects.reviewed_report(of, given, no_class, report),
        "capture": objects.secondary_capture(of, given, np.full((64, 64), 0.4, np.float32)),
    }.items():
        assert errors_of(one, tmp_path / f"{name}.dcm") <= (FALSE_ALARMS if name == "capture" else set()), name


# --- what a report says


def test_every_class_has_its_group_with_finding_probability_and_presence(sources):
    of = sources["CT series"]
    told = groups(report_of(of))
    assert [code(group.finding_type) for group in told] == [
        ("233604007", "SCT", "Pneumonia"),
        ("17621005", "SCT", "Normal"),
        ("840539006", "SCT", "COVID-19"),
        ("C-448962CE9DA6", "99LUNGKIT", "Something new"),
    ]
    measured = [group.get_measurements() for group in told]
    assert [[code(one.name) for one in of_group] for of_group in measured] == [[("122157", "DCM", "Probability")]] * 4
    assert [one.value for (one,) in measured] == pytest.approx([0.6, 0.123456789, 0.2, 0.076543211], abs=1e-9)
    assert {code(one.unit) for (one,) in measured} == {("1", "UCUM", "no units")}
    presence = [_presence(group) for group in told]
    absent = ("272519000", "SCT", "Absent")
    assert presence == [("52101004", "SCT", "Present"), absent, absent, absent]
    assert {code(site.value) for group in told for site in group.finding_sites} == {
        ("39607008", "SCT", "Lung structure")
    }
    assert [group.tracking_identifier for group in told] == [
        f"{name}, reading r-17" for name in ("Pneumonia", "Normal", "COVID-19", "Something new")
    ]
    assert len({group.tracking_uid for group in told}) == 4


def _presence(group) -> tuple[str, str, str]:
    (one,) = group.get_qualitative_evaluations(codes.PRESENCE)
    assert code(one.name) == ("121052", "DCM", "Presence of property")
    return code(one.value)


def test_a_normal_result_is_reported_too(sources):
    told = groups(report_of(sources["CR"], label="Normal", named=("Normal",), answer="Normal"))
    assert code(told[0].finding_type) == ("17621005", "SCT", "Normal") and _presence(told[0])[2] == "Present"
    assert {_presence(group)[2] for group in told[1:]} == {"Absent"}


def test_what_is_left_to_a_person_is_equivocal_and_says_why(sources):
    report = report_of(sources["CR"], uncertain=True, reason="The image did not pass every input check (kind).")
    assert {_presence(group) for group in groups(report)} == {("42425007", "SCT", "Equivocal")}
    assert texts(report, "Why it is left to a person") == ["The image did not pass every input check (kind)."]
    assert texts(report, "Comment") == ["Uncertain: a clinician has to decide. Probability 0.600."]


def test_a_range_of_grades_is_present_together(sources):
    grades = {"classes": ("CT-0", "CT-1", "CT-2"), "probabilities": (0.1, 0.5, 0.4), "label": "CT-1"}
    told = groups(report_of(sources["CT slice"], **grades, named=("CT-1", "CT-2"), answer="CT-1 to CT-2"))
    assert [_presence(group)[2] for group in told] == ["Present", "Present", "Absent"]
    assert {code(group.finding_type)[1] for group in told} == {"99LUNGKIT"}


def test_a_report_says_who_made_it_of_what_and_that_no_one_has_verified_it(sources):
    of = sources["CT series"]
    report = read_back(report_of(of))
    assert report.SOPClassUID == uid.Comprehensive3DSRStorage and report.Modality == "SR"
    assert (report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag) == (
        "COMPLETE", "PRELIMINARY", "UNVERIFIED",
    )  # fmt: skip
    assert (report.ContentDate, report.ContentTime) == ("20260309", "140500")
    assert "PredecessorDocumentsSequence" not in report
    observer = _values(report)
    assert observer["Device Observer Name"] == "ct-infection@v2"
    assert uid.UID(observer["Device Observer UID"]).is_valid
    assert (observer["Algorithm Name"], observer["Algorithm Version"]) == ("ct-infection", "v2")
    assert observer["Algorithm Family"] == ("123110", "DCM", "Artificial Intelligence")
    assert observer["Procedure reported"] == ("25045-6", "LN", "CT unspecified body region")
    assert observer["Permitted use"].startswith("Research use only. Not a medical device")
    assert texts(report, "Algorithm Parameters")[-1] == "Operating point: The likeliest class is the answer"
    assert texts(report, "Check of the image") == [
        "size: passed. 128 x 128 pixels", "kind: failed. may show something else",
    ]  # fmt: skip
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99LUNGKIT" and scheme.CodingSchemeName


def _values(report: Dataset) -> dict[str, object]:
    """The first value of each name in a report."""
    values: dict[str, object] = {}
    for item in _items(report):
        concept = item.ConceptNameCodeSequence[0]
        value = item.get("TextValue") or item.get("UID") or item.get("PersonName")
        if item.ValueType == "CODE":
            named = item.ConceptCodeSequence[0]
            value = (named.CodeValue, named.CodingSchemeDesignator, named.CodeMeaning)
        values.setdefault(concept.CodeMeaning, value)
    return values


def test_an_x_ray_is_reported_as_one(sources):
    values = _values(read_back(report_of(sources["DX"])))
    assert values["Procedure reported"] == ("43468-8", "LN", "XR unspecified body region")
    assert values["Modality"] == ("DX", "DCM", "Digital Radiography")


def test_the_device_is_the_same_for_every_reading_and_another_for_another_version(sources):
    of = sources["CR"]
    same = {_values(report_of(of, reading=one))["Device Observer UID"] for one in ("1", "2")}
    assert len(same) == 1
    assert _values(report_of(of, version="v3"))["Device Observer UID"] not in same


def test_a_report_names_all_images_and_its_findings_those_that_they_rest_on(sources):
    of = sources["CT series"]
    report = report_of(of, instances=of.instances[1:])
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == of.headers[0].StudyInstanceUID
    (series,) = study.ReferencedSeriesSequence
    assert {one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence} == {*of.instances}
    for group in groups(report):
        images = [item for item in group[0].ContentSequence if item.ValueType == "IMAGE"]
        assert [one.referenced_sop_instance_uid for one in images] == [*of.instances[1:]]


def test_patient_and_study_are_those_of_the_images(sources):
    for one in made(sources["DX"]).values():
        assert (one.PatientName, one.PatientID, one.PatientSex) == ("Doe^Jane", "1234", "F")
        assert (one.StudyInstanceUID, one.StudyID, one.AccessionNumber) == ("1.2.3.4", "7", "X-99")
        assert (str(one.StudyDate), str(one.StudyTime)) == ("20260309", "140000")
        assert "research use only" in one.SeriesDescription


def test_times_are_in_the_zone_of_the_images_or_of_the_reading():
    zoned = source_of(radiograph("CR", TimezoneOffsetFromUTC="-0230"))
    assert read_back(objects.structured_report(zoned, result(zoned))).ContentTime == "113500"
    plain = source_of(radiograph("CR"))
    local = result(plain, read_at=READ_AT.astimezone(timezone(timedelta(hours=11))))
    made_there = read_back(objects.structured_report(plain, local))
    assert (made_there.ContentDate, made_there.ContentTime) == ("20260310", "010500")


# --- reviews


def test_a_review_is_a_new_verified_report_that_names_the_one_before(sources):
    of = sources["CT series"]
    report = report_of(of)
    review = read_back(objects.reviewed_report(of, result(of), REVIEW, report))
    assert review.SOPInstanceUID != report.SOPInstanceUID
    assert (review.VerificationFlag, review.PreliminaryFlag) == ("VERIFIED", "FINAL")
    (observer,) = review.VerifyingObserverSequence
    assert observer.VerifyingObserverName.family_name == "Dr Anna Weber"
    assert observer.VerificationDateTime == "20260309150500+0000"
    (study,) = review.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == report.SOPInstanceUID
    values = _values(review)
    assert values["Observer Type"] == ("121006", "DCM", "Person")
    assert str(values["Person Observer Name"]) == "Dr Anna Weber^"
    assert values["Assessment of the AI result"] == ("AMENDED", "99LUNGKIT", "AI result amended")
    assert "Review: the answer was amended. Seen again" in texts(review, "Comment")


@pytest.mark.parametrize(
    ("agrees", "label", "verdict", "presence"),
    [
        (True, "", "accepted", {"Pneumonia": "Present", "Normal": "Absent"}),
        (True, "Pneumonia", "accepted", {"Pneumonia": "Present", "COVID-19": "Absent"}),
        (False, "Normal", "amended", {"Pneumonia": "Absent", "Normal": "Present", "COVID-19": "Absent"}),
        (False, "Embolism", "amended", {"Pneumonia": "Absent", "Embolism": "Present"}),
        (False, "", "rejected", {"Pneumonia": "Absent", "Normal": "Equivocal"}),
    ],
)
def test_a_review_accepts_amends_or_rejects(sources, agrees, label, verdict, presence):
    of = sources["CR"]
    given, review = result(of), replace(REVIEW, agrees=agrees, label=label)
    report = objects.reviewed_report(of, given, review, objects.structured_report(of, given))
    told = {code(group.finding_type)[2]: _presence(group)[2] for group in groups(report)}
    assert presence.items() <= told.items() and len(told) == 4 + (label == "Embolism")
    assert _values(report)["Assessment of the AI result"][0] == verdict.upper()


def reviewed_without_class(of: objects.Source, kind: str, finding: str = "") -> Dataset:
    """The report with a review that gives no class."""
    finding = finding or ("a broken rib" if kind == OTHER_FINDING else "")
    given, review = result(of), replace(REVIEW, agrees=None, label="", kind=kind, finding=finding)
    return objects.reviewed_report(of, given, review, objects.structured_report(of, given))


@pytest.mark.parametrize(
    ("kind", "finding", "verdict", "concept", "value", "words"),
    [
        (NOT_ASSESSABLE, "", "rejected", "Image Quality", ("RID14", "RADLEX", "Non-diagnostic quality"),
         "The clinician says: not assessable. Seen again"),
        (WRONG_IMAGE, "", "rejected", "Why the person gives no class",
         ("WRONG_IMAGE", "99LUNGKIT", "Wrong image or region"),
         "The clinician says: wrong image or region. Seen again"),
        (OTHER_FINDING, "a broken rib", "amended", "Why the person gives no class",
         ("OTHER_FINDING", "99LUNGKIT", "Another finding"),
         "The clinician says: another finding: a broken rib. Seen again"),
    ],
)  # fmt: skip
def test_a_review_without_a_class_says_why_and_leaves_every_class_open(
    sources, kind, finding, verdict, concept, value, words
):
    report = read_back(reviewed_without_class(sources["CR"], kind, finding))
    assert {_presence(group)[2] for group in groups(report)} == {"Equivocal"} and len(groups(report)) == 4
    values = _values(report)
    assert (values["Assessment of the AI result"][0], values[concept]) == (verdict.upper(), value)
    assert f"Review: the answer was {verdict}. {words}" in texts(report, "Comment")


def test_a_label_next_to_another_finding_is_what_the_person_sees(sources):
    of = sources["CR"]
    given, review = result(of), replace(REVIEW, agrees=None, label="Normal", kind=OTHER_FINDING, finding="a rib")
    report = objects.reviewed_report(of, given, review, objects.structured_report(of, given))
    told = {code(group.finding_type)[2]: _presence(group)[2] for group in groups(report)}
    assert (told["Normal"], told["Pneumonia"]) == ("Present", "Absent")


def test_reviews_for_another_reason_are_other_objects(sources):
    reasons = ((NOT_ASSESSABLE, ""), (WRONG_IMAGE, ""), (OTHER_FINDING, "a"), (OTHER_FINDING, "b"))
    assert len({reviewed_without_class(sources["CR"], *reason).SOPInstanceUID for reason in reasons}) == 4


@pytest.mark.parametrize(("kind", "agrees"), [(CLASS, None), (NOT_ASSESSABLE, True), (WRONG_IMAGE, False)])
def test_a_review_that_contradicts_itself_is_refused(kind, agrees):
    with pytest.raises(LungkitError, match="or why it gives no class"):
        replace(REVIEW, kind=kind, agrees=agrees, label="")


def test_two_reviews_of_a_reading_are_two_objects(sources):
    of = sources["CR"]
    given = result(of)
    first = objects.structured_report(of, given)
    second = objects.reviewed_report(of, given, REVIEW, first)
    third = objects.reviewed_report(of, given, replace(REVIEW, at=REVIEW.at + timedelta(days=1)), second)
    assert len({one.SOPInstanceUID for one in (first, second, third)}) == 3


def test_a_reviewers_name_cannot_break_the_report(sources):
    of = sources["CR"]
    given = result(of)
    review = replace(REVIEW, reviewer="Eve=^\\\n" + "x" * 200, organization="St\\Mary" * 40, comment="\x00" * 9 + "ok")
    report = objects.reviewed_report(of, given, review, objects.structured_report(of, given))
    (observer,) = read_back(report).VerifyingObserverSequence
    assert len(str(observer.VerifyingObserverName)) <= 64 and len(observer.VerifyingOrganization) <= 64


# --- pictures


def test_the_capture_shows_picture_heat_and_words(sources):
    of = sources["CR"]
    one = read_back(objects.secondary_capture(of, result(of), np.full((64, 64), 0.4)))
    assert one.PhotometricInterpretation == "RGB" and one.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    picture = one.pixel_array.astype(int)
    assert picture.shape == (one.Rows, one.Columns, 3) and one.Columns == 768
    assert np.abs(picture[100:300, 100:300] - 102).max() <= 1  # grey 0.4, no heat
    assert np.ptp(picture[500:660, 270:276], axis=-1).min() > 60  # the hottest part
    band = picture[768:]
    assert (band.max(axis=-1) > 200).any() and (band.max(axis=(1, 2)) == 0).any()  # words on black
    assert one.SourceImageSequence[0].ReferencedSOPInstanceUID == of.instances[0]
    assert one.BurnedInAnnotation == "NO"


def test_words_in_the_capture_follow_the_result(sources):
    of, pixels = sources["CR"], np.zeros((64, 64))
    usual = objects.secondary_capture(of, result(of), pixels).pixel_array
    for other in (
        {"version": "v3"},
        {"uncertain": True, "reason": "Near."},
        {"answer": "Normal"},
        {"synthetic": False},
    ):
        assert not np.array_equal(objects.secondary_capture(of, result(of, **other), pixels).pixel_array, usual)


def test_a_capture_names_the_sides_of_a_ct_and_not_those_of_an_x_ray_that_states_none(sources):
    ends = {"CT slice": ["L", "P"], "DX": ["L", "F"], "CR": []}
    for kind, named in ends.items():
        of = sources[kind]
        one = objects.secondary_capture(of, result(of), np.zeros((64, 64)))
        assert [*(one.PatientOrientation or [])] == named


def test_words_of_any_length_fit_into_the_capture(sources):
    of = sources["CR"]
    long = result(of, classes=("W" * 300, "b"), probabilities=(0.7, 0.3), label="W" * 300, named=("W" * 300,),
                  answer="漢字 " * 200)  # fmt: skip
    picture = objects.secondary_capture(of, long, np.zeros((2000, 300))).pixel_array
    assert picture.shape[0] < 1400 and picture[:, -8:].max() == 0


def test_a_result_without_a_heat_map_has_a_grey_capture_and_no_segmentation(sources):
    of = sources["CR"]
    picture = objects.secondary_capture(of, result(of, heat={}), np.full((64, 64), 0.4)).pixel_array
    assert np.ptp(picture[:768].astype(int), axis=-1).max() == 0
    with pytest.raises(LungkitError, match="the result has none"):
        objects.segmentation(of, result(of, heat={}))


def test_a_segmentation_has_the_heat_in_the_geometry_of_its_images(sources):
    of = sources["CT series"]
    heat = {of.instances[2]: HEAT, of.instances[0]: HEAT / 2}
    weights = read_back(objects.segmentation(of, result(of, heat=heat)))
    assert (weights.SegmentationType, weights.NumberOfFrames, weights.Rows) == ("FRACTIONAL", 2, 64)
    places = {
        frame.PlanePositionSequence[0].ImagePositionPatient[2]: pixels.max()
        for frame, pixels in zip(weights.PerFrameFunctionalGroupsSequence, weights.pixel_array, strict=True)
    }
    assert places == pytest.approx(
        {of.headers[2].ImagePositionPatient[2]: 248, of.headers[0].ImagePositionPatient[2]: 124}, abs=1
    )  # enlarged to twice the side, bilinear
    (segment,) = weights.SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "130403"
    assert segment.TrackingUID == groups(report_of(of))[0].tracking_uid
    assert weights.FrameOfReferenceUID == of.headers[0].FrameOfReferenceUID


def test_report_and_segmentation_name_a_class_as_people_do(sources):
    of = sources["CR"]
    named = {"classes": ("glioma", "notumor"), "probabilities": (0.1, 0.9), "label": "notumor", "named": ("notumor",)}
    (segment,) = read_back(objects.segmentation(of, result(of, **named))).SegmentSequence
    assert segment.SegmentLabel == "Support of No tumour"
    first = groups(report_of(of, **named))[0].tracking_identifier
    assert first == segment.TrackingID == "No tumour, reading r-17"


def test_a_binary_segmentation_is_the_heat_from_the_threshold_on(sources):
    of = sources["CR"]
    mask = read_back(objects.segmentation(of, result(of), "BINARY", 0.7)).pixel_array
    wide = read_back(objects.segmentation(of, result(of), "BINARY", 0.3)).pixel_array
    assert mask.shape == (90, 70) and {*np.unique(mask)} == {0, 1}
    assert 0 < mask.sum() < wide.sum()
    with pytest.raises(LungkitError, match="accepted: above 0, up to 1"):
        objects.segmentation(of, result(of), "BINARY", 0)


def test_a_heat_map_of_nothing_is_a_segmentation_of_nothing(sources):
    of = sources["CT slice"]
    empty = objects.segmentation(of, result(of, heat={of.instances[0]: HEAT * 0}))
    assert read_back(empty).pixel_array.max() == 0


@pytest.mark.parametrize("missing", ["ImagePositionPatient", "SliceThickness"])
def test_a_ct_without_geometry_has_no_segmentation_but_a_report(slices, missing):
    of = source_of(changed(slices[0], **{missing: None}))
    objects.structured_report(of, result(of))
    with pytest.raises(objects.SourceRefused, match=f"needs {missing}"):
        objects.segmentation(of, result(of))


# --- headers


def test_only_what_results_need_is_kept_of_a_header(slices):
    file = changed(slices[0], PatientComments="secret", OtherPatientIDs="secret", InstitutionName="secret")
    header = objects.source_header(file)
    assert {element.keyword for element in header} <= {"SpecificCharacterSet", *source.KEPT}
    assert "PixelData" not in header and "secret" not in str(header)


def test_a_hostile_header_is_made_valid_and_what_changed_is_told(sources):
    of = sources["hostile CR"]
    first = of.headers[0]
    assert str(first.PatientName).startswith("Ünsal^Ayşe") and 60 < len(str(first.PatientName).encode()) <= 64
    assert first.StudyDescription == ("Thorax [31m " * 40)[:64].rstrip()
    assert first.StudyID == first.AccessionNumber == ""  # cut, they could be another order's
    assert first.SeriesInstanceUID == f"2.25.{uuid.UUID(HOSTILE['SeriesInstanceUID']).int}"
    assert not any(first.get(keyword) for keyword in ("PatientSex", "PatientBirthDate", "StudyDate", "StudyTime"))
    told = " ".join(of.notes)
    for keyword in ("PatientName", "StudyID", "SeriesInstanceUID", "StudyDate"):
        assert keyword in told
    assert "Ayşe" not in told
    assert [*of.notes] == texts(report_of(of), "What was changed of the header")


@pytest.mark.parametrize("stated", [b"ISO_IR 192", b"ISO_IR 999", b"ISO_IR 100"])
def test_a_wrong_character_set_changes_letters_but_breaks_nothing(stated):
    file = radiograph("CR", PatientName="Ünsal^Ayşe").replace(b"ISO_IR 192", stated)
    name = str(source_of(file).headers[0].PatientName)
    assert "^" in name and (name == "Ünsal^Ayşe" or stated != b"ISO_IR 192")


@pytest.mark.parametrize(
    ("sets", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 144", "Иванов^Иван"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_in_other_character_sets_are_kept(sets, name):
    image = pydicom.dcmread(io.BytesIO(radiograph("CR")))
    image.SpecificCharacterSet, image.PatientName = sets, name
    of = source_of(filed(image))
    assert str(of.headers[0].PatientName) == name and not of.notes
    assert str(read_back(report_of(of)).PatientName) == name


def test_an_identifier_that_is_too_long_is_left_empty():
    of = source_of(radiograph("CR", PatientID="9" * 65))
    assert of.headers[0].PatientID == "" and "PatientID" in of.notes[0] and "99" not in of.notes[0]
    assert source_of(radiograph("CR", PatientID="9" * 64)).headers[0].PatientID == "9" * 64
    assert source_of(radiograph("CR", PatientID="1\\2")).headers[0].PatientID == ""


def test_a_uuid_in_place_of_a_uid_becomes_the_uid_of_that_uuid():
    given = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"  # the example of PS3.5, B.2
    of = source_of(radiograph("CR", StudyInstanceUID=given))
    assert of.headers[0].StudyInstanceUID == "2.25.329800735698586629295641978511506172918"


def test_images_without_uids_of_their_own_get_some_that_stay(slices):
    bare = [changed(file, SOPInstanceUID="", SeriesInstanceUID=None, FrameOfReferenceUID="") for file in slices]
    bare = [file.replace(b"\2\0\3\0UI", b"\2\0\4\0UI") for file in bare]  # nor before the header
    one, again = source_of(*bare), source_of(*bare)
    assert one.instances == again.instances and len({*one.instances}) == 3
    assert len(one.notes) == 3


@pytest.mark.parametrize(
    "impossible",
    [
        {"ImageOrientationPatient": "1\\1\\1\\1\\1\\1"},
        {"ImagePositionPatient": "nan\\0\\0"},
        {"PixelSpacing": "0\\0"},
        {"StudyDate": "20260231"},
        {"PatientWeight": "-70"},
    ],
)
def test_what_cannot_be_is_left_out_and_named(slices, impossible):
    of = source_of(changed(slices[0], **impossible))
    (keyword,) = impossible
    assert not of.headers[0].get(keyword) and of.notes[0].startswith(keyword) and len(of.notes) == 1


@pytest.mark.parametrize("given", ["6.7.8", "1", "1..2", ".1.2", "1.2.", "1.2." + "3" * 61, "1.2.a"])
def test_what_is_no_uid_is_replaced_by_one_that_stays(given):
    one, again = (source_of(radiograph("CR", StudyInstanceUID=given)).headers[0].StudyInstanceUID for _ in "12")
    assert one == again and one.startswith("2.25.") and one.is_valid


def test_a_uid_with_leading_zeros_is_kept_because_the_pacs_knows_the_study_by_it():
    assert source_of(radiograph("CR", StudyInstanceUID="1.02.3")).headers[0].StudyInstanceUID == "1.02.3"


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ({"StudyInstanceUID": None}, "no StudyInstanceUID"),
        ({"SOPClassUID": None}, "SOPClassUID missing"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "none of a CT or X-ray image"),
        ({"Rows": None}, "no Rows"),
    ],
)
def test_what_may_not_be_made_up_is_refused_by_name(missing, words):
    with pytest.raises(objects.SourceRefused, match=words):
        source_of(radiograph("CR", **missing))


def test_images_of_two_studies_are_refused(slices):
    with pytest.raises(objects.SourceRefused, match="differ in StudyInstanceUID"):
        source_of(slices[0], changed(slices[1], StudyInstanceUID="1.2.3"))


def test_a_result_about_an_image_that_is_not_there_is_refused(sources):
    of = sources["CR"]
    with pytest.raises(objects.SourceRefused, match="not one of its source"):
        objects.structured_report(of, result(of, instances=("1.2.3",)))


@pytest.mark.parametrize("content", [b"", b"DICM" * 40, bytes(300)])
def test_what_is_no_header_is_refused(content):
    with pytest.raises(objects.SourceRefused):
        objects.source_of(objects.source_header(content))


# --- from a prediction


@pytest.mark.parametrize(
    "wrong",
    [
        {"probabilities": (0.5, 0.5)},
        {"probabilities": (0.5, 0.5, 0.5, 0.5)},
        {"named": ("Cat",)},
        {"uncertain": True},
        {"read_at": datetime(2026, 3, 9)},
    ],
)
def test_a_result_that_contradicts_itself_is_refused(sources, wrong):
    with pytest.raises(LungkitError):
        result(sources["CR"], **wrong)


def test_a_prediction_becomes_a_result():
    card = model_card()
    classes = card.classes
    share = np.full(len(classes), 0.2 / (len(classes) - 1))
    share[-1] = 0.8
    passed = (Check("size", True, 128, 64, "128 x 128 pixels"),)
    prediction = Prediction(
        "demo", "v1", classes, share, classes[-1], classes[-1], card.rule, np.stack([HEAT] * len(classes)), passed, 9.0
    )
    sure = objects.result_of("r-1", prediction, card, READ_AT, "1.2.3")
    assert (sure.answer, sure.uncertain, sure.reason, sure.probability) == (classes[-1], False, "", pytest.approx(0.8))
    assert "Operating point" in sure.rule and sure.heat["1.2.3"].shape == HEAT.shape
    unsure = objects.result_of("r-1", replace(prediction, decision="uncertain: review"), card, READ_AT, "1.2.3")
    assert unsure.uncertain and "band of uncertainty" in unsure.reason and classes[-1] in unsure.reason
    failed = replace(prediction, decision="uncertain: review", checks=CHECKS)
    assert "(kind)" in objects.result_of("r-1", failed, card, READ_AT, "1.2.3").reason


def test_a_picture_in_hounsfield_units_is_refused_and_not_drawn_black_and_white(sources):
    of = sources["CR"]
    with pytest.raises(
        objects.SourceRefused, match="greys from 0 to 1, not -800 to -800: put a CT through its window first"
    ):
        objects.secondary_capture(of, result(of), np.full((64, 64), -800.0))
