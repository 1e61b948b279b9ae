"""What a folder holds: images by content, everything else counted and named, and no way to loop or to hang."""

import io
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungkit.data import folders
from lungkit.data.notes import survey_notes


def encoded(kind: str) -> bytes:
    """A small picture in a format of Pillow's."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).convert("RGB").save(file, kind)
    return file.getvalue()


def dicom(preamble: bool = True, syntax=pydicom.uid.ExplicitVRLittleEndian, of=pydicom.uid.CTImageStorage) -> bytes:
    """The header of a DICOM file."""
    header = pydicom.Dataset()
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = of, "1.2.3", "CT"
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = syntax, of, "1.2.3"
    file = io.BytesIO()
    if preamble:
        header.file_meta, header.preamble = meta, b"\0" * 128
        pydicom.dcmwrite(file, header, enforce_file_format=True)
        return file.getvalue()
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
    pydicom.filewriter.write_dataset(buffer, header)
    return buffer.getvalue()


def put(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def names(paths) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "PPM"])
def test_a_picture_is_an_image_under_any_name(tmp_path, kind):
    put(tmp_path, **{name: encoded(kind) for name in ("a", "b.txt", "c.jfif", "d.csv")})
    assert names(folders.survey(tmp_path).images) == ["a", "b.txt", "c.jfif", "d.csv"]


@pytest.mark.parametrize(
    "content",
    [
        dicom(),
        dicom(preamble=False),
        dicom(preamble=False, syntax=pydicom.uid.ImplicitVRLittleEndian),
        dicom(preamble=False, syntax=pydicom.uid.ExplicitVRBigEndian),
        b"\0\0\0\x18ftypheic" + b"\0" * 20,
        b"\0" * 344 + b"n+1\0",
    ],
    ids=["dicom", "bare", "bare implicit", "bare big-endian", "HEIC", "NIfTI"],
)
def test_dicom_and_formats_that_the_reader_refuses_are_images_under_any_name(tmp_path, content):
    assert names(folders.survey(put(tmp_path, scan=content)).images) == ["scan"]


@pytest.mark.parametrize("name", ["a.png", "b.JPE", "c.dcm", "d.nii.gz", "IM0001", "1.2.840.113", "00000012"])
def test_a_file_that_is_an_image_by_its_name_only_is_left_for_the_reader_to_refuse(tmp_path, name):
    for content in (b"", b"not an image"):
        assert names(folders.survey(put(tmp_path, **{name: content})).images) == [name]


@pytest.mark.parametrize(
    "content",
    [b"", b"Read me", b"%PDF-1.7", b"\xff\xfef\0i\0l\0e\0", b"\x93NUMPY", b"BM is short for bitmap", b"P1 3 ill"],
)
def test_files_that_are_no_images_are_passed_over(tmp_path, content):
    found = folders.survey(put(tmp_path, README=content, LICENSE=content))
    assert (found.images, names(found.passed_over)) == ([], ["LICENSE", "README"])


def test_a_dicomdir_is_no_image_under_any_name(tmp_path):
    listing = dicom(of=pydicom.uid.MediaStorageDirectoryStorage)
    found = folders.survey(put(tmp_path, DICOMDIR=dicom(), contents=listing))
    assert names(found.passed_over) == ["DICOMDIR", "contents"]


def test_archives_are_recognised_and_documents_are_no_archives(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", encoded("PNG"))
    tar = b"\0" * 257 + b"ustar" + b"\0" * 250
    put(
        tmp_path,
        **{"a.zip": packed.getvalue(), "b": tar, "c.gz": b"\x1f\x8b", "d.rar": b"", "e.npz": packed.getvalue()},
    )
    found = folders.survey(tmp_path)
    assert (names(found.archives), names(found.passed_over)) == (["a.zip", "b", "c.gz", "d.rar"], ["e.npz"])


def test_files_of_operating_systems_are_not_mentioned_and_hidden_images_are(tmp_path):
    put(tmp_path, **{".DS_Store": b"", "Thumbs.db": b"", "desktop.ini": b"", "._a.png": b"", ".b.png": encoded("PNG")})
    put(tmp_path / "__MACOSX", **{"c.png": encoded("PNG")})
    put(tmp_path / ".thumbnails", **{"d.png": encoded("PNG")})
    found = folders.survey(tmp_path)
    assert (found.images, names(found.passed_over)) == ([], [".b.png", ".thumbnails"])
    assert len(survey_notes(found, tmp_path)) == 1


def test_links_to_files_and_folders_are_followed_and_loops_end(tmp_path):
    put(tmp_path / "set", **{"a.png": encoded("PNG")})
    put(tmp_path / "elsewhere", **{"b.png": encoded("PNG")})
    put(tmp_path / "set" / "sub", **{"c.png": encoded("PNG")})
    for name, target in {
        "a-linked.png": "a.png",
        "gone.png": "nowhere.png",
        "other": "../elsewhere",
        "again": "../elsewhere",
        "self": ".",
        "sub-linked": "sub",
        "up": "../..",
    }.items():
        (tmp_path / "set" / name).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    found = folders.survey(tmp_path / "set")
    assert names(found.images) == ["a-linked.png", "a.png", "b.png", "c.png"]
    assert names(found.broken) == ["gone.png", "up"]
    assert "sub/c.png" in [folders.below(path, tmp_path / "set") for path in found.images], "by its own path"


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    found = folders.survey(tmp_path)
    assert (found.images, names(found.passed_over)) == ([], ["pipe.png"])


def test_a_folder_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    put(tmp_path / "closed", **{"a.png": encoded("PNG")})
    listed = Path.iterdir

    def iterdir(path):
        if path.name == "closed":  # tests may run as root, who may open everything
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    found = folders.survey(put(tmp_path, **{"b.png": encoded("PNG")}))
    assert (names(found.images), names(found.closed)) == (["b.png"], ["closed"])
    (note,) = survey_notes(found, tmp_path)
    assert str(note) == "folders that may not be opened: 1 (closed). What is in them was not looked at."


def test_a_file_that_cannot_be_opened_is_left_for_the_reader_to_refuse(tmp_path, monkeypatch):
    put(tmp_path, scan=encoded("PNG"))
    monkeypatch.setattr(folders, "_head", lambda _path: None)
    assert names(folders.survey(tmp_path).images) == ["scan"]


def test_names_with_any_bytes_are_found_and_shown_in_one_line(tmp_path):
    raw = os.fsencode(tmp_path)
    for name in (b"new\nline.txt", b"tab\t.txt", b"\xff\xfe.txt", b"x" * 251 + b".txt", b"\x1b[31m.txt"):
        with open(raw + b"/" + name, "wb"):  # noqa: PTH123 (bytes, which Path does not take)
            pass
    found = folders.survey(tmp_path)
    assert len(found.passed_over) == 5
    (note,) = survey_notes(found, tmp_path)
    assert str(note).isprintable()
    str(note).encode("utf-8")


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_a_name_is_shown_as_printable_text_and_plain_names_as_they_are(name):
    line = folders.one_line(name)
    assert line.isprintable()
    line.encode("utf-8")
    if name.isprintable():
        assert line == name


@given(st.binary(max_size=600))
def test_any_content_is_sorted_without_an_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    assert folders.is_image(path) in (True, False)
    assert folders.is_archive(path) in (True, False)


def test_ten_thousand_files_take_seconds(tmp_path):
    for number in range(10_000):
        (tmp_path / f"{number}.txt").touch()
    started = time.process_time()
    found = folders.survey(tmp_path)
    assert time.process_time() - started < 10
    assert len(found.passed_over) == 10_000
    (note,) = survey_notes(found, tmp_path)
    assert str(note).startswith("files passed over: 10,000 (0.txt, 1.txt, 10.txt and 9,997 more).")
