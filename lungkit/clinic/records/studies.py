"""One image that was read again has several studies: as it came, and as it was turned or read by another model.

Each reading again makes a study of its own, because its pixels may be turned; so does a series to which late images
came. What is done about the image, such as a move to another patient, concerns all of them.
"""

import sqlalchemy as sa
from sqlalchemy import orm

from lungkit.clinic.records.tables import Reading, ReadingSource, Study

INSTEAD_OF = "instead_of"  # a tag of a study: the reading in whose place its own is


def instead_of(study: type[Study] = Study) -> sa.ColumnElement[str]:
    """The column with the reading in whose place that of a study is; NULL for an image that was read once."""
    column: sa.ColumnElement[str] = study.tags[INSTEAD_OF].as_string()
    return column


def of_same_image(db: orm.Session, study: Study) -> list[Study]:
    """This study and all others of the same image or series, with their readings; those read first come first.

    An image that was uploaded again is not the same: someone wanted it there a second time.
    """
    found, new = {study.id: study}, [study]
    while new:
        linked = [one for known in new for one in db.scalars(_linked(known))]
        new = list({one.id: one for one in linked if one.id not in found}.values())
        found |= {one.id: one for one in new}
    return sorted(found.values(), key=lambda one: ([reading.read_at for reading in one.readings], one.id))


def _linked(study: Study) -> sa.Select[Study]:
    """The studies whose readings are in the place of those of this one, or the other way round."""
    readings = [reading.id for reading in study.readings]
    others = sa.select(Reading.study_id).outerjoin(ReadingSource, ReadingSource.reading_id == Reading.id)
    before = sa.select(ReadingSource.supersedes).where(ReadingSource.reading_id.in_(readings))
    again = (Study.sha256 == study.sha256) & instead_of().in_(readings)
    return (
        sa.select(Study)
        .where(
            again
            | Study.id.in_(others.where(ReadingSource.supersedes.in_(readings) | Reading.id.in_(before)))
            | Study.id.in_(sa.select(Reading.study_id).where(Reading.id == study.tags.get(INSTEAD_OF)))
        )
        .options(orm.selectinload(Study.readings))
    )


def readings_of(studies: list[Study]) -> sa.Select[str]:
    """The ids of the readings of these studies, as a query."""
    return sa.select(Reading.id).where(Reading.study_id.in_([one.id for one in studies]))
