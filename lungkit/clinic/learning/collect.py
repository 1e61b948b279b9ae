"""Writes reviewed images as a data set that `lungkit.data.dataset` loads, with a manifest that seals what is in it.

Each collection is a new folder, FOLDER/NAME-v1, -v2, …, and its manifest names the hash of the one before. The hash of
the content depends on the records alone: the labels with their readers, and the pixels.
"""

import csv
import getpass
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

import lungkit
from lungkit import files, progress
from lungkit.clinic.learning import agreement, reviews
from lungkit.clinic.learning.reviews import Asked, Reviewed, Selection
from lungkit.clinic.records import audit_trail, pixels
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import now
from lungkit.data import images
from lungkit.data.dicom import AIR
from lungkit.data.review_sets import MANIFEST
from lungkit.errors import LungkitError
from lungkit.wording import count, percent

_COLUMNS = (
    "file", "label", "patient_id", "source", "kind", "reviewed_at", "reader", "readers", "answer_shown", "model",
    "version", "model_label", "pixels_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class Collected:
    """folder: of the data set. new: False where the last collection has the same content already."""

    folder: Path
    new: bool
    manifest: dict[str, Any]


def collect(store: Store, home: Path, asked: Asked, source: str) -> Collected:
    """Write the reviewed images as the next data set below `home`; nothing there is written over.

    source: what the data set calls this clinic. The audit trail notes how many images it has. Raises LungkitError if
    there is nothing to collect, OSError where it cannot be written.
    """
    home = home.absolute()  # its name is the data set's
    home.mkdir(parents=True, exist_ok=True)
    with files.locked(home / ".lock"), store.read() as db:
        chosen = reviews.select(db, asked)
        if not chosen.labelled:
            raise LungkitError(f"there is no image to collect: {_left_out(chosen.counts)}")
        tables = {"labels.csv": _labels_csv(chosen.labelled, source), "aside.csv": _aside_csv(chosen)}
        before, number = _last(home)
        manifest = _manifest(asked, source, chosen, tables)
        if before and before[1]["content_sha256"] == manifest["content_sha256"]:
            _note(store, manifest, new=False)
            return Collected(before[0], False, before[1])
        folder = home / f"{home.name}-v{number}"
        with files.new_folder(folder) as draft:
            draft.chmod(0o700)
            (draft / "images").mkdir()
            for image in progress.bar(chosen.labelled, label=f"writing {folder.name}", unit="image"):
                write_image(draft / _file(image), image, *reviews.stored_pixels(db, image.study_id))
            for name, table in tables.items():
                (draft / name).write_bytes(table)
            listed = sorted(path for path in draft.rglob("*") if path.is_file())
            manifest |= {
                "name": folder.name,
                "version": number,
                "made_at": now().isoformat(timespec="seconds"),
                "made_by": _user(),
                "lungkit": lungkit.__version__,
                "follows": files.sha256(before[0] / MANIFEST) if before else None,
                "files": {path.relative_to(draft).as_posix(): files.sha256(path) for path in listed},
            }
            (draft / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", "utf-8")
            files.sync(draft)
            _note(store, manifest, new=True)
    return Collected(folder, True, manifest)


def _note(store: Store, manifest: dict[str, Any], new: bool) -> None:
    """Put the collection on the audit trail: counts, no images."""
    with store.write() as db:
        audit_trail.append(
            db, None, "learn.collect", "records:all", new=new, content=manifest["content_sha256"], **manifest["asked"],
            counts=manifest["counts"],
        )  # fmt: skip


def _last(home: Path) -> tuple[tuple[Path, dict[str, Any]] | None, int]:
    """The newest data set below a folder with its manifest, and the next number."""
    of_number = {
        int(match[1]): path
        for path in home.iterdir()
        if (match := re.fullmatch(rf"{re.escape(home.name)}-v(\d+)", path.name))
    }
    if not of_number:
        return None, 1
    newest = of_number[max(of_number)]
    try:
        manifest = json.loads((newest / MANIFEST).read_text("utf-8"))
        return (newest, {"content_sha256": "", **manifest}), max(of_number) + 1
    except (OSError, ValueError, TypeError) as error:
        raise LungkitError(
            f"{newest} has no {MANIFEST} that can be read ({error}); move it away, or restore it"
        ) from None


# --- what is in it


def _file(image: Reviewed) -> str:
    return f"images/{image.study_id}.{'dcm' if image.units == 'HU' else 'png'}"


def _labels_csv(labelled: Iterable[Reviewed], source: str) -> bytes:
    rows = [
        {
            **asdict(image),
            "file": _file(image),
            "source": source,
            "reviewed_at": image.reviewed_at.isoformat(timespec="seconds"),
            "readers": len(image.labels),
            "answer_shown": "yes" if image.answer_shown else "no",
        }
        for image in labelled
    ]
    return csv_table(_COLUMNS, ([row[column] for column in _COLUMNS] for row in rows))


def _aside_csv(chosen: Selection) -> bytes:
    """Reading, why it was set aside, and what each reader says."""
    rows = [
        (one.reading_id, one.reason, "; ".join(f"{reader}: {label}" for reader, label in one.said.items()))
        for one in chosen.aside
    ]
    return csv_table(("reading_id", "reason", "labels"), rows)


def csv_table(columns: tuple[str, ...], rows: Iterable[Iterable[object]]) -> bytes:
    """A table as CSV in UTF-8, with its columns in the first line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue().encode()


def _manifest(asked: Asked, source: str, chosen: Selection, tables: dict[str, bytes]) -> dict[str, Any]:
    """What depends on the records and the question alone, with its hash."""
    labelled = chosen.labelled
    between = agreement.agreement([image.labels for image in chosen.images], [one.patient_id for one in chosen.images])
    asked_for = asdict(asked) | {"since": asked.since.isoformat() if asked.since else None, "source": source}
    content = asked_for | {name: files.sha256(table) for name, table in tables.items()}
    return {
        "content_sha256": files.sha256(json.dumps(content, sort_keys=True).encode()),
        "asked": asked_for,
        "counts": chosen.counts,
        "labels": dict(sorted(Counter(image.label for image in labelled).items())),
        "patients": len({image.patient_id for image in labelled}),
        "readers": {str(who): n for who, n in sorted(Counter(r for one in labelled for r in one.labels).items())},
        "without_answer": sum(not image.answer_shown for image in labelled),
        "agreement": {
            "cohen": {f"{one} and {two}": asdict(kappa) for (one, two), kappa in between.cohen.items()},
            "fleiss": asdict(between.fleiss) if between.fleiss else None,
        },
    }


def _left_out(counts: dict[str, int]) -> str:
    """Why images are not in a data set: "4 of 9 reviewed images are not in it; readers differ: 3; …"."""
    whole = counts.get("reviewed", 0)
    named = [f"{why}: {n}" for why, n in counts.items() if n and why not in ("reviewed", "collected")]
    return "; ".join(
        [f"{whole - counts.get('collected', 0)} of {count(whole, 'reviewed image')} are not in it", *named]
    )


def said(manifest: dict[str, Any]) -> list[str]:
    """The lines that tell a person what was collected."""
    labels = ", ".join(f"{label} {n}" for label, n in manifest["labels"].items())
    images = sum(manifest["labels"].values())
    lines = [
        f"{count(images, 'image')} of {count(manifest['patients'], 'patient')}: {labels}",
        _left_out(manifest["counts"]),
        f"{manifest['without_answer']} of {images} were labelled without the model's answer on screen",
    ]
    kappas = {f"readers {pair} (Cohen's kappa)": kappa for pair, kappa in manifest["agreement"]["cohen"].items()}
    if len(kappas) > 1:
        kappas["all readers (Fleiss' kappa)"] = manifest["agreement"]["fleiss"]
    lines += [f"agreement of {who}: {_kappa(kappa)}" for who, kappa in kappas.items()]
    return [*(lines if kappas else [*lines, "no image has two readers, so their agreement is not known"]),
            f"SHA-256 of the content: {manifest['content_sha256']}"]  # fmt: skip


def _kappa(kappa: dict[str, Any]) -> str:
    value = "cannot be computed, all labels are of one class" if kappa["value"] is None else f"{kappa['value']:.2f}"
    interval = f" (95 % interval {kappa['low']:.2f} to {kappa['high']:.2f})" if kappa["low"] is not None else ""
    return (
        f"{value}{interval}, the same label in {percent(round(kappa['agreed'], 9))} of "
        f"{count(kappa['images'], 'image')} of {count(kappa['patients'], 'patient')}"
    )


def _user() -> str:
    """The account that runs the command, as the system names it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return "unknown"


# --- pixels


def write_image(path: Path, image: Reviewed, png: bytes, units: str) -> None:
    """Write an image in the form that the reader gives back exactly, and check that it does."""
    values = pixels.decode(png, units)
    if units == "HU":
        _write_dicom(path, values, image)
    else:
        path.write_bytes(png)
    try:
        read = images.read(path, f"the image of reading {image.reading_id}")
    except images.ImageRefused as error:
        raise LungkitError(f"{error} Exclude its patient to collect the others.") from error
    if read.units != units or pixels.digest(read.pixels, units) != image.pixels_sha256:
        raise LungkitError(f"the image of reading {image.reading_id} is not read back as it is in the records")


def _write_dicom(path: Path, hu: np.ndarray, image: Reviewed) -> None:
    """A CT image with these HU and nothing of its origin but random identifiers."""
    instance = generate_uid(entropy_srcs=["lungkit collect", image.study_id])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, instance
    ds.StudyInstanceUID, ds.SeriesInstanceUID = (
        generate_uid(entropy_srcs=[instance, of]) for of in ("study", "series")
    )
    ds.ImageType, ds.Modality, ds.PatientID = ["DERIVED", "SECONDARY", "AXIAL"], "CT", image.patient_id
    ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", "lungkit: pixels and random identifiers alone"
    ds.PatientName = ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ds.StudyID = ""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, int(AIR), "HU"
    ds.PixelData = (hu - np.float32(AIR)).astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
