"""A data set for research of reviewed images: random identifiers, groups of ages, no dates, k patients alike.

Text that is burnt into pictures is the largest risk, and no program finds all of it. A person looks at contact sheets
first and writes down which images may leave; CT in Hounsfield units has no text and needs no look.
"""

import csv
import io
import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import sqlalchemy as sa
from sqlalchemy import orm

from lungkit import files, progress
from lungkit.clinic.learning import collect, dataset_card, reviews
from lungkit.clinic.learning.anonymity import Anonymous, anonymous
from lungkit.clinic.learning.reviews import Asked, Reviewed
from lungkit.clinic.records import audit_trail, pixels
from lungkit.clinic.records.store import Store
from lungkit.clinic.records.tables import Patient, Study, now
from lungkit.errors import LungkitError
from lungkit.wording import count, listed

LEAST_K, USUAL_K = 2, 5
CHECKED = "images.csv"  # on the contact sheets
TILE, ACROSS, DOWN = 480, 4, 3  # pixels, and pictures on a sheet
# Defined terms of ViewPosition in DICOM PS3.3 (C.8.1.1), and what many devices write for a lateral view.
VIEWS = ("AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LATERAL")
TERMS = "not given: ask the clinic before any use"
_YES, _NO = "yes", "no"


@dataclass(frozen=True)
class Exported:
    """folder: of the data set. facts: as its card says them."""

    folder: Path
    facts: dict[str, Any]


def sheets(store: Store, folder: Path, asked: Asked) -> int:
    """Write contact sheets of all pictures that could have text in them, and a table to fill; returns their number.

    The folder is private: it has the clinic's own identifiers. Raises LungkitError if there is none to look at, or if
    the folder is in use.
    """
    _refuse_used(folder)
    with store.read() as db:
        some = [image for image in reviews.select(db, asked).labelled if image.units != "HU"]
        if not some:
            raise LungkitError("there is no reviewed picture to look at; CT in Hounsfield units needs no look")
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with files.new_folder(folder.absolute()) as draft:
            draft.chmod(0o700)
            per_sheet, rows = ACROSS * DOWN, []
            for start in progress.bar(range(0, len(some), per_sheet), label="contact sheets", unit="sheet"):
                number = start // per_sheet + 1
                of_sheet = some[start : start + per_sheet]
                _sheet(db, of_sheet).save(draft / f"sheet-{number:03}.png")
                rows += [
                    (number, place, image.study_id, image.pixels_sha256, "") for place, image in enumerate(of_sheet, 1)
                ]
            columns = ("sheet", "place", "study", "pixels_sha256", "may_leave")
            (draft / CHECKED).write_bytes(collect.csv_table(columns, rows))
    return len(some)


def _sheet(db: orm.Session, some: Sequence[Reviewed]) -> PIL.Image.Image:
    sheet = PIL.Image.new("L", (ACROSS * TILE, DOWN * TILE))
    for place, image in enumerate(some):
        png, units = reviews.stored_pixels(db, image.study_id)
        grey = np.rint(np.clip(pixels.decode(png, units), 0, 1) * 255).astype(np.uint8)
        tile = PIL.Image.fromarray(grey)
        tile.thumbnail((TILE - 4, TILE - 24), PIL.Image.Resampling.LANCZOS)
        left, top = place % ACROSS * TILE, place // ACROSS * TILE
        sheet.paste(tile, (left + 2, top + 22))
        PIL.ImageDraw.Draw(sheet).text((left + 4, top + 4), str(place + 1), fill=255)
    return sheet


def export(
    store: Store, folder: Path, asked: Asked, source: str, k: int = USUAL_K, checked: Path | None = None,
    licence: str = TERMS, url: str = "",
) -> Exported:  # fmt: skip
    """Write the data set as a new folder. The audit trail notes its counts.

    source: what it calls this clinic. checked: the filled table of `sheets`. licence, url: for the card.
    Raises LungkitError where pictures were not looked at, if nothing is left, or if the folder is in use.
    """
    if k < LEAST_K:
        raise LungkitError(f"k = {k}: accepted are {LEAST_K} or more")
    if asked.locked:
        raise LungkitError("images of the locked set are not exported: a model could learn from them")
    folder = folder.absolute()
    _refuse_used(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with store.read() as db:
        chosen = reviews.select(db, asked)
        counts = {why: n for why, n in chosen.counts.items() if n and why not in ("reviewed", "collected")}
        images, looked = _checked(chosen.labelled, checked, counts)
        left = _anonymous(db, images, k)
        if not left.rows:
            raise LungkitError(f"nothing is left to export: {_why_nothing(images, counts, k)}")
        rows = _rows(images, left)
        facts = {
            "source": source, "k": k, "licence": licence, "url": url or "https://example.org/not-published",
            "images": len(rows), "patients": len({row["patient"] for _, row in rows}), "looked": looked,
            "labels": dict(sorted(Counter(row["label"] for _, row in rows).items())),
            "models": ", ".join(sorted({image.model for image, _ in rows})), "smallest": left.smallest,
            "groups": left.groups, "coarser": left.coarser, "left_out": left.left_out, "counts": counts,
            "reviewed": chosen.counts.get("reviewed", 0), "year": str(now().year),
        }  # fmt: skip
        _write(db, folder, rows, facts)
    noted = ("images", "patients", "k", "smallest", "left_out", "coarser")
    with store.write() as db:
        asked_for = {"model": asked.model, "since": asked.since.isoformat() if asked.since else None}
        audit_trail.append(
            db, None, "learn.export", "records:all", **asked_for, **{name: facts[name] for name in noted}
        )
    return Exported(folder, facts)


def _refuse_used(folder: Path) -> None:
    """What is in a folder stays, such as the answers of a person who looked at pictures."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise LungkitError(f"{folder} is there already, and nothing is written over; name a new folder")


def _why_nothing(images: Sequence[Reviewed], counts: dict[str, int], k: int) -> str:
    if images:
        return f"no {k} patients are alike, of {len({image.patient_id for image in images})}"
    return listed([f"{why}: {n}" for why, n in counts.items() if n] or ["there is no reviewed image"], "and")


def _write(db: orm.Session, folder: Path, rows: list[tuple[Reviewed, dict[str, Any]]], facts: dict[str, Any]) -> None:
    with files.new_folder(folder) as draft:
        (draft / "images").mkdir()
        for image, row in progress.bar(rows, label=f"writing {folder.name}", unit="image"):
            # Also the identifiers in DICOM files come from the new ones.
            new = replace(image, study_id=Path(row["file"]).stem, patient_id=row["patient"])
            collect.write_image(draft / row["file"], new, *reviews.stored_pixels(db, image.study_id))
        columns = tuple(dataset_card.COLUMNS)
        table = collect.csv_table(columns, [[row[column] for column in columns] for _, row in rows])
        (draft / "labels.csv").write_bytes(table)
        (draft / "README.md").write_text(dataset_card.readme(folder.name, facts), "utf-8")
        described = dataset_card.croissant(folder.name, facts, files.sha256(table))
        (draft / "croissant.json").write_text(json.dumps(described, indent=2) + "\n", "utf-8")
        files.sync(draft)


# --- what may leave


def _checked(images: list[Reviewed], checked: Path | None, counts: dict[str, int]) -> tuple[list[Reviewed], str]:
    """The images that may leave, and a sentence for the card; those that may not are counted."""
    pictures = [image for image in images if image.units != "HU"]
    if not pictures:
        return images, "All images are CT in Hounsfield units, made from the stored values: nothing is burnt in."
    if checked is None:
        raise LungkitError(
            f"{len(pictures)} pictures may have text burnt in, such as a name: write contact sheets (--sheets), look "
            f"at each, write {_YES} or {_NO} under may_leave in {CHECKED}, and give it with --checked"
        )
    may = _said(checked)
    left = [i for i in images if i.units == "HU" or may.get((i.study_id, i.pixels_sha256)) == _YES]
    held_back = sum(may.get((i.study_id, i.pixels_sha256)) == _NO for i in pictures)
    unseen = len(images) - len(left) - held_back
    named = {"pictures that a person held back": held_back, "pictures that no one looked at": unseen}
    counts |= {why: n for why, n in named.items() if n}
    seen = len(pictures) - unseen
    return left, f"A person looked at {seen} pictures for text burnt into them, and let {len(left)} images leave."


def _said(path: Path) -> dict[tuple[str, str], str]:
    """The filled table: study and pixels to yes, no or nothing."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))
        given = {(row["study"], row["pixels_sha256"]): row["may_leave"].strip().lower() for row in rows}
    except (OSError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise LungkitError(f"{path} is not the table of contact sheets ({type(error).__name__}): {error}") from None
    if wrong := sorted(set(given.values()) - {_YES, _NO, ""}):
        raise LungkitError(f"{path}: may_leave is {wrong[0][:40]!r}; accepted are {_YES}, {_NO}, or nothing")
    return given


def _anonymous(db: orm.Session, images: list[Reviewed], k: int) -> Anonymous:
    found = db.execute(
        sa.select(Study.id, Study.kind, Study.tags, Study.uploaded_at, Patient.id.label("patient"), Patient.birth_year,
                  Patient.sex).join(Patient).where(Study.id.in_([image.study_id for image in images]))
    )  # fmt: skip
    of_study = {row.id: row for row in found}
    first: dict[str, int] = {}
    for row in of_study.values():
        first[row.patient] = min(first.get(row.patient, row.uploaded_at.year), row.uploaded_at.year)
    rows = []
    for image in images:
        row, year = of_study[image.study_id], first[image.patient_id]
        age = None if row.birth_year is None else max(0, year - row.birth_year)
        rows.append({"age": age, "sex": row.sex, "year": year, "view": _view(row.tags), "kind": row.kind})
    return anonymous(rows, [image.patient_id for image in images], k)


def _view(tags: dict[str, str]) -> str:
    """A header can hold anything: the name of a clinic, or what a spreadsheet takes for a formula."""
    stated = tags.get("view", "").strip().upper()
    return stated if stated in VIEWS else "other" if stated else "unknown"


def _rows(images: list[Reviewed], left: Anonymous) -> list[tuple[Reviewed, dict[str, Any]]]:
    """The rows of labels.csv with their images, in the order of random names, which says nothing of the clinic."""
    names: dict[str, str] = {}
    rows = []
    for place, said in left.rows:
        image = images[place]
        patient = names.setdefault(image.patient_id, f"p-{secrets.token_hex(8)}")
        file = f"images/{secrets.token_hex(8)}.{'dcm' if image.units == 'HU' else 'png'}"
        shown = _YES if image.answer_shown else _NO
        more = {"file": file, "label": image.label, "patient": patient, "readers": len(image.labels)}
        rows.append((image, said | more | {"answer_shown": shown}))
    return sorted(rows, key=lambda row: str(row[1]["file"]))


def said(made: Exported) -> list[str]:
    """The lines that tell a person what was exported."""
    facts = made.facts
    coarser = [column for column, level in facts["coarser"].items() if level]
    lines = [
        f"{count(facts['images'], 'image')} of {count(facts['patients'], 'patient')}: "
        + ", ".join(f"{label} {n}" for label, n in facts["labels"].items()),
        f"k = {facts['k']}: {count(facts['groups'], 'group')}, the smallest of {count(facts['smallest'], 'patient')}; "
        f"made coarser: {', '.join(coarser) or 'nothing'}; left out: {count(facts['left_out'], 'patient')}",
        *(f"not exported, {why}: {n}" for why, n in facts["counts"].items() if n),
        facts["looked"],
    ]
    return [*lines, f"{made.folder}: written. Read its README.md before it leaves the clinic."]
