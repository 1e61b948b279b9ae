"""Coded concepts: of SNOMED CT and DICOM where there is one, of lungkit's own scheme otherwise."""

import hashlib

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.uid import ComputedRadiographyImageStorage

from lungkit.clinic.records.tables import NOT_ASSESSABLE, OTHER_FINDING, WRONG_IMAGE
from lungkit.gateway.objects.source import Source, one_line
from lungkit.models.class_names import class_name

SCHEME = "99LUNGKIT"

LUNG = CodedConcept("39607008", "SCT", "Lung structure")
PRESENT = CodedConcept("52101004", "SCT", "Present")
ABSENT = CodedConcept("272519000", "SCT", "Absent")
EQUIVOCAL = CodedConcept("42425007", "SCT", "Equivocal")
PRESENCES = {"present": PRESENT, "absent": ABSENT, "equivocal": EQUIVOCAL}
CLINICAL_FINDING = CodedConcept("404684003", "SCT", "Clinical finding")
SPATIAL_CONCEPT = CodedConcept("309825002", "SCT", "Spatial and Relational Concept")
PRESENCE = CodedConcept("121052", "DCM", "Presence of property")
PROBABILITY = CodedConcept("122157", "DCM", "Probability")
NO_UNITS = CodedConcept("1", "UCUM", "no units")
ARTIFICIAL_INTELLIGENCE = CodedConcept("123110", "DCM", "Artificial Intelligence")
GRAD_CAM = CodedConcept("130403", "DCM", "Gradient-weighted class activation")
LIBRARY_ENTRY = CodedConcept("260753009", "SCT", "Source")
COMMENT = CodedConcept("121106", "DCM", "Comment")
CT_PROCEDURE = CodedConcept("25045-6", "LN", "CT unspecified body region")
XRAY_PROCEDURE = CodedConcept("43468-8", "LN", "XR unspecified body region")
IMAGING_PROCEDURE = CodedConcept("18748-4", "LN", "Diagnostic imaging study")
SOFTWARE = CodedConcept("706689003", "SCT", "Application program software")

COMPUTED_TOMOGRAPHY = CodedConcept("CT", "DCM", "Computed Tomography")
COMPUTED_RADIOGRAPHY = CodedConcept("CR", "DCM", "Computed Radiography")
DIGITAL_RADIOGRAPHY = CodedConcept("DX", "DCM", "Digital Radiography")

REASON = CodedConcept("REASON", SCHEME, "Why it is left to a person")
CHECK = CodedConcept("CHECK", SCHEME, "Check of the image")
USE = CodedConcept("USE", SCHEME, "Permitted use")
SOURCE_NOTE = CodedConcept("SOURCE", SCHEME, "What was changed of the header")
ASSESSMENT = CodedConcept("ASSESSMENT", SCHEME, "Assessment of the AI result")
VERDICTS = {
    "accepted": CodedConcept("ACCEPTED", SCHEME, "AI result accepted"),
    "amended": CodedConcept("AMENDED", SCHEME, "AI result amended"),
    "rejected": CodedConcept("REJECTED", SCHEME, "AI result rejected"),
}

IMAGE_QUALITY = CodedConcept("111101", "DCM", "Image Quality")
NON_DIAGNOSTIC = CodedConcept("RID14", "RADLEX", "Non-diagnostic quality")
REASON_NO_CLASS = CodedConcept("NO_CLASS", SCHEME, "Why the person gives no class")
NO_CLASS = {  # what a report says of a review without a class: a concept's name and its value
    NOT_ASSESSABLE: (IMAGE_QUALITY, NON_DIAGNOSTIC),
    WRONG_IMAGE: (REASON_NO_CLASS, CodedConcept("WRONG_IMAGE", SCHEME, "Wrong image or region")),
    OTHER_FINDING: (REASON_NO_CLASS, CodedConcept("OTHER_FINDING", SCHEME, "Another finding")),
}

_NORMAL = ("17621005", "Normal")
_COVID = ("840539006", "COVID-19")
_BACTERIAL, _VIRAL = ("53084003", "Bacterial pneumonia"), ("75570004", "Viral pneumonia")
_FINDINGS = {  # by the letters and digits of a class's name
    "normal": _NORMAL,
    "pneumonia": ("233604007", "Pneumonia"),
    **dict.fromkeys(("covid", "covid19"), _COVID),
    **dict.fromkeys(("bacterial", "bacterialpneumonia"), _BACTERIAL),
    **dict.fromkeys(("viral", "viralpneumonia"), _VIRAL),
}


def finding(name: str) -> CodedConcept:
    """The concept of a class: of SNOMED CT where it is a known one, of lungkit's scheme otherwise.

    A code of the scheme is derived from the class's name: the same name has the same code everywhere.
    """
    plain = "".join(letter for letter in name.casefold() if letter.isalnum())
    if plain in _FINDINGS:
        value, meaning = _FINDINGS[plain]
        return CodedConcept(value, "SCT", meaning)
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    meaning = one_line(class_name(name).replace("\\", "/"))[:64].rstrip()  # a backslash would divide it into two values
    return CodedConcept(f"C-{digest.upper()}", SCHEME, meaning or "class without a name")


def modality(source: Source) -> CodedConcept:
    """Of the images."""
    if source.is_ct:
        return COMPUTED_TOMOGRAPHY
    computed = source.headers[0].SOPClassUID == ComputedRadiographyImageStorage
    return COMPUTED_RADIOGRAPHY if computed else DIGITAL_RADIOGRAPHY


def scheme() -> CodingSchemeIdentificationItem:
    """Lungkit's own coding scheme, and the organization that is responsible for it."""
    return CodingSchemeIdentificationItem(
        designator=SCHEME,
        name="lungkit's codes for classes, checks and reviews",
        responsible_organization="lungkit",
    )
