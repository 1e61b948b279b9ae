"""What is sent of a reading, made from the records each time: DICOM objects, a FHIR bundle, an HL7 message."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from lungkit.clinic.records.cases import Case, Records
from lungkit.clinic.records.dispatches import NOT_AS_THE_FILE
from lungkit.clinic.records.patients import RecordMissing
from lungkit.clinic.records.studies import INSTEAD_OF
from lungkit.data import turning
from lungkit.data.image import Image
from lungkit.data.preprocess import Preprocessing, windowed
from lungkit.errors import LungkitError
from lungkit.gateway import fhir, hl7, objects
from lungkit.gateway.reported import Reported, reported_of
from lungkit.models import registry
from lungkit.models.card import ModelCard


class NoSource(LungkitError):
    """A reading whose images did not come as DICOM, were withdrawn or turned: no such object is filed next to them."""


class Delivery:
    """A reading of the records, and what is made from it. Raises RecordMissing."""

    def __init__(self, records: Records, reading_id: str):
        self._records = records
        self.case = records.case(reading_id)
        self.card = card_of(self.case)
        self._row = records.source(reading_id)

    @cached_property
    def source(self) -> objects.Source:
        """Its images. Raises NoSource, and SourceRefused where their headers allow no object."""
        if self.case.corrections.withdrawn:
            raise NoSource("a clinician has withdrawn this image, so there is no object to file next to it")
        return self._images

    @cached_property
    def _images(self) -> objects.Source:
        if self._row is None:
            raise NoSource("the image of this reading did not come as DICOM, so there is no object to file next to it")
        return objects.source_of(objects.unpacked(self._row.headers))

    @cached_property
    def result(self) -> objects.Result:
        """What the model said; of a reading without images that objects can name, for FHIR and HL7 only."""
        series = self._records.series(self.case.reading_id)
        if series is None or self._source is None:
            return objects.result_of_case(self.case, self.card, self._source, (), series.reasons if series else ())
        shown = [series.key.number, *(series.read[place].number for place in series.carrying)]
        carrying = carrying_of(self._source, series.slices, shown)
        return objects.result_of_case(self.case, self.card, self._source, carrying, series.reasons)

    @cached_property
    def reported(self) -> Reported:
        """What is told in FHIR and HL7, which do not need the images."""
        before = (self._row and self._row.supersedes) or self.case.tags.get(INSTEAD_OF, "")
        return reported_of(self.case, self.card, self._source, self.result, before)

    @property
    def _source(self) -> objects.Source | None:
        with suppress(NoSource, objects.SourceRefused):
            return self._images
        return None

    def report(self) -> Dataset:
        """The structured report of the reading, which names that of a reading it supersedes."""
        return objects.structured_report(self.source, self.result, self._superseded())

    def reviewed(self, review_id: str = "") -> Dataset:
        """The report with a review, by default the latest; without any review, that of the reading.

        Each report names the one before it, which is made again here: the same reading gives the same UIDs.
        """
        report = self.report()
        for row in self.case.reviews:
            report = objects.reviewed_report(self.source, self.result, objects.review_of(row), report)
            if row.id == review_id:
                return report
        if review_id:
            raise RecordMissing("the review is not in the records any more")
        return report

    def capture(self) -> Dataset:
        """The picture, as the model saw it, with its heat map."""
        self._require_as_the_file()
        spec = self.card.preprocessing if self.card else Preprocessing()
        units: Any = self.case.units
        seen = windowed(Image(self.case.pixels, units, "", "", {}), spec)
        return objects.secondary_capture(self.source, self.result, np.clip(seen, 0, 1))

    def segmentation(self) -> Dataset:
        """The heat map in the geometry of the images."""
        self._require_as_the_file()
        return objects.segmentation(self.source, self.result)

    def dicom(self, kind: str, review_id: str = "") -> Dataset:
        """The object of a kind: report, capture or segmentation."""
        if kind == "report":
            return self.reviewed(review_id) if review_id else self.report()
        return self.capture() if kind == "capture" else self.segmentation()

    def rejection(self, sent: Collection[tuple[str, str]]) -> Dataset:
        """What says that objects of a withdrawn image do not count. sent: the kind and the review of each."""
        withdrawn = self.case.corrections.withdrawn
        assert withdrawn is not None
        kinds = {kind for kind, review in sent if not review}
        reviews = [objects.review_of(row) for row in self.case.reviews if ("report", row.id) in sent]
        return objects.rejection_note(self._images, self.result, kinds, reviews, withdrawn.at)

    def told(self, before: Sequence[tuple[str, datetime]] = ()) -> list[Reported]:
        """What to tell, in this order: to take the result back from patients before, and the result as it is now.

        before: the ids of patients whom the image was with when it was told, and when it left each.
        """
        classes = self.case.classes
        back = [self.reported.taken_back(self._records.person(patient), at, classes) for patient, at in before]
        return [*back, self.reported]

    def bundle(self, address: Mapping[str, Any], told: Reported | None = None) -> bytes:
        """The FHIR transaction, as JSON. told: by default the result with its latest review, or its withdrawal."""
        numbers = str(address.get("patient_numbers", fhir.PATIENT_NUMBERS))
        return json.dumps(fhir.bundle(told or self.reported, patient_numbers=numbers)).encode()

    def message(self, address: Mapping[str, Any], told: Reported | None = None) -> bytes:
        """The HL7 message. told: as in `bundle`."""
        receiver = (str(address.get("application", "")), str(address.get("facility", "")))
        return hl7.oru_r01(told or self.reported, receiver=receiver, authority=str(address.get("authority", "")))

    def _require_as_the_file(self) -> None:
        """Raises NoSource where the image was turned before it was read: its places are not those of the source."""
        if turning.TURNED in self.case.tags:
            raise NoSource(NOT_AS_THE_FILE)

    def _superseded(self) -> Dataset | None:
        if self._row is None or self._row.supersedes is None:
            return None
        with suppress(RecordMissing):
            before = Delivery(self._records, self._row.supersedes)
            return objects.structured_report(before._images, before.result)
        return None


def carrying_of(source: objects.Source, slices: int, numbers: Iterable[int]) -> tuple[str, ...]:
    """The SOPInstanceUIDs of slices of a series by their number from 0, the one that is shown first.

    None where the source has not an image for each of the series' slices, as with an enhanced CT.
    """
    if len(source.instances) != slices:
        return ()
    return tuple(dict.fromkeys(source.instances[number] for number in numbers))


def card_of(case: Case) -> ModelCard | None:
    """The card of the version that read; None if it is no longer in the registry."""
    try:
        return registry.find(f"{case.model}@{case.version}").card
    except LungkitError:
        return None
