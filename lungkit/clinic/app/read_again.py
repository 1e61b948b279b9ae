"""What a reading without a finding offers: turn the image upright, or another model, and read it again."""

import base64
import io
import time
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np
import PIL.Image

from lungkit.clinic.app.page import Page, field, notice, replace, safe
from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records import pixels
from lungkit.clinic.records.cases import Case, Records
from lungkit.clinic.records.patients import age_at
from lungkit.data import turning
from lungkit.data.image import years_in
from lungkit.errors import LungkitError
from lungkit.models import population, registry
from lungkit.models.input_checks import AS_FILE_SAYS, NOT_AXIAL
from lungkit.models.population import AGE_KNOWN
from lungkit.models.prediction import AGE, MODALITY

SAVED = "This image was read again. The reading below replaces the earlier one."


class ReadAgain:
    """An offer below which the reading stands; empty where there is nothing to offer.

    show: called with the id of the new reading after it was saved. Series are not read again: their slices lie as they
    are stated, and a program may send late ones.
    """

    def __init__(self, case: Case, records: Records, page: Page, models: ModelPool | None, show: Callable[[str], None]):
        # Not the case itself: its pixels would stay in memory for as long as these buttons.
        self._reading_id, self._records, self._page, self._show = case.reading_id, records, page, show
        self.widget = widgets.VBox().add_class("read-again")
        stays = case.superseded or case.corrections.withdrawn is not None
        if models is None or stays or records.series(case.reading_id):
            return
        self._models, failed = models, {check.name: check for check in case.checks if not check.passed}
        by_year, age = age_at(case.patient.birth_year, case.tags), years_in(case.tags.get("age", ""))
        lies = failed["orientation"].words if "orientation" in failed else NOT_AXIAL
        if MODALITY in failed:
            if kind := models.fitting(case.model, by_year, age, case.kind):
                words = f"{kind} reads {case.kind} images, and is for patients of this age."
                self._offer(words, f"Read again with {kind}", lambda: self._read(kind))
        elif lies != NOT_AXIAL:
            self._offer_turn(case, lies)
        elif AGE in failed and _is_for(case.model, by_year, age):
            model = case.model
            words = f"{model} is for patients of this age: the image was read for another patient, and moved."
            self._offer(words, "Read again", lambda: self._read(model))
        elif AGE in failed and (other := models.fitting(case.model, by_year, age)):
            words = f"{other} is for patients of this age."
            self._offer(words, f"Read again with {other}", lambda: self._read(other))
        elif AGE_KNOWN in failed and by_year is not None:
            model = case.model
            self._offer("The birth year is now known.", "Read again", lambda: self._read(model))

    def _offer(self, words: str, what: str, read: Callable[[], None]) -> None:
        replace(self.widget, widgets.HTML(notice(words, "note")), self._page.button(what, read, "primary"))

    def _offer_turn(self, case: Case, words: str) -> None:
        model, lie = case.model, turning.lie_in(words)
        self._small = _small(case)
        options = [(_asked(one), number) for number, one in enumerate(turning.LIES) if one != turning.UPRIGHT]
        if AS_FILE_SAYS in words:
            options.append(("Leave it: what its file says is wrong", turning.LIES.index(turning.UPRIGHT)))
        self.turn = field(
            widgets.Dropdown,
            "Turn the image",
            options=options,
            value=turning.LIES.index(lie if lie != turning.UPRIGHT else (True, 0)),
        )
        self.preview = widgets.HTML()
        self._page.on_change(self._preview, self.turn)
        self._preview()
        told = (
            "The model does not decide on an image that does not lie upright. Compare the preview, then read it again."
        )
        read = self._page.button(
            "Turn it and read again", lambda: self._read(model, turning.LIES[self.turn.value]), "primary"
        )
        choice = widgets.VBox([self.turn, read])
        replace(self.widget, widgets.HTML(notice(told, "note")), widgets.HBox([self.preview, choice]))

    def _preview(self) -> None:
        picture = turning.turned_back(self._small, turning.LIES[self.turn.value])
        stream = io.BytesIO()
        PIL.Image.fromarray(picture).save(stream, "PNG")
        encoded = base64.b64encode(stream.getvalue()).decode()
        words = safe(f"Preview, {turning.turn_words(turning.LIES[self.turn.value])}")
        self.preview.value = f'<figure><img src="data:image/png;base64,{encoded}" alt="{words}"></figure>'

    def _read(self, model: str, lie: turning.Lie | None = None) -> None:
        started = time.perf_counter()
        case = self._records.case(self._reading_id)
        image = pixels.image_of(case.pixels, case.units, case.kind, case.tags)
        if lie is not None:
            image = turning.upright(image, lie)
        answer = self._models.get(model).read(image, started, age_at(case.patient.birth_year, image.tags))
        saved = self._records.save_again(self._reading_id, image, answer, case.shown)
        self._show(saved.reading_id)
        self._page.say(SAVED, "done")


def _is_for(model: str, by_year: float | None, age: float | None) -> bool:
    """Whether the version in use is for patients of this age, by their birth year and by the file."""
    try:
        return population.suits(registry.active(model).card, by_year, age)
    except LungkitError:  # it is gone, or damaged
        return False


def _asked(lie: turning.Lie) -> str:
    """ "Turn by 90° to the right, then mirror left and right"."""
    mirrored, quarters = lie
    turn = turning.turn_words((False, quarters)).replace("turned", "Turn") if quarters else ""
    mirror = "mirror left and right" if turn else "Mirror left and right"
    return ", then ".join(filter(None, [turn, mirror if mirrored else ""]))


def _small(case: Case) -> np.ndarray:
    """The picture as on a patient's page: uint8 (height, width)."""
    image = pixels.image_of(case.pixels, case.units, case.kind, {})
    return np.asarray(PIL.Image.open(io.BytesIO(pixels.thumbnail(pixels.encode(image), case.units))))
