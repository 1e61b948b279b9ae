"""A CT series read as one: its order, what is set aside, and each rule by which it is no volume or refused."""

import io
import os
import shutil
import struct
import subprocess
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import FileMetaDataset

from lungkit.data import archive, images, series
from lungkit.data.image import ImageRefused
from lungkit.data.series import Rule
from tests.data.ct_series import (
    AXIAL,
    START,
    change,
    coded,
    ct_slice,
    enhanced,
    file,
    files,
    place,
    stack,
    values,
    zipped,
)
from tests.data.jpeg_lossless import encoded

RNG = np.random.default_rng(11)
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")  # pydicom's, of what tests write


def only(source) -> series.Series:
    contents = series.read(source)
    (one,) = contents.series
    return one


def names(one: series.Series) -> list[str]:
    return [each.source for each in one.slices]


def rules(one: series.Series) -> set[Rule]:
    return {finding.rule for finding in one.findings}


def words(one: series.Series, rule: Rule) -> str:
    (found,) = [finding.words for finding in one.findings if finding.rule is rule]
    return found


def shuffled(listed: list) -> list:
    return [listed[place] for place in RNG.permutation(len(listed))]


# --- order and pixels --------------------------------------------------------------------------------------------


def test_slices_are_in_the_order_of_their_positions_whatever_else_says():
    made = stack(9)
    for number, each in enumerate(made):
        change(each, InstanceNumber=9 - number, SliceLocation=str(-number))
    one = only(shuffled(files(made)))
    assert names(one) == [f"{number}.dcm" for number in range(9)]
    assert [each.position for each in one.slices] == [-314.0 + 2 * number for number in range(9)]
    assert (one.readable, one.findings, one.view) == ("volume", (), "axial")
    assert (one.uid, one.study_uid, one.number, one.modality) == ("1.2.3.2", "1.2.3.1", "4", "CT")
    assert (one.rows, one.columns, one.spacing, one.orientation) == (24, 24, (0.7, 0.7, 2.0), AXIAL)
    assert one.slices[3].instance_uid == "1.2.3.9.3"
    assert one.slices[3].corner == (-120.0, -130.0, -308.0)


def test_a_slice_has_the_pixels_of_its_file_read_alone():
    listed = files(stack(4))
    one = only(shuffled(listed))
    for number, (name, content) in enumerate(listed):
        found, alone = one.slice(number), images.read(content, name)
        np.testing.assert_array_equal(found.pixels, alone.pixels)
        assert (found.units, found.tags, found.file) == ("HU", alone.tags, name)


def test_every_slice_and_the_volume_are_in_order():
    one = only(shuffled(files(stack(7))))
    expected = np.array([values(number).astype(int) - 1024 for number in range(7)])
    np.testing.assert_array_equal([image.pixels for image in one.images()], expected)
    volume = one.volume()
    np.testing.assert_array_equal(volume, expected)
    assert (volume.dtype, volume.shape) == (np.int16, one.shape)


def test_a_folder_a_zip_file_and_a_list_give_the_same_series(tmp_path):
    listed = files(stack(5))
    for number, (name, content) in enumerate(listed):
        path = tmp_path / "study" / str(number % 2) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "study.zip").write_bytes(zipped({f"a/b/{name}": content for name, content in listed}))
    paths = sorted((tmp_path / "study").rglob("*.dcm"))
    sources = [
        tmp_path / "study",
        str(tmp_path / "study"),
        tmp_path / "study.zip",
        (tmp_path / "study.zip").read_bytes(),
    ]
    for source in (*sources, paths, [content for _, content in listed]):
        one = only(source)
        assert one.readable == "volume"
        np.testing.assert_array_equal(one.volume()[:, 0, 0], [int(values(n)[0, 0]) - 1024 for n in range(5)])


def test_one_file_is_a_series_of_one_slice(tmp_path):
    (tmp_path / "one.dcm").write_bytes(file(stack(1)[0]))
    for source in (tmp_path / "one.dcm", (tmp_path / "one.dcm").read_bytes()):
        one = only(source)
        assert (one.readable, rules(one), one.spacing) == ("slicewise", {Rule.ONE_SLICE}, (0.7, 0.7, None))


def test_the_header_proper_says_what_kind_of_object_it_is():
    content = file(stack(1)[0]).replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.4\0", 1)
    np.testing.assert_array_equal(only(content).slice(0).pixels, images.read(content).pixels)


def test_descriptions_and_names_are_not_kept():
    made = [change(each, SeriesDescription="Doe Jane lung") for each in stack(3)]
    one = only(files(made))
    assert "Doe" not in repr(one) + str(one.slice(0).tags)


def test_a_file_that_changed_after_it_was_listed_is_refused(tmp_path):
    for name, content in files(stack(3)):
        (tmp_path / name).write_bytes(content)
    one = only(tmp_path)
    (tmp_path / "1.dcm").write_bytes(file(change(stack(1)[0], Rows=48, Columns=48, PixelData=bytes(48 * 48 * 2))))
    with pytest.raises(ImageRefused, match=r"1\.dcm: changed since the series was listed"):
        one.volume()


# --- what belongs together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"SeriesInstanceUID": "1.2.3.7"}, None),
        ({"StudyInstanceUID": "1.2.3.7"}, None),
        ({"FrameOfReferenceUID": "1.2.3.7"}, "frame of reference"),
        ({"PixelSpacing": [0.8, 0.8]}, "pixel spacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.999, -0.04471]}, "orientation"),
    ],
)
def test_slices_that_differ_in_this_are_two_series(other, named):
    made = [*stack(4), *(change(each, **other) for each in stack(3, start=(-120, -130, -306.0)))]
    first, second = sorted(series.read(shuffled(files(made))).series, key=lambda one: -len(one.slices))
    assert names(first) == ["0.dcm", "1.dcm", "2.dcm", "3.dcm"]
    assert names(second) == ["4.dcm", "5.dcm", "6.dcm"]
    assert (Rule.SPLIT in rules(first)) == (Rule.SPLIT in rules(second)) == (named is not None)
    if named:
        assert named in words(first, Rule.SPLIT)
        assert words(first, Rule.SPLIT).startswith("7 slices of one SeriesInstanceUID are read as 2 series")


def test_slices_of_another_size_are_another_series():
    made = [*stack(3), *(change(each, Rows=32, Columns=32, PixelData=bytes(2048)) for each in stack(3))]
    assert sorted(one.shape for one in series.read(files(made)).series) == [(3, 24, 24), (3, 32, 32)]


def test_orientations_that_differ_by_rounding_are_one_series():
    made = stack(6)
    made[2].ImageOrientationPatient = [1, 0, 0, 0, 0.9999998, 0.0005]
    assert only(files(made)).readable == "volume"


def test_two_acquisitions_at_the_same_positions_are_two_series():
    made = [*stack(4), *(change(each, AcquisitionNumber=2, PixelData=bytes(1152)) for each in stack(4))]
    first, second = series.read(shuffled(files(made))).series
    assert (names(first), names(second)) == ([f"{n}.dcm" for n in range(4)], [f"{n}.dcm" for n in range(4, 8)])
    assert (first.readable, second.readable) == ("volume", "volume")
    assert "differ in acquisition." in words(first, Rule.SPLIT)


def test_acquisitions_that_share_no_position_are_one_series():
    made = stack(6)
    for number, each in enumerate(made):
        each.AcquisitionNumber = number // 2
    assert (only(files(made)).readable, rules(only(files(made)))) == ("volume", set())


def test_a_scanner_that_counts_each_slice_as_an_acquisition_has_one_series():
    made = [*stack(6), ct_slice((-120, -130, -310), number=50)]
    for number, each in enumerate(made):
        each.AcquisitionNumber = number
    assert rules(only(files(made))) == {Rule.SAME_POSITION}


# --- what is set aside -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "rule"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Rule.LOCALIZER),
        ({"ImageType": ["original", "primary", "axial", "x scout y"]}, Rule.LOCALIZER),
        ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, Rule.DERIVED),
        ({"ImageType": ["ORIGINAL", "SECONDARY", "AXIAL"]}, Rule.DERIVED),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, Rule.NOT_CT),
        ({"SOPClassUID": uid.BasicTextSRStorage, "PixelData": None, "Modality": "SR"}, Rule.NOT_CT),
        ({"ImagePositionPatient": None}, Rule.NO_POSITION),
        ({"ImagePositionPatient": [0, 0]}, Rule.NO_POSITION),
        ({"ImageOrientationPatient": None}, Rule.NO_POSITION),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, Rule.NO_POSITION),
        ({"RescaleSlope": None}, Rule.UNREADABLE),
    ],
)
def test_what_is_no_slice_is_set_aside_and_named(tags, rule):
    odd = change(ct_slice((-120, -130, -309), number=99), **tags)
    contents = series.read(shuffled([*files(stack(6)), ("odd.dcm", file(odd))]))
    (one,), (aside,) = contents.series, contents.set_aside
    assert (one.readable, len(one.slices), rules(one)) == ("volume", 6, {rule})
    assert (aside.source, aside.rule, aside.series_uid) == ("odd.dcm", rule, "1.2.3.2")
    assert "odd.dcm" in words(one, rule)


def test_a_series_of_derived_images_alone_is_read_slice_by_slice():
    one = only(files(stack(4, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])))
    assert (one.readable, len(one.slices), rules(one)) == ("slicewise", 4, {Rule.ALL_DERIVED})
    assert "ImageType DERIVED\\SECONDARY\\REFORMATTED: its slices were calculated" in words(one, Rule.ALL_DERIVED)


def test_what_is_said_does_not_depend_on_the_order_of_the_files():
    listed = files(stack(8))
    for number in (2, 4, 5):
        listed[number] = listed[number][0], listed[number][1][: -40 * number]
    said = [series.read(order).series[0].findings for order in (listed, listed[::-1], shuffled(listed))]
    assert said[0] == said[1] == said[2]
    assert "(2.dcm, 4.dcm, 5.dcm). truncated: 1072 of 1152" in words(series.read(listed).series[0], Rule.UNREADABLE)


def test_files_that_are_no_dicom_are_named():
    picture = io.BytesIO()
    PIL.Image.new("L", (40, 40)).save(picture, "PNG")
    contents = series.read([*files(stack(3)), ("notes.txt", b"x" * 300), ("key.png", picture.getvalue())])
    assert contents.series[0].readable == "volume"
    assert [(each.source, each.rule) for each in contents.set_aside] == [
        ("key.png", Rule.NOT_DICOM),
        ("notes.txt", Rule.NOT_DICOM),
    ]


def test_truncated_files_are_named_and_the_gap_that_they_leave():
    listed = files(stack(8))
    listed[3] = "3.dcm", listed[3][1][:-40]  # within the pixels
    listed[4] = "4.dcm", listed[4][1][:-1170]  # within the header, after the UIDs
    listed[6] = "6.dcm", listed[6][1][:200]  # before it is known what it is
    contents = series.read(shuffled(listed))
    (one,) = contents.series
    assert names(one) == ["0.dcm", "1.dcm", "2.dcm", "5.dcm", "7.dcm"]
    assert one.readable == "slicewise"
    assert "2 files left out (3.dcm, 4.dcm). truncated: 1112 of 1152" in words(one, Rule.UNREADABLE)
    gaps = [finding.words for finding in one.findings if finding.rule is Rule.GAP]
    assert gaps == [
        "2 slices missing between z = -310.0 and -304.0 mm.",
        "1 slice missing between z = -304.0 and -300.0 mm.",
    ]
    assert {each.source: each.rule for each in contents.set_aside} == dict.fromkeys(
        ("3.dcm", "4.dcm", "6.dcm"), Rule.UNREADABLE
    )
    assert one.slice(3).pixels.shape == (24, 24)


def test_a_series_without_any_position_is_refused_by_name():
    made = [change(each, ImagePositionPatient=None) for each in stack(3)]
    contents = series.read(files(made))
    (one,) = contents.series
    assert (one.readable, one.shape, one.uid) == ("refused", (0, 0, 0), "1.2.3.2")
    assert "ImagePositionPatient missing" in words(one, Rule.NO_SLICE)
    assert len(contents.set_aside) == 3
    with pytest.raises(ImageRefused, match="no slice"):
        one.slice(0)


# --- slices at one position --------------------------------------------------------------------------------------


def test_identical_copies_count_once_and_are_named():
    made = stack(6)
    copy = change(ct_slice(made[2].ImagePositionPatient, number=2), SOPInstanceUID="1.2.3.9.77")
    one = only(shuffled([*files(made), ("copy.dcm", file(copy)), ("same.dcm", file(made[4]))]))
    assert (one.readable, len(one.slices), rules(one)) == ("volume", 6, {Rule.DUPLICATE})
    assert "2 slices left out" in words(one, Rule.DUPLICATE)


def test_identical_files_are_not_decoded(monkeypatch):
    listed = files(stack(4))
    read, calls = images.read, []
    monkeypatch.setattr(images, "read", lambda *given: calls.append(1) or read(*given))
    assert only([*listed, *listed]).readable == "volume"
    assert len(calls) == 4


def test_different_slices_at_one_position_are_refused():
    made = [*stack(6), ct_slice((-120, -130, -310.005), number=50)]
    one = only(shuffled(files(made)))
    assert (one.readable, rules(one)) == ("refused", {Rule.SAME_POSITION})
    assert "2.dcm" in words(one, Rule.SAME_POSITION)
    assert "6.dcm" in words(one, Rule.SAME_POSITION)
    for refused in (lambda: one.slice(0), one.volume, lambda: list(one.images())):
        with pytest.raises(ImageRefused, match="two slices at one position"):
            refused()


def test_the_same_pixels_at_two_places_of_one_plane_are_not_copies():
    shifted = ct_slice((-110, -130, -310), number=2)
    assert Rule.SAME_POSITION in rules(only(files([*stack(6), shifted])))


def test_a_copy_that_cannot_be_decoded_is_named():
    pixels = values(2).astype(np.uint16)
    stream = encoded(pixels, 12)
    made = stack(3)
    good = coded(ct_slice(made[2].ImagePositionPatient, number=2), [stream], "basic")
    bad = coded(
        ct_slice(made[2].ImagePositionPatient, number=2),
        [stream[:40] + stream[40:].replace(b"\xff\xd9", b"\0\0")],
        "basic",
    )
    listed = [*files(made[:2]), ("good.dcm", file(good, uid.JPEGLossless)), ("bad.dcm", file(bad, uid.JPEGLossless))]
    contents = series.read(listed)
    assert contents.series[0].readable == "volume"
    assert [each.source for each in contents.set_aside] == ["bad.dcm"]


# --- spacing, tilt, view -----------------------------------------------------------------------------------------


def test_gaps_are_named_in_millimetres():
    made = stack(8)
    del made[6], made[2:4]
    one = only(shuffled(files(made)))
    assert (one.readable, rules(one), one.spacing[2]) == ("slicewise", {Rule.GAP}, 2.0)
    assert [finding.words for finding in one.findings] == [
        "2 slices missing between z = -312.0 and -306.0 mm.",
        "1 slice missing between z = -304.0 and -300.0 mm.",
    ]
    assert one.slice(0).pixels.shape == (24, 24)
    with pytest.raises(ImageRefused, match=r"z = -312\.0 and -306\.0 mm\. Read it slice by slice"):
        one.volume()


def test_uneven_spacing_is_slice_by_slice_only():
    made = stack(6)
    place(made[3], (-120, -130, -307.2))
    one = only(files(made))
    assert (one.readable, rules(one)) == ("slicewise", {Rule.UNEVEN})
    assert "2.0 mm, but 1.2 to 2.8 mm at 2 places, first between z = -310.0 and -307.2 mm" in words(one, Rule.UNEVEN)


@pytest.mark.parametrize(("degrees", "readable"), [(0.4, "volume"), (0.6, "slicewise"), (12, "slicewise")])
def test_a_tilt_above_half_a_degree_is_slice_by_slice_only(degrees, readable):
    step = (0, 5 * np.sin(np.radians(degrees)), 5 * np.cos(np.radians(degrees)))
    one = only(files(stack(6, step=step)))
    assert one.readable == readable
    if readable == "slicewise":
        assert f"tilted by {degrees:.1f}°" in words(one, Rule.TILT)


def test_a_stated_tilt_that_the_positions_do_not_show_is_noted():
    one = only(files([change(each, GantryDetectorTilt=15) for each in stack(4)]))
    assert (one.readable, words(one, Rule.TILT_STATED)) == (
        "volume",
        "GantryDetectorTilt states 15.0°, but the positions show 0.0°.",
    )


def test_a_slice_out_of_line_is_no_volume():
    made = stack(6)
    place(made[3], (-117, -126, -308))
    one = only(files(made))
    assert (one.readable, rules(one)) == ("slicewise", {Rule.SHIFTED})
    assert "1 slice not in line" in words(one, Rule.SHIFTED)
    assert "5.0 mm" in words(one, Rule.SHIFTED)


@pytest.mark.parametrize(("thick", "rule"), [(5, Rule.OVERLAP), (1, Rule.APART), (2, None), (0, None)])
def test_the_thickness_is_not_the_spacing(thick, rule):
    one = only(files([change(each, SliceThickness=thick) for each in stack(4)]))
    assert (one.readable, one.spacing[2], rules(one)) == ("volume", 2.0, {rule} - {None})


@pytest.mark.parametrize(("orientation", "view"), [((1, 0, 0, 0, 0, -1), "coronal"), ((0, 1, 0, 0, 0, -1), "sagittal")])
def test_other_planes_are_refused(orientation, view):
    one = only(files(stack(4, orientation=orientation)))
    assert (one.readable, one.view, rules(one)) == ("refused", view, {Rule.NOT_AXIAL})


def test_oblique_slices_are_a_volume():
    tip = np.radians(20)
    orientation = (1, 0, 0, 0, np.cos(tip), -np.sin(tip))
    made = stack(8, orientation=orientation)
    one = only(files(made))
    assert (one.readable, one.view, rules(one)) == ("volume", "oblique axial", {Rule.OBLIQUE})
    assert "20.0°" in words(one, Rule.OBLIQUE)
    del made[3]
    assert "mm along the normal" in words(only(files(made)), Rule.GAP)


def test_a_patient_feet_first_is_noted_and_the_order_stays():
    one = only(shuffled(files([change(each, PatientPosition="FFS") for each in stack(4)])))
    assert (names(one), rules(one)) == ([f"{number}.dcm" for number in range(4)], {Rule.FEET_FIRST})


def test_slices_seen_from_the_head_are_ordered_along_their_normal_and_noted():
    made = stack(5, orientation=(-1, 0, 0, 0, 1, 0))
    one = only(shuffled(files(made)))
    assert (one.readable, rules(one)) == ("volume", {Rule.TURNED})
    assert names(one) == [f"{number}.dcm" for number in range(5)]
    assert [each.corner[2] for each in one.slices] == [-314.0, -316.0, -318.0, -320.0, -322.0]
    assert "seen from the head" in words(one, Rule.TURNED)
    del made[2]
    assert words(only(files(made)), Rule.GAP) == "1 slice missing between z = -320.0 and -316.0 mm."


def test_prone_slices_are_noted_as_turned():
    assert rules(only(files(stack(4, orientation=(-1, 0, 0, 0, -1, 0))))) == {Rule.TURNED}


def test_pixels_that_are_not_square_are_scaled_and_noted():
    one = only(files([change(each, PixelSpacing=[1.4, 0.7]) for each in stack(3)]))
    assert (one.rows, one.columns, one.spacing, one.shape) == (24, 24, (1.4, 0.7, 2.0), (3, 48, 24))
    assert (rules(one), one.volume().shape) == ({Rule.NOT_SQUARE}, (3, 48, 24))


def test_without_pixel_spacing_there_is_no_volume():
    one = only(files([change(each, PixelSpacing=None) for each in stack(3)]))
    assert (one.readable, rules(one), one.spacing) == ("slicewise", {Rule.NO_SPACING}, (None, None, 2.0))


# --- identity ----------------------------------------------------------------------------------------------------


def test_a_uid_that_is_none_is_used_as_text_and_noted(monkeypatch):
    monkeypatch.setattr("pydicom.config.settings.reading_validation_mode", 0)
    monkeypatch.setattr("pydicom.config.settings.writing_validation_mode", 0)
    one, other = "09bc8aea-ff9c-4106-8514-294cbcf9a082", "09bc8aea-ff9c-4106-8514-294cbcf9a083"
    made = [change(each, SeriesInstanceUID=text) for text in (one, other) for each in stack(3)]
    found = series.read(files(made)).series
    assert [(each.uid, len(each.slices), each.readable) for each in found] == [(one, 3, "volume"), (other, 3, "volume")]
    assert one in words(found[0], Rule.INVALID_UID)


def test_missing_uids_are_noted_and_a_missing_series_is_no_volume():
    noted = only(files([change(each, FrameOfReferenceUID=None) for each in stack(3)]))
    assert (noted.readable, rules(noted)) == ("volume", {Rule.NO_UID})
    assert "FrameOfReferenceUID" in words(noted, Rule.NO_UID)
    loose = only(files([change(each, SeriesInstanceUID=None) for each in stack(3)]))
    assert (loose.readable, rules(loose)) == ("slicewise", {Rule.NO_SERIES_UID})


def test_a_repeated_instance_uid_is_noted():
    one = only(files([change(each, SOPInstanceUID="1.2.3.9") for each in stack(3)]))
    assert (one.readable, len(one.slices), rules(one)) == ("volume", 3, {Rule.REPEATED_UID})


# --- enhanced CT -------------------------------------------------------------------------------------------------


def frames(count: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Corners in an arbitrary order, pixels of each, and where in the order each frame belongs."""
    order = np.random.default_rng(count).permutation(count)
    corners = [(*START[:2], START[2] + 1.5 * place) for place in order]
    return corners, np.array([values(number) for number in range(count)]), order


def test_frames_of_an_enhanced_ct_are_ordered_and_rescaled_each_by_itself():
    corners, pixels, order = frames(9)
    slopes = [1 + number / 4 for number in range(9)]
    content = file(enhanced(corners, pixels, slopes=slopes))
    one = only(content)
    assert (one.readable, one.spacing, one.thickness) == ("volume", (0.7, 0.7, 1.5), 2.0)
    assert [each.frame for each in one.slices] == [int(number) + 1 for number in np.argsort(order)]
    theirs = dcmread(io.BytesIO(content)).pixel_array
    for number, each in enumerate(one.slices):
        place = each.frame - 1
        expected = np.maximum(theirs[place].astype(np.float32) * np.float32(slopes[place]) - 1000, -1024)
        np.testing.assert_array_equal(one.slice(number).pixels, expected)
    assert one.slice(0).file == f"uploaded file, frame {one.slices[0].frame}"


@pytest.mark.parametrize(
    ("table", "fragments"), [("basic", 1), ("basic", 3), ("extended", 1), ("none", 1), ("none", 3)]
)
def test_compressed_frames_are_told_apart_by_any_table_or_none(table, fragments):
    corners, pixels, order = frames(6)
    made = coded(enhanced(corners, pixels), [encoded(frame, 12) for frame in pixels], table, fragments)
    one = only(file(made, uid.JPEGLossless))
    np.testing.assert_array_equal(one.volume(), pixels[np.argsort(order)].astype(int) - 1024)


def test_run_length_coded_frames_are_those_that_pydicom_decodes():
    corners, pixels, order = frames(5)
    made = enhanced(corners, pixels)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made.compress(uid.RLELossless, generate_instance_uid=False)
    content = file(made, uid.RLELossless)
    theirs = dcmread(io.BytesIO(content)).pixel_array.astype(int) - 1024
    np.testing.assert_array_equal(only(content).volume(), theirs[np.argsort(order)])


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_functional_groups_are_read_in_any_plain_coding(syntax):
    corners, pixels, _ = frames(4)
    made = enhanced(corners, pixels)
    for sequence in (made.PerFrameFunctionalGroupsSequence, made.SharedFunctionalGroupsSequence):
        sequence.is_undefined_length = True
        for item in sequence:
            item.is_undefined_length_sequence_item = True
    assert only(file(made, syntax)).readable == "volume"


def test_frames_that_are_no_slices_are_set_aside_by_number():
    corners, pixels, _ = frames(6)
    made = enhanced(corners, pixels)
    groups = made.PerFrameFunctionalGroupsSequence
    groups[0].CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    del groups[1].PlanePositionSequence
    contents = series.read([("a.dcm", file(made))])
    assert [(str(each), each.rule) for each in contents.set_aside] == [
        ("a.dcm, frame 1", Rule.LOCALIZER),
        ("a.dcm, frame 2", Rule.NO_POSITION),
    ]
    assert len(contents.series[0].slices) == 4


def test_frames_of_two_phases_are_two_series():
    corners, pixels, _ = frames(4)
    made = enhanced([*corners, *corners], np.concatenate([pixels, pixels[::-1] // 2]))
    for group in made.PerFrameFunctionalGroupsSequence[4:]:
        group.FrameContentSequence[0].FrameAcquisitionNumber = 2
    assert [(len(one.slices), one.readable) for one in series.read([file(made)]).series] == [(4, "volume")] * 2


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (lambda made: change(made, NumberOfFrames=5), "functional groups of 4 frames"),
        (lambda made: change(made, NumberOfFrames=0), "functional groups of 4 frames"),
        (lambda made: change(made, PerFrameFunctionalGroupsSequence=None), "functional groups of 0 frames"),
        (lambda made: change(made, PixelData=made.PixelData[:-2]), "truncated"),
        (lambda made: change(made, PixelData=None), "no pixel data"),
    ],
)
def test_a_broken_enhanced_ct_is_refused_by_a_rule(broken, rule):
    corners, pixels, _ = frames(4)
    contents = series.read([("a.dcm", file(broken(enhanced(corners, pixels))))])
    assert [one.readable for one in contents.series] == ["refused"]
    assert rule in contents.set_aside[0].words or rule in contents.set_aside[-1].words
    assert {each.rule for each in contents.set_aside} == {Rule.UNREADABLE}


def test_an_offset_table_that_is_wrong_is_refused():
    corners, pixels, _ = frames(4)
    made = coded(enhanced(corners, pixels), [encoded(frame, 12) for frame in pixels], "basic")
    content = file(made, uid.JPEGLossless)
    at = content.index(b"\xfe\xff\x00\xe0\x10\0\0\0") + 8
    offsets = struct.unpack_from("<4I", content, at)
    for wrong in ((0, 8, *offsets[2:]), (0, *offsets[:0:-1]), (0, 0, 0, 0), (4, *offsets[1:])):
        changed = content[:at] + struct.pack("<4I", *wrong) + content[at + 16 :]
        assert "offset table" in series.read([changed]).set_aside[0].words
    made = coded(enhanced(corners, pixels), [encoded(frame, 12) for frame in pixels], "extended")
    made.ExtendedOffsetTable = made.ExtendedOffsetTable[:8] * 4
    assert "offset table" in series.read([file(made, uid.JPEGLossless)]).set_aside[0].words


def test_the_reader_of_single_images_still_refuses_frames():
    corners, pixels, _ = frames(3)
    with pytest.raises(ImageRefused, match="unsupported DICOM object: Enhanced CT Image Storage"):
        images.read(file(enhanced(corners, pixels)))


def test_one_frame_is_decoded_without_the_others(tmp_path):
    count = 200
    corners = [(*START[:2], START[2] + number) for number in range(count)]
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint16)[:, None, None] + 1000, (count, 128, 128))
    (tmp_path / "a.dcm").write_bytes(file(enhanced(corners, pixels)))
    one = only(tmp_path)
    tracemalloc.start()
    assert one.slice(150).pixels[0, 0] == 126
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**20  # the file has 6.5 MB
    tracemalloc.reset_peak()
    np.testing.assert_array_equal(one.volume()[:, 5, 5], np.arange(count) - 24)
    assert tracemalloc.get_traced_memory()[1] < 1.6 * pixels.nbytes
    tracemalloc.stop()


# --- zip files ---------------------------------------------------------------------------------------------------


def zip_refusal(content: bytes) -> str:
    with pytest.raises(ImageRefused) as refused:
        series.read(content, "study.zip")
    return str(refused.value)


def test_a_zip_bomb_is_refused_before_it_is_unpacked():
    bomb = zipped({"a.dcm": bytes(40 * 2**20)})
    tracemalloc.start()
    started = time.perf_counter()
    assert "study.zip: packed too tightly" in zip_refusal(bomb)
    assert time.perf_counter() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_members_that_share_their_packed_bytes_are_a_bomb_too():
    content = bytearray(zipped({f"{number}.dcm": RNG.bytes(10_000) for number in range(300)}))
    first = content.index(b"PK\x01\x02")
    at = first
    while content[at : at + 4] == b"PK\x01\x02":  # each entry says that it is the first file, and 1 MiB long
        struct.pack_into("<I", content, at + 24, 2**20)
        struct.pack_into("<I", content, at + 42, 0)
        at += 46 + sum(struct.unpack_from("<3H", content, at + 28))
    assert "packed too tightly" in zip_refusal(bytes(content))


def test_names_that_climb_out_of_the_archive_are_only_shown(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    listed = files(stack(3))
    hostile = dict(zip(("../up.dcm", "/tmp/lungkit-root.dcm", "..\\..\\a\nb.dcm"), (c for _, c in listed), strict=True))
    one = only(zipped(hostile))
    assert one.readable == "volume"
    one.volume()
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    assert not Path("/tmp/lungkit-root.dcm").exists()
    assert "uploaded zip file: ../up.dcm" in names(one)
    assert not any("\n" in name for name in names(one))


def test_an_archive_in_an_archive_is_not_opened():
    listed = files(stack(3))
    contents = series.read(zipped({**dict(listed), "inner.dcm": zipped(dict(listed)), "x.gz": b"\x1f\x8b" + bytes(99)}))
    assert len(contents.series[0].slices) == 3
    assert [(each.rule, each.source.split(": ")[1]) for each in contents.set_aside] == [
        (Rule.ARCHIVE, "inner.dcm"),
        (Rule.ARCHIVE, "x.gz"),
    ]


def test_too_many_files_too_many_bytes_and_a_long_table_of_contents_are_refused(monkeypatch):
    content = zipped(dict(files(stack(5))))
    for name, limit, rule in (
        ("MAX_FILES", 4, "too many files: 5"),
        ("MAX_UNPACKED", 5_000, "too large"),
        ("_DIRECTORY", 100, "damaged zip file: its table of contents is too long"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(archive, name, limit)
            assert rule in zip_refusal(content)


def test_members_that_are_encrypted_oddly_packed_or_damaged_are_named():
    listed = dict(files(stack(6)))
    content = bytearray(zipped(listed))
    for name, at, value in (("1.dcm", 8, 1), ("2.dcm", 10, 12)):  # flags: encrypted; method: bzip2
        entry = content.index(name.encode(), content.index(b"PK\x01\x02")) - 46
        struct.pack_into("<H", content, entry + at, value)
    packed = content.index(b"4.dcm") + 200
    content[packed : packed + 50] = bytes(50)
    contents = series.read(bytes(content), "study.zip")
    assert [(each.source, each.words.split(".")[0]) for each in contents.set_aside] == [
        ("study.zip: 1.dcm", "encrypted in the zip file"),
        ("study.zip: 2.dcm", "packed by a method that is not accepted"),
        ("study.zip: 4.dcm", "damaged in the zip file"),
    ]
    assert len(contents.series[0].slices) == 3


# With names of their own: a zip file has the time in it, and each of the tests' processes makes its own.
@pytest.mark.parametrize(
    "content",
    [b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(100), zipped({"a": b""})[:40]],
    ids=["empty", "zeros", "cut off"],
)
def test_a_zip_file_without_files_or_damaged(content):
    try:
        assert series.read(content) == series.Contents((), ())
    except ImageRefused as refused:
        assert "damaged zip file" in refused.rule


def test_what_operating_systems_add_to_an_archive_is_left_out():
    contents = series.read(zipped({**dict(files(stack(3))), "__MACOSX/._0.dcm": b"x", ".DS_Store": b"x"}))
    assert (len(contents.series), contents.set_aside) == (1, ())


def test_a_zip_file_on_disk_can_be_read_after_other_references_are_gone(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(dict(files(stack(3)))))
    assert series.read(tmp_path / "a.zip").series[0].volume().shape == (3, 24, 24)


def test_an_enhanced_ct_in_a_zip_file_is_unpacked_once(monkeypatch):
    corners, pixels, order = frames(6)
    unpacked = []
    opened = zipfile.ZipFile.open
    content = zipped({"a.dcm": file(enhanced(corners, pixels))})
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *given: unpacked.append(1) or opened(*given))
    one = only(content)
    np.testing.assert_array_equal(one.volume(), pixels[np.argsort(order)].astype(int) - 1024)
    assert len(unpacked) == 1


# --- what is given -----------------------------------------------------------------------------------------------


def test_a_path_that_leads_nowhere_and_too_many_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ImageRefused, match="no such file or folder"):
        series.read(tmp_path / "missing")
    monkeypatch.setattr("lungkit.data.series_slices.MAX_FILES", 2)
    for name, content in files(stack(3)):
        (tmp_path / name).write_bytes(content)
    for source in (tmp_path, sorted(tmp_path.iterdir())):
        with pytest.raises(ImageRefused, match="too many files: 3"):
            series.read(source)


def test_too_many_slices_are_refused(monkeypatch):
    corners, pixels, _ = frames(6)
    monkeypatch.setattr(series, "MAX_SLICES", 5)
    with pytest.raises(ImageRefused, match=r"a\.dcm: too many slices: more than 5"):
        series.read(file(enhanced(corners, pixels)), "a.dcm")


def test_an_archive_in_a_list_is_not_opened(tmp_path):
    (tmp_path / "b.zip").write_bytes(zipped(dict(files(stack(2)))))
    contents = series.read([*files(stack(3)), ("a.zip", zipped(dict(files(stack(3))))), tmp_path / "b.zip"])
    assert len(contents.series[0].slices) == 3
    assert [each.rule for each in contents.set_aside] == [Rule.ARCHIVE, Rule.ARCHIVE]


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    for source in (tmp_path / "pipe.dcm", [tmp_path / "pipe.dcm"], tmp_path):
        (aside,) = series.read(source).set_aside
        assert aside.rule in (Rule.UNREADABLE, Rule.NOT_DICOM)


def test_thousands_of_odd_headers_are_each_a_series_of_their_own():
    """Of the same UID: if each were compared with each, this would take minutes."""
    from lungkit.data.series_slices import File, Placed

    def placed(number: int) -> Placed:
        return Placed(
            file=File(f"{number}", bytes),
            frame=None,
            instance_uid="",
            study_uid="1",
            series_uid="1",
            number="",
            frame_of_reference=str(number),
            acquisition="",
            rows=24,
            columns=24,
            size=(24, 24),
            spacing=None,
            orientation=AXIAL,
            corner=START,
            thickness=None,
            tilt=None,
            patient_position="",
            kernel="",
            derived="",
            read=lambda: None,
        )

    found, _ = series._all_series([placed(number) for number in range(3_000)], [])
    assert len(found) == 3_000


def test_archives_and_other_files_in_a_folder_are_named(tmp_path):
    for name, content in files(stack(3)):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "more.zip").write_bytes(zipped(dict(files(stack(3)))))
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    contents = series.read(tmp_path)
    assert len(contents.series[0].slices) == 3
    assert [(each.source, each.rule) for each in contents.set_aside] == [
        ("gone.dcm", Rule.NOT_OPENED),
        ("more.zip", Rule.ARCHIVE),
        ("report.pdf", Rule.NOT_DICOM),
    ]


def test_a_file_that_is_not_there_is_named_and_the_rest_is_read(tmp_path):
    contents = series.read([*files(stack(3)), tmp_path / "gone.dcm"])
    assert contents.series[0].readable == "volume"
    assert "no such file" in contents.set_aside[0].words


# --- a real series -----------------------------------------------------------------------------------------------


def test_the_real_series_is_one_volume(shared_data):
    contents = series.read(shared_data / "ct_series_covid")
    (one,) = contents.series
    assert (len(one.slices), one.slices[0].position, one.slices[-1].position) == (133, -437.7, -173.7)
    assert (one.readable, one.spacing[2], one.view, one.thickness) == ("volume", pytest.approx(2), "axial", 2.0)
    assert rules(one) == {Rule.INVALID_UID, Rule.NO_UID}
    assert [each.source for each in contents.set_aside] == ["SOURCE.md"]


@pytest.mark.skipif(not shutil.which("dcmdjpeg"), reason="DCMTK is not installed (Debian's dcmtk)")
def test_slices_of_the_real_series_have_the_pixels_that_dcmtk_and_pydicom_decode(shared_data, tmp_path):
    (one,) = series.read(shared_data / "ct_series_covid").series
    for number in (0, 66, 132):
        path = shared_data / "ct_series_covid" / one.slices[number].source
        subprocess.run(["dcmdjpeg", path, tmp_path / "plain.dcm"], check=True)
        theirs = dcmread(tmp_path / "plain.dcm")
        hu = theirs.pixel_array.astype(np.float32) * theirs.RescaleSlope + theirs.RescaleIntercept
        np.testing.assert_array_equal(one.slice(number).pixels, np.maximum(hu, -1024))
        assert theirs.ImagePositionPatient[2] == one.slices[number].position
