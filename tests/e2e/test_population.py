"""In a browser: a model of children says that an adult is not for it, and a turned X-ray is turned before it is read.

The model is the committed one; the X-rays are made by a program.
"""

import shutil
from datetime import date
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from playwright import sync_api
from pydicom import Dataset, dcmwrite, uid
from pydicom.dataset import FileMetaDataset

from lungkit.models import graph, registry
from tests.cards import model_card
from tests.shipped import export

CHILD = str(date.today().year - 3)


@pytest.fixture(scope="module")
def clinic(start_clinic, tmp_path_factory):
    """With the committed model of children's X-rays, and one of adults that only has a card."""
    folder = tmp_path_factory.mktemp("clinic")
    shipped = export(tmp_path_factory.mktemp("shipped"))
    shutil.copytree(shipped / "chest-xray-pneumonia", folder / "artifacts" / "chest-xray-pneumonia")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGKIT_ARTIFACTS", str(folder / "artifacts"))
        card = model_card(modality="X-ray", synthetic=False, about={"ages": [18, None], "question": "Adults?"})
        registry.add("adults", card, lambda staging: (staging / graph.FILE).write_bytes(b"<net/>"))
    return start_clinic(folder)


def drawn(side: int = 256) -> np.ndarray:
    """Two dark lungs in a bright chest: uint8 (side, side)."""
    down, right = np.mgrid[0:side, 0:side] / side
    lungs = sum((((right - x) / 0.15) ** 2 + ((down - 0.5) / 0.33) ** 2 < 1) for x in (0.3, 0.7))
    return (170 - 110 * (lungs > 0) + 20 * down).astype(np.uint8)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("xray") / "drawn.png"
    PIL.Image.fromarray(drawn()).save(path)
    return path


@pytest.fixture(scope="module")
def turned(tmp_path_factory) -> Path:
    """A radiograph whose header says that it lies turned by 90° to the left."""
    image, pixels = Dataset(), np.rot90(drawn())
    image.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    image.SOPInstanceUID, image.Modality, image.ViewPosition = "1.2.3.4.5", "DX", "PA"
    image.PatientOrientation, image.PhotometricInterpretation = ["F", "R"], "MONOCHROME2"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PixelRepresentation = *pixels.shape, 1, 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelData = 7, np.ascontiguousarray(pixels).tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    path = tmp_path_factory.mktemp("xray") / "turned.dcm"
    dcmwrite(path, image, enforce_file_format=True)
    return path


def test_an_adult_is_not_for_a_model_of_children_before_the_upload_and_after_it(visit, picture):
    visitor = visit("ada")
    visitor.new_patient("P-1950", "Old Patient", "1950")
    visitor.sees("Not for this patient", "this model learned from patients of 1 to 5 years")
    visitor.upload(picture)
    assert "Not for this patient" in visitor.line(picture)
    visitor.sees("The model gives no finding", "What the model computed means nothing here")
    shown = visitor.page.locator(".reading").inner_text()
    assert "Nearest class" not in shown
    assert visitor.page.locator(".probabilities").count() == 0
    assert not visitor.usable()
    visitor.go("Worklist")
    visitor.sees("✗ Not for this patient")


def test_a_model_that_is_for_the_patient_is_offered_before_the_upload(visit):
    visitor = visit("ada")
    visitor.new_patient("P-1951", "Old Patient", "1951")
    visitor.page.get_by_role("button", name="Use adults instead").click()
    visitor.sees("adults@v1 reads chest X-rays")
    sync_api.expect(visitor.page.get_by_text("Not for this patient")).to_have_count(0)


def test_a_turned_x_ray_is_turned_and_read_again_and_both_readings_are_kept(visit, turned):
    visitor = visit("ada")
    visitor.new_patient("P-child", "Young Patient", CHILD)
    assert visitor.page.get_by_text("Not for this patient").count() == 0
    visitor.upload(turned)
    visitor.sees("Review needed", "turned by 90° to the left", "does not lie upright")
    chosen = visitor.page.get_by_label("Turn the image").locator("option:checked").inner_text()
    assert chosen.replace("\xa0", " ") == "Turn by 90° to the right"
    assert not visitor.usable()
    visitor.page.get_by_role("button", name="Turn it and read again").click()
    visitor.sees("This image was read again", "turned by 90° to the right before it was read")
    visitor.go("Worklist")
    visitor.sees("Replaced by a later reading")
