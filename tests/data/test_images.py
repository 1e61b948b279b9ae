"""The reader and the preprocessing: what each format becomes, and what is refused by which rule."""

import io
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL import ImageFile
from pydicom import Dataset, dcmread, dcmwrite, uid
from pydicom.encaps import encapsulate

from lungkit.data import dicom as dicom_reader
from lungkit.data import images, preprocess
from lungkit.data.images import Image, ImageRefused, probe, read
from lungkit.data.preprocess import Preprocessing, prepare
from lungkit.errors import LungkitError

RAMP = np.linspace(0, 255, 40 * 50).reshape(40, 50).astype(np.uint8)


def picture(array=RAMP, kind="PNG", mode=None, **options) -> bytes:
    content = io.BytesIO()
    made = PIL.Image.fromarray(array)
    (made.convert(mode) if mode else made).save(content, kind, **options)
    return content.getvalue()


def tiff(array, more: dict[int, int]) -> bytes:
    """An uncompressed little-endian TIFF by hand: Pillow rewrites the tags that a test is about."""
    height, width = array.shape
    entries = {256: width, 257: height, 258: 8 * array.dtype.itemsize, 259: 1, 262: 1, 277: 1, 278: height}
    entries |= {279: array.nbytes} | more
    entries[273] = 8 + 2 + 12 * (len(entries) + 1) + 4
    fields = b"".join(struct.pack("<2H2I", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + fields + bytes(4) + array.tobytes()


def dicom(array=RAMP, *, syntax=uid.ExplicitVRLittleEndian, frames=None, preamble=b"", **tags) -> bytes:
    """A small DICOM file; a tag set to None is left out. Compressed frames are given ready-made."""
    made = Dataset()
    made.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    made.SOPInstanceUID = uid.generate_uid()
    made.PatientName, made.Modality, made.BodyPartExamined = "Doe^Jane", "DX", "CHEST"
    made.Rows, made.Columns = array.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    if array.ndim == 3:
        made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.BitsAllocated = made.BitsStored = 8 * array.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(array.dtype.kind == "i")
    made.PixelData = array.astype(array.dtype.newbyteorder(">" if syntax == uid.ExplicitVRBigEndian else "<")).tobytes()
    if frames:
        made.PixelData = encapsulate(frames)
    made["PixelData"].VR = "OW" if made.BitsAllocated == 16 else "OB"
    for keyword, value in tags.items():
        if value is None:
            made.pop(keyword, None)
        else:
            setattr(made, keyword, value)
    made.file_meta = Dataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.get("SOPClassUID", "1.2.3")
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.preamble = preamble.ljust(128, b"\0")
    content = io.BytesIO()
    dcmwrite(content, made, enforce_file_format=True)
    return content.getvalue()


def ct(array, **tags) -> bytes:
    defaults = {"SOPClassUID": uid.CTImageStorage, "Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}
    return dicom(array, **(defaults | tags))


def lut(first: int, entries: list[int], bits: int) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return [item]


def refusal(source, name=None) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        read(source, name)
    return caught.value


# --- pictures ----------------------------------------------------------------------------------------------------


def test_an_8_bit_grey_png_is_divided_by_255():
    image = read(picture())
    assert image.pixels.dtype == np.float32
    np.testing.assert_array_equal(image.pixels, RAMP.astype(np.float32) / 255)
    assert (image.units, image.modality, image.tags["format"]) == ("intensity", "", "PNG")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_saved_in_colour_or_palette_is_the_same_picture(mode, kind):
    if (mode, kind) == ("P", "PNG"):
        assert PIL.Image.open(io.BytesIO(picture(mode="P"))).mode == "P"
    np.testing.assert_array_equal(read(picture(kind=kind, mode=mode)).pixels, read(picture()).pixels)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_read_in_grey_colour_and_print_colours(mode):
    flat = np.full((40, 50), 128, np.uint8)
    np.testing.assert_allclose(read(picture(flat, "JPEG", mode)).pixels, 128 / 255, atol=0.02)


def test_a_bilevel_picture_is_black_and_white():
    assert set(np.unique(read(picture(RAMP > 100)).pixels)) == {0.0, 1.0}


def test_transparent_parts_are_black():
    pixels = np.full((40, 50, 4), 255, np.uint8)
    pixels[:20, :, 3] = 0
    image = read(picture(pixels))
    assert image.pixels[:20].max() == 0
    assert image.pixels[20:].min() == 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_12_bit_picture_in_a_16_bit_file_uses_the_whole_range(kind):
    twelve_bits = np.linspace(0, 4095, 40 * 50).reshape(40, 50).astype(np.uint16)
    pixels = read(picture(twelve_bits, kind)).pixels
    low, high = np.percentile(twelve_bits, (0.5, 99.5))
    np.testing.assert_allclose(pixels, np.clip((twelve_bits - low) / (high - low), 0, 1), atol=1e-5)


def test_a_16_bit_picture_of_nearly_one_value_keeps_its_marks():
    page = np.zeros((100, 100), np.uint16)
    page[50, 50] = 900
    assert read(picture(page)).pixels[50, 50] == 1


def test_a_constant_16_bit_picture_is_black_and_not_an_error():
    assert read(picture(np.full((40, 50), 777, np.uint16))).pixels.max() == 0


def test_a_float_tiff_is_read_and_one_with_holes_is_refused():
    values = np.linspace(-3, 7, 2000, dtype=np.float32).reshape(40, 50)
    assert read(picture(values, "TIFF")).pixels.max() == 1
    values[0, 0] = np.nan
    assert refusal(picture(values, "TIFF")).rule.startswith("damaged: pixel values are not finite")


@pytest.mark.parametrize("depth", ["u1", "<u2"])
def test_a_tiff_whose_zero_is_white_is_inverted(depth):
    ramp = RAMP.astype(depth)
    inverted, plain = (read(tiff(ramp, {262: white})).pixels for white in (0, 1))
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_set_upright_and_probed_so(kind, orientation):
    upright = np.zeros((32, 64), np.uint8)
    upright[:16, :32] = 255  # the bright quarter belongs at the top left
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    content = picture(np.ascontiguousarray(turns[orientation]), kind, exif=exif)
    np.testing.assert_allclose(read(content).pixels, upright / 255, atol=0.02)
    assert probe(content) == (64, 32, "")


def test_an_orientation_after_the_pixels_of_a_png_is_ignored_by_read_and_probe():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    content = picture(exif=exif)
    start = content.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", content[start : start + 4])[0]
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    assert probe(moved)[:2] == (50, 40)
    assert read(moved).pixels.shape == (40, 50)


def test_the_format_is_found_from_the_content_not_the_name(tmp_path):
    file = tmp_path / "scan.png"
    file.write_bytes(picture(kind="JPEG"))
    assert read(file).tags["format"] == "JPEG"
    file.write_bytes(dicom())
    assert read(file).modality == "DX"


@pytest.mark.parametrize("make", [picture, dicom], ids=["png", "dicom"])
def test_a_path_bytes_and_an_open_file_give_identical_tensors(tmp_path, make):
    content, file = make(), tmp_path / "scan"
    file.write_bytes(content)
    used = io.BytesIO(content)
    used.read()  # as an upload that was already hashed
    with file.open("rb") as opened:
        sources = [file, str(file), content, bytearray(content), opened, used]
        tensors = [prepare(read(source), Preprocessing()).tensor for source in sources]
        assert not opened.closed
    for tensor in tensors[1:]:
        np.testing.assert_array_equal(tensor, tensors[0])
    assert len({probe(source) for source in (file, str(file), content, used)}) == 1


# --- DICOM -------------------------------------------------------------------------------------------------------


def test_ct_is_in_hounsfield_units_with_padding_as_air():
    stored = np.full((32, 32), 1024, np.int16)
    stored[0, 0], stored[0, 1], stored[0, 2] = -2000, 24, -30000
    image = read(ct(stored, PixelPaddingValue=-2000))
    assert (image.units, image.modality) == ("HU", "CT")
    assert image.pixels[0, :4].tolist() == [-1024, -1000, -1024, 0]


def test_padding_of_a_ct_is_air_even_if_its_value_would_be_bone():
    stored = np.full((32, 32), 1024, np.uint16)
    stored[0, 0], stored[0, 1] = 5000, 5002
    image = read(ct(stored, PixelPaddingValue=5000, PixelPaddingRangeLimit=5002))
    assert image.pixels[0, :3].tolist() == [-1024, -1024, 0]


def test_the_window_and_the_photometric_interpretation_do_not_change_hounsfield_units():
    stored = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    inverted = read(ct(stored, PhotometricInterpretation="MONOCHROME1", WindowCenter=40, WindowWidth=80))
    np.testing.assert_array_equal(inverted.pixels, stored.astype(np.float32) - 1024)


def test_a_secondary_capture_of_a_ct_screen_is_intensity():
    image = read(dicom(SOPClassUID=uid.SecondaryCaptureImageStorage, Modality="CT"))
    assert (image.units, image.modality) == ("intensity", "CT")


def test_monochrome1_and_its_monochrome2_twin_are_the_same_picture():
    stored = (np.arange(1600, dtype=np.uint16) ** 2 // 100).reshape(40, 40)
    twin = dicom(stored.max() - stored, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read(twin).pixels, read(dicom(stored)).pixels, atol=1e-6)


def test_8_bits_without_a_window_keep_the_stored_range():
    np.testing.assert_array_equal(read(dicom(RAMP // 2)).pixels, (RAMP // 2).astype(np.float32) / 255)
    np.testing.assert_allclose(read(dicom(RAMP // 16, BitsStored=4, HighBit=3)).pixels, RAMP // 16 / 15, atol=1e-6)


def test_signed_8_bits_start_below_zero():
    signed = (RAMP.astype(np.int16) - 128).astype(np.int8)
    np.testing.assert_allclose(read(dicom(signed)).pixels, RAMP / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", lambda x: np.clip((x - 999.5) / 399 + 0.5, 0, 1)),
        ("LINEAR_EXACT", lambda x: np.clip((x - 1000) / 400 + 0.5, 0, 1)),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 1000.0) / 400))),
    ],
)
def test_the_first_window_is_applied_after_the_rescale(function, expected):
    stored = np.arange(1600, dtype=np.uint16).reshape(40, 40)
    content = dicom(
        stored,
        RescaleSlope=2,
        RescaleIntercept=-100,
        WindowCenter=[1000, 5],
        WindowWidth=[400, 1],
        VOILUTFunction=function,
    )
    np.testing.assert_allclose(read(content).pixels, expected(stored * 2.0 - 100), atol=1e-5)


def test_a_window_of_no_width_is_not_applied():
    stored = np.arange(1600, dtype=np.uint16).reshape(40, 40)
    content = dicom(stored, WindowCenter=5, WindowWidth=0)
    np.testing.assert_array_equal(read(content).pixels, read(dicom(stored)).pixels)


def test_a_lookup_table_comes_before_the_window_and_keeps_12_bits_apart():
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    table = [value * 255 // 4095 for value in range(4096)]  # 12 bits in, 8 bits out
    content = dicom(stored, VOILUTSequence=lut(0, table, 8), WindowCenter=1, WindowWidth=2)
    np.testing.assert_allclose(read(content).pixels, np.reshape(table, (64, 64)) / 255, atol=1e-6)


def test_values_outside_a_lookup_table_take_its_ends():
    stored = np.arange(1600, dtype=np.uint16).reshape(40, 40)
    content = dicom(stored, VOILUTSequence=lut(100, list(range(0, 4096, 16)), 12))
    expected = np.clip(stored.astype(int) - 100, 0, 255) * 16 / 4095
    np.testing.assert_allclose(read(content).pixels, expected, atol=1e-6)


def test_a_modality_lookup_table_is_applied():
    stored = np.arange(1600, dtype=np.uint16).reshape(40, 40)
    falling = lut(0, list(range(1599, -1, -1)), 12)
    np.testing.assert_allclose(
        read(dicom(stored, ModalityLUTSequence=falling)).pixels, 1 - read(dicom(stored)).pixels, atol=1e-6
    )


def test_padding_of_an_x_ray_is_black_and_does_not_stretch_the_picture():
    stored = np.arange(1600, dtype=np.uint16).reshape(40, 40)
    padded = np.vstack([stored, np.full((8, 40), 60000, np.uint16)])
    image = read(dicom(padded, PixelPaddingValue=60000))
    assert image.pixels[40:].max() == 0
    np.testing.assert_allclose(image.pixels[:40], read(dicom(stored)).pixels, atol=1e-6)


def test_colour_becomes_luminance():
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[..., 1] = 255
    np.testing.assert_allclose(read(dicom(colours)).pixels, 0.587, atol=0.003)


def test_palette_colours_become_luminance():
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    entries = (np.arange(256, dtype="<u2") * 257).tobytes()
    for colour in ("Red", "Green", "Blue"):
        tags |= {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 16]}
        tags |= {f"{colour}PaletteColorLookupTableData": entries}
    np.testing.assert_array_equal(read(dicom(RAMP, **tags)).pixels, read(picture()).pixels)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_every_uncompressed_transfer_syntax_gives_the_same_picture(syntax):
    stored = np.arange(1600, dtype=np.uint16).reshape(40, 40)
    np.testing.assert_array_equal(read(dicom(stored, syntax=syntax)).pixels, read(dicom(stored)).pixels)


def compressed(array, syntax, **tags) -> bytes:
    """By pydicom's own encoders."""
    made = dcmread(io.BytesIO(dicom(array, **tags)))
    made.compress(syntax, generate_instance_uid=False)
    content = io.BytesIO()
    made.save_as(content)
    return content.getvalue()


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("array", [RAMP, RAMP.astype(np.uint16) * 100, np.dstack([RAMP] * 3)], ids=["8", "16", "rgb"])
def test_lossless_compression_changes_nothing(syntax, array):
    np.testing.assert_array_equal(read(compressed(array, syntax)).pixels, read(dicom(array)).pixels)


def test_a_baseline_jpeg_inside_dicom_is_read():
    content = dicom(syntax=uid.JPEGBaseline8Bit, frames=[picture(kind="JPEG")])
    np.testing.assert_allclose(read(content).pixels, RAMP / 255, atol=0.03)


def test_a_colour_jpeg_inside_dicom_is_read():
    frames = [picture(np.dstack([RAMP] * 3), "JPEG")]
    content = dicom(
        np.dstack([RAMP] * 3), syntax=uid.JPEGBaseline8Bit, frames=frames, PhotometricInterpretation="YBR_FULL_422"
    )
    np.testing.assert_allclose(read(content).pixels, RAMP / 255, atol=0.03)


def test_tags_show_the_view_and_never_the_patient():
    image = read(dicom(ViewPosition="PA", PixelSpacing=[0.5, 0.5], PatientID="4711", InstitutionName="Clinic"))
    assert image.tags["view"] == "PA"
    assert image.tags["body_part"] == "CHEST"
    assert image.tags["rows"] == "40"
    assert image.tags["pixel_spacing"] == "0.5\\0.5"
    assert not any(word in str(image.tags) for word in ("Doe", "4711", "Clinic"))


def test_a_group_length_before_the_pixels_is_skipped():
    content = dicom()
    pixels = content.index(b"\xe0\x7f\x10\0")
    length = struct.pack("<HH2sHI", 0x7FE0, 0, b"UL", 4, 2012)
    assert read(content[:pixels] + length + content[pixels:]).modality == "DX"


def test_bytes_after_the_pixels_are_not_read():
    assert read(dicom() + b"\xfc\xff\xfc\xffSQ\0\0" + bytes(5000)).modality == "DX"


def test_a_missing_modality_follows_from_the_kind_of_object():
    assert read(dicom(Modality=None)).modality == "DX"


def test_a_tiff_header_in_the_preamble_is_legitimate():
    assert read(dicom(preamble=b"II*\0")).modality == "DX"


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [
        b"MZ\x90",
        b"\x7fELF",
        b"#!/bin/sh\n",
        b"\xcf\xfa\xed\xfe",
        b"\xca\xfe\xba\xbe",
        b"PK\x03\x04",
        b"%PDF-",
        b"<html>",
    ],
)
def test_an_executable_in_the_preamble_is_refused(start):
    error = refusal(dicom(preamble=start))
    assert error.rule.startswith("executable in the preamble")
    with pytest.raises(ImageRefused, match="executable in the preamble"):
        probe(dicom(preamble=start))


X = uid.UID


@pytest.mark.parametrize(
    ("rule", "tags"),
    [
        ("encapsulated document: Encapsulated PDF", {"SOPClassUID": uid.EncapsulatedPDFStorage, "Modality": "DOC"}),
        ("encapsulated document: Encapsulated CDA", {"SOPClassUID": uid.EncapsulatedCDAStorage}),
        ("encapsulated document: Encapsulated STL", {"SOPClassUID": uid.EncapsulatedSTLStorage}),
        ("unsupported modality: MR", {"Modality": "MR", "SOPClassUID": uid.MRImageStorage}),
        ("unsupported modality: MR", {"Modality": "MR", "SOPClassUID": uid.SecondaryCaptureImageStorage}),
        ("unsupported modality: US", {"Modality": "US", "SOPClassUID": uid.UltrasoundImageStorage}),
        ("unsupported modality: SR", {"Modality": "SR", "SOPClassUID": uid.BasicTextSRStorage}),
        ("unsupported modality: PR", {"Modality": "PR", "SOPClassUID": uid.GrayscaleSoftcopyPresentationStateStorage}),
        ("unsupported DICOM object: MR Image Storage", {"SOPClassUID": uid.MRImageStorage, "Modality": None}),
        ("unsupported DICOM object: Grayscale Softcopy", {"SOPClassUID": X("1.2.840.10008.5.1.4.1.1.11.1")}),
        ("unsupported DICOM object: Enhanced CT", {"SOPClassUID": uid.EnhancedCTImageStorage, "Modality": "CT"}),
        ("no pixel data", {"PixelData": None}),
        ("multi-frame: 3 frames", {"NumberOfFrames": 3}),
        ("too small: 20 x 40", {"Columns": 20}),
        ("damaged: the header has no Rows", {"Rows": None}),
        ("damaged: the header has no BitsStored", {"BitsStored": None}),
        ("pixel format not accepted: BitsAllocated 8, BitsStored 9, HighBit 7", {"BitsStored": 9}),
        ("pixel format not accepted: PhotometricInterpretation MONOCHROME2, SamplesPerPixel 4", {"SamplesPerPixel": 4}),
        ("pixel format not accepted: PhotometricInterpretation HSV", {"PhotometricInterpretation": "HSV"}),
        ("too many pixels: 65000 x 65000", {"Rows": 65000, "Columns": 65000}),
        ("truncated: 2000 of 2400 bytes", {"Rows": 48}),
    ],
)
def test_a_dicom_that_is_no_chest_image_is_refused_by_its_rule(rule, tags):
    assert refusal(dicom(**tags)).rule.startswith(rule)


def test_a_rescale_beyond_all_numbers_is_refused():
    assert refusal(ct(RAMP.astype(np.uint16), RescaleSlope="1e38")).rule.startswith("damaged: pixel values are not")


def test_32_bits_are_refused():
    assert "SamplesPerPixel 1, BitsAllocated 32" in refusal(dicom(RAMP.astype(np.uint32))).rule


@pytest.mark.parametrize(
    ("rule", "tags"),
    [
        ("CT not in Hounsfield units", {"RescaleSlope": None}),
        ("CT not in Hounsfield units", {"RescaleIntercept": None}),
        ("CT not in Hounsfield units", {"RescaleSlope": 0}),
        ("CT not in Hounsfield units", {"RescaleType": "US"}),
        ("scout view", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    ],
)
def test_a_ct_without_hounsfield_units_is_refused(rule, tags):
    assert refusal(ct(RAMP.astype(np.uint16), **tags)).rule.startswith(rule)


def test_faults_of_the_header_are_refused_before_pixels_are_decoded(monkeypatch):
    monkeypatch.setattr(dicom_reader, "stored_values", lambda *_: pytest.fail("decoded"))
    for tags in ({"Rows": 65000, "Columns": 65000}, {"NumberOfFrames": 3}, {"Modality": "MR"}):
        refusal(dicom(**tags))
        with pytest.raises(ImageRefused):
            probe(dicom(**tags))


def deflated(content: bytes) -> bytes:
    made = dcmread(io.BytesIO(content))
    made.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    out = io.BytesIO()
    made.save_as(out)
    return out.getvalue()


def test_a_deflated_file_is_refused_before_it_is_unpacked(monkeypatch):
    content = deflated(dicom())
    assert dcmread(io.BytesIO(content)).Rows == 40
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("unpacked"))
    assert refusal(content).rule.startswith("transfer syntax not accepted: Deflated")


@pytest.mark.parametrize("syntax", [uid.MPEG2MPML, uid.HTJ2K, uid.SMPTEST211020UncompressedProgressiveActiveVideo])
def test_an_unlisted_transfer_syntax_is_refused(syntax):
    assert refusal(dicom(syntax=X(syntax), frames=[b"1234"])).rule.startswith("transfer syntax not accepted")


def test_a_compressed_picture_larger_than_in_its_header_is_refused():
    large = np.zeros((200, 200), np.uint8)
    jpeg = dicom(syntax=uid.JPEGBaseline8Bit, frames=[picture(large, "JPEG")])
    jpeg_2000 = dicom(syntax=uid.JPEG2000Lossless, frames=[picture(large, "JPEG2000", no_jp2=True)])
    for content in (jpeg, jpeg_2000):
        assert "not of the size that the header gives" in refusal(content).rule


def test_a_run_length_bomb_is_refused_in_little_memory():
    runs = b"\x81\0" * 2000  # 128 zeros in two bytes, 256 kB for a picture of 2 kB
    bomb = struct.pack("<16I", 1, 64, *[0] * 14) + runs
    tracemalloc.start()
    assert "not of the size" in refusal(dicom(syntax=uid.RLELossless, frames=[bomb])).rule
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_run_length_segments_of_odd_length_are_read():
    odd = np.zeros((41, 51), np.uint8)
    odd[::3, ::2] = np.random.default_rng(0).integers(0, 256, odd[::3, ::2].shape)
    colours = np.dstack([odd, odd[::-1], odd[:, ::-1]])
    np.testing.assert_array_equal(read(compressed(colours, uid.RLELossless)).pixels, read(dicom(colours)).pixels)


def test_a_jpeg_of_very_many_scans_is_refused_at_once():
    jpeg = picture(np.zeros((3000, 3000), np.uint8), "JPEG", progressive=True)
    last = jpeg.rfind(b"\xff\xda")
    before = time.process_time()
    assert refusal(jpeg[:last] + jpeg[last:-2] * 2000 + jpeg[-2:]).rule == "damaged: more than 100 scans"
    assert time.process_time() - before < 1
    trailer = jpeg + b"\xff\xda" * 2000  # what follows the picture does not count
    assert read(trailer).pixels.shape == (3000, 3000)


def test_a_jpeg_with_a_pyramid_of_sizes_is_refused():
    jpeg = picture(kind="JPEG")
    pyramid = jpeg[:2] + b"\xff\xde" + struct.pack(">HBHHB", 11, 8, 9000, 9000, 1) + b"\1\x11\0" + jpeg[2:]
    assert "not of the size" in refusal(dicom(syntax=uid.JPEGBaseline8Bit, frames=[pyramid])).rule


@pytest.mark.parametrize(
    "make",
    [dicom, lambda: compressed(RAMP, uid.JPEG2000Lossless), lambda: compressed(RAMP, uid.RLELossless)],
    ids=["plain", "jpeg2000", "rle"],
)
def test_a_dicom_truncated_at_any_place_is_refused(make):
    content = make()
    accepted = ("truncated", "no pixel data", "damaged", "transfer syntax not accepted")
    for cut in range(1, 40):
        kept = 140 + (len(content) - 141) * cut // 40
        assert refusal(content[:kept]).rule.split(":")[0] in accepted
    assert refusal(content[:-200]).rule.startswith("truncated")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused_by_name(kind, share):
    noise = np.random.default_rng(0).integers(0, 255, (100, 100), np.uint8)
    content = picture(noise, kind)
    error = refusal(content[: int(len(content) * share)], "ward 3.png")
    assert error.rule.startswith("truncated")
    assert str(error).startswith("ward 3.png: truncated")


def test_a_truncated_tiff_is_refused():
    content = picture(RAMP, "TIFF", compression="tiff_lzw")
    assert refusal(content[: len(content) // 2]).rule.split(":")[0] in ("truncated", "damaged")


def test_truncation_is_refused_even_if_another_library_allowed_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 255, (100, 100), np.uint8)
    assert refusal(picture(noise)[:5000]).rule.startswith("truncated")


def test_a_damaged_but_complete_png_is_refused_as_damaged():
    content = bytearray(picture())
    content[len(content) // 2] ^= 0xFF
    assert refusal(bytes(content)).rule.startswith("damaged")


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(8000, 5001), (10_000, 10_000), (90_000, 90_000)])
def test_too_many_pixels_are_refused_before_decoding(monkeypatch, width, height):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    assert refusal(png_claiming(width, height)).rule.startswith("too many pixels")
    with pytest.raises(ImageRefused, match="too many pixels"):
        probe(png_claiming(width, height))


def test_a_small_tiff_with_an_enormous_tile_is_refused():
    tiles = {322: 60000, 323: 60000, 324: 200, 325: 2000}
    assert refusal(tiff(RAMP, tiles)).rule == "too many pixels: in one tile"


def test_28_pixels_are_enough_and_23_are_too_small():
    assert read(picture(RAMP[:28, :28])).pixels.shape == (28, 28)
    assert refusal(picture(RAMP[:23])).rule == "too small: 50 x 23"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_more_than_one_picture_in_a_file_is_refused(kind):
    more = [PIL.Image.fromarray(255 - RAMP)]
    assert refusal(picture(kind=kind, save_all=True, append_images=more)).rule.startswith("more than one picture")


@pytest.mark.parametrize(
    "content", [b"hello", b"MZ" + bytes(500), b"%PDF-1.7", bytes(500), dicom()[132:], picture(kind="GIF")]
)
def test_bytes_of_another_kind_are_not_an_image(content):
    assert refusal(content).rule == "not an image"


def test_files_that_cannot_be_opened_are_refused(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    assert refusal(empty).rule == "empty file"
    assert refusal(b"").rule == "empty file"
    assert refusal(tmp_path).rule == "a folder, not a file"
    assert refusal(tmp_path / "none.png").rule == "no such file"
    assert refusal("nul\0byte").rule == "no such file"
    assert refusal("x" * 5000).rule == "no such file"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert refusal(tmp_path / "s").rule == "not a regular file"


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    file = tmp_path / "locked.png"
    file.write_bytes(picture())
    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(file).rule == "no permission to read it"


def test_a_file_beyond_the_byte_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    file = tmp_path / "large.dcm"
    with file.open("wb") as sparse:
        sparse.truncate(2**20 + 1)
    assert refusal(file).rule.startswith("file too large: more than 1 MiB")
    with file.open("rb") as opened:
        assert refusal(opened).rule.startswith("file too large")


def test_closed_and_text_files_are_refused(tmp_path):
    closed = io.BytesIO(picture())
    closed.close()
    refusal(closed)
    refusal(io.StringIO("hello"))


def test_a_refusal_names_the_file_the_rule_and_the_remedy(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a picture")
    error = refusal(file)
    assert isinstance(error, LungkitError)
    assert str(error) == f"{file}: {error.rule}. {error.remedy}"
    assert "PNG, JPEG, TIFF and DICOM" in error.remedy
    assert refusal(b"x", name="upload 7").file == "upload 7"


def test_sequences_nested_without_end_are_refused():
    item = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    content = dicom()
    start = content.index(struct.pack("<HH2s", 0x0008, 0x0016, b"UI"))
    refusal(content[:start] + item * 50_000 + content[start:])


def test_header_values_that_take_long_to_read_are_refused_at_once():
    long = dicom(ViewPosition="PA").replace(b"CS\2\0PA", b"UN\0\0" + struct.pack("<I", 2**20) + b"\\" * 2**20)
    assert refusal(long).rule.startswith("damaged: header value (0018,5101) is too long")
    text = lut(0, [1, 2], 8)
    text[0]["LUTData"].VR, text[0]["LUTData"].value = "UT", "1" * 9000
    assert refusal(dicom(VOILUTSequence=text)).rule == "damaged: a lookup table that is not of numbers"


def test_reading_is_silent_also_in_threads():
    content = dicom(PixelData=RAMP.tobytes() + bytes(100))  # pydicom warns of the bytes left over
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=read, args=(content,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        filters = list(warnings.filters)
        with images._quiet:  # as if another thread were reading all the while
            read(content)
        assert warnings.filters == filters
    assert not heard


# --- the sample files --------------------------------------------------------------------------------------------

SAMPLES = {  # every one reads: what lies off target (leg, head, abdomen, spine) is for the input check to flag
    "cr_chest_monochrome1_j2k.dcm": ((1955, 1841), "CR", "intensity"),
    "cr_chest_monochrome1_uncompressed.dcm": ((977, 920), "CR", "intensity"),
    "cr_chest_monochrome2_uncompressed.dcm": ((977, 920), "CR", "intensity"),
    "cr_leg_offtarget_j2k.dcm": ((1760, 1760), "CR", "intensity"),
    "ct_abdomen_offtarget_j2k.dcm": ((512, 512), "CT", "HU"),
    "ct_head_offtarget.dcm": ((512, 512), "CT", "HU"),
    "ct_spine_offtarget_jpegll.dcm": ((512, 512), "CT", "HU"),  # reads in spite of a malformed sequence in its header
    "ct_thorax_small.dcm": ((128, 128), "CT", "HU"),
    "sc_chest_covid19_1.dcm": ((768, 768), "OT", "intensity"),
    "sc_chest_covid19_2.dcm": ((768, 827), "OT", "intensity"),
    "sc_chest_normal_3.dcm": ((768, 768), "OT", "intensity"),
    "sc_chest_normal_4.dcm": ((702, 774), "OT", "intensity"),
    "sc_test_pattern_modality_lut.dcm": ((512, 512), "OT", "intensity"),
    "sc_test_pattern_voi_lut.dcm": ((512, 512), "OT", "intensity"),
}


def test_every_sample_file_is_listed(shared_data):
    assert {file.name for file in (shared_data / "dicom_samples").glob("*.dcm")} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_file_reads(shared_data, name):
    shape, modality, units = SAMPLES[name]
    file = shared_data / "dicom_samples" / name
    image = read(file)
    assert (image.pixels.shape, image.modality, image.units) == (shape, modality, units)
    assert image.pixels.std() > 0.05
    assert probe(file) == (*shape[::-1], modality)


def test_real_scanner_air_and_tissue_have_their_hounsfield_units(shared_data):
    head = read(shared_data / "dicom_samples" / "ct_head_offtarget.dcm").pixels
    assert head.min() == -1024  # stored as -2000 padding
    assert abs(np.median(head[head > -500]) - 40) < 60


def test_the_real_monochrome_twins_are_the_same_picture(shared_data):
    first, second = (
        prepare(
            read(shared_data / "dicom_samples" / f"cr_chest_monochrome{n}_uncompressed.dcm"), Preprocessing()
        ).tensor
        for n in (1, 2)
    )
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_a_secondary_capture_equals_the_picture_it_wraps(shared_data):
    wrapped = shared_data / "dicom_samples" / "sc_chest_covid19_1.dcm"
    original = shared_data / "covid_chestxray" / "images" / "0a7faa2a.jpg"
    if not original.exists():
        pytest.skip("covid_chestxray has no images/0a7faa2a.jpg")
    first, second = (prepare(read(file), Preprocessing((64, 64))).tensor for file in (wrapped, original))
    assert np.abs(first - second).mean() < 0.02  # the picture is kept smaller there


# --- preprocessing -----------------------------------------------------------------------------------------------


def image_of(pixels, units="intensity") -> Image:
    return Image(np.asarray(pixels, np.float32), units, "", "made", {})


def test_window_level_maps_the_edges_and_the_level():
    np.testing.assert_allclose(
        preprocess.window_level(np.array([-3000, -1350, -600, 150, 3000]), -600, 1500), [0, 0, 0.5, 1, 1]
    )


def test_hounsfield_units_go_through_the_window_and_intensities_do_not():
    hu = prepare(image_of(np.full((50, 50), -600), "HU"), Preprocessing((50, 50))).tensor
    assert np.allclose(hu, 0.5)
    grey = prepare(image_of(np.full((50, 50), 0.25)), Preprocessing((50, 50))).tensor
    assert np.allclose(grey, 0.25)


def test_the_aspect_is_kept_and_the_rest_is_black():
    tensor = prepare(image_of(np.ones((100, 200))), Preprocessing((64, 64))).tensor[..., 0]
    assert tensor[16:48].min() == 1
    assert tensor[:16].max() == tensor[48:].max() == 0


def test_black_padding_is_normalised_like_any_other_black():
    tensor = prepare(image_of(np.ones((100, 200))), Preprocessing((64, 64), mean=0.5, std=0.25)).tensor[..., 0]
    assert set(np.unique(tensor)) == {-2.0, 2.0}


def test_fine_stripes_are_averaged_and_not_aliased():
    stripes = np.zeros((500, 500))
    stripes[:, ::2] = 1
    inner = prepare(image_of(stripes), Preprocessing((60, 60))).tensor[5:-5, 5:-5]
    np.testing.assert_allclose(inner, 0.5, atol=0.02)


def test_an_edge_does_not_ring():
    edge = np.full((40, 40), 0.25)
    edge[:, 20:] = 0.75
    tensor = prepare(image_of(edge), Preprocessing((224, 224))).tensor
    assert tensor.min() >= 0.25 - 1e-6
    assert tensor.max() <= 0.75 + 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 224)},
        {"size": (224,)},
        {"size": 224},
        {"size": (224.5, 224)},
        {"size": ("a", 1)},
        {"window": (-600, 0)},
        {"window": (float("nan"), 1500)},
        {"window": None},
        {"std": 0.0},
        {"std": float("inf")},
        {"mean": "0"},
        {"jpeg": "half"},
    ],
)
def test_preprocessing_refuses_impossible_values(wrong):
    with pytest.raises(LungkitError, match=next(iter(wrong))):
        Preprocessing(**wrong)


def test_preprocessing_survives_a_card():
    import json

    spec = Preprocessing((96, 128), (40.0, 400.0), 0.4, 0.2, jpeg="full")
    assert Preprocessing.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_card_older_than_scaled_jpegs_means_full_decoding():
    card = Preprocessing().to_dict()
    del card["jpeg"]
    assert Preprocessing.from_dict(card).jpeg == "full"
    assert Preprocessing().jpeg == "scaled"


def test_unknown_and_missing_keys_of_a_card_are_refused_by_name():
    card = Preprocessing().to_dict()
    with pytest.raises(LungkitError, match="gamma"):
        Preprocessing.from_dict(card | {"gamma": 1})
    del card["std"]
    with pytest.raises(LungkitError, match="lacks: std"):
        Preprocessing.from_dict(card)


def test_an_intensity_window_stretches_greys_and_leaves_hounsfield_units_alone():
    grey = Preprocessing((50, 50), intensity_window=(48, 183))
    levels = np.array([0, 48, 115.5, 183, 255], np.float32) / 255
    shown = [prepare(image_of(np.full((50, 50), level)), grey).tensor[25, 25, 0] for level in levels]
    assert shown == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-3)
    hu = image_of(np.full((50, 50), -600), "HU")
    np.testing.assert_array_equal(prepare(hu, grey).tensor, prepare(hu, Preprocessing((50, 50))).tensor)


def test_a_card_older_than_the_intensity_window_has_none():
    plain = Preprocessing((50, 50))
    assert "intensity_window" not in plain.to_dict()
    assert Preprocessing.from_dict(plain.to_dict()).intensity_window is None
    stretched = Preprocessing((50, 50), intensity_window=(48, 183))
    assert Preprocessing.from_dict(stretched.to_dict()) == stretched
    assert stretched.to_dict()["intensity_window"] == [48.0, 183.0]


@pytest.mark.parametrize("greys", [(183, 48), (48, 48), (-1, 100), (0, 256), (1,), ("48", "183"), (float("nan"), 1)])
def test_an_impossible_intensity_window_is_refused(greys):
    with pytest.raises(LungkitError, match="two greys from 0 to 255, the darker first"):
        Preprocessing(intensity_window=greys)


def saved(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{n}.png" for n in range(count)]
    for n, file in enumerate(files):
        file.write_bytes(picture(np.roll(RAMP, 97 * n)))
    return files


def test_a_batch_is_the_single_tensors_in_order(tmp_path, capsys):
    files, spec = saved(tmp_path, 9), Preprocessing((32, 32))
    batch = preprocess.read_batch(files, spec)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, np.stack([prepare(read(file), spec).tensor for file in files]))
    assert capsys.readouterr().err == ""
    preprocess.read_batch(files, spec, label="Reading")
    assert "Reading" in capsys.readouterr().err
    assert preprocess.read_batch([], spec).shape == (0, 32, 32, 1)


def test_a_batch_stops_at_a_file_that_is_refused(tmp_path):
    files = saved(tmp_path, 5)
    files[3].write_bytes(b"broken")
    with pytest.raises(ImageRefused, match=r"3\.png: not an image"):
        preprocess.read_batch(files, Preprocessing((32, 32)))


def test_training_statistics_normalise_the_training_images(tmp_path):
    files = saved(tmp_path, 6)
    spec = preprocess.training_statistics(files, Preprocessing((32, 32), mean=3.0, std=9.0))
    batch = preprocess.read_batch(files, spec)
    assert spec.size == (32, 32)
    assert abs(batch.mean()) < 1e-4
    assert abs(batch.std() - 1) < 1e-4


def test_training_statistics_need_images_with_contrast(tmp_path):
    with pytest.raises(LungkitError, match="at least one training image"):
        preprocess.training_statistics([], Preprocessing())
    file = tmp_path / "black.png"
    file.write_bytes(picture(np.zeros((40, 40), np.uint8)))
    with pytest.raises(LungkitError, match="no contrast"):
        preprocess.training_statistics([file], Preprocessing((32, 32)))


def test_the_reader_imports_nothing_heavy():
    heavy = ["tensorflow", "keras", "sklearn", "pandas", "matplotlib"]
    code = f"import sys, lungkit.data.images; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
