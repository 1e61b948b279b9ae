"""New case: the patient, the model and the images; each image becomes a reading, or is refused with a reason."""

import hashlib
import time
from collections.abc import Callable

import ipywidgets as widgets

from lungkit import config
from lungkit.clinic.app.describe import patient_heading
from lungkit.clinic.app.page import notice, replace, safe, show_if
from lungkit.clinic.app.patient_finder import PatientFinder
from lungkit.clinic.app.reading import reading
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.app.upload import UploadField
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.clinic.records.accounts import Forbidden, SignedOut
from lungkit.clinic.records.cases import NewPatient, PatientRow
from lungkit.clinic.records.tables import SEXES
from lungkit.clinic.web import door
from lungkit.data import images
from lungkit.errors import LungkitError
from lungkit.models import card_text, registry
from lungkit.wording import percent

ACCEPTED = "PNG, JPEG, TIFF or DICOM; one file or several"


class NewCaseScreen(Screen):
    """The form, the list of files with their results, and one reading at a time.

    patient: whose images these are; a NewPatient is saved with the first image that is read.
    """

    def __init__(self, *given):
        super().__init__(*given)
        act = self.page.act
        self.patient: PatientRow | NewPatient | None = None
        self.finder = PatientFinder(self.records, act, self._select)
        self.entry = _PatientForm(act, self._enter)
        self.search = widgets.VBox([self.finder.widget, self.entry.widget])
        self.heading = widgets.HTML()
        self.change = self.button("Choose another patient", lambda: self._select(None), "link")
        self.selected = widgets.VBox([self.heading, self.change])

        self.model = widgets.Dropdown(description="Model").add_class("field")
        self.about = widgets.HTML()
        self.notes = widgets.Textarea(description="Notes (saved with each image)", placeholder="Optional", rows=3)
        self.upload = UploadField(
            act(self._receive), door.upload, self._ready, config.upload_bytes(), title="3. Images"
        )
        self.on_change(self._describe_model, self.model)
        steps = [
            [widgets.HTML("<h2>1. Patient</h2>"), self.selected, self.search],
            [widgets.HTML("<h2>2. Model and notes</h2>"), self.model, self.about, self.notes.add_class("field")],
        ]
        cards = [widgets.VBox(parts).add_class("card") for parts in steps]
        self.form = widgets.Box([*cards, self.upload]).add_class("new-case")
        self.files = _FileList(act, self._show)
        self.again = self.button("Next patient", self.reset, "primary")
        self.more = self.button("More images of this patient", lambda: self._show_form(True))
        self.next = widgets.HBox([self.again, self.more]).add_class("case-next")
        self.reading = widgets.VBox()
        top = widgets.HBox([widgets.HTML("<h1>New case</h1>"), self.next]).add_class("screen-top")
        self.widget.children = (top, self.form, self.files.widget, self.reading)
        self.reset()

    # --- the form

    def reset(self) -> None:
        """Empty the form for the next patient."""
        replace(self.reading)
        self.files.clear()
        self.finder.clear()
        self.entry.clear()
        self.notes.value = ""
        self._select(None)
        self._show_form(True)
        self.refresh()

    def refresh(self) -> None:
        """Offer the models that are in use now."""
        choices = self.models.choices()
        if list(self.model.options) != choices:
            names = {name for _, name in choices}
            wanted = self.model.value if self.model.value in names else None
            self.model.options = choices
            if choices:
                self.model.value = wanted or self.models.default()
        self._describe_model()

    def _describe_model(self) -> None:
        if self.model.value is None:
            self.about.value = notice(*self._why_no_model())
        else:
            self.about.value = _model_description(self.model.value)
        self._update_upload()

    def _why_no_model(self) -> tuple[str, str]:
        try:
            self.models.default()
        except registry.ModelDamaged as problem:
            return f"No model can be used. Tell an administrator: {problem}", "problem"
        except LungkitError:
            pass
        return "No model is in use yet. An administrator can select one under Models.", "note"

    def _select(self, patient: PatientRow | NewPatient | None) -> None:
        self.patient = patient
        show_if(patient is None, self.search)
        show_if(patient is not None, self.selected)
        new = '<p class="about">New patient. Will be saved with the first image.</p>'
        heading = patient_heading(patient) if patient else ""
        self.heading.value = heading + (new if isinstance(patient, NewPatient) else "")
        self._update_upload()

    def _enter(self, new: NewPatient) -> None:
        self._refuse_known_number(new)
        self._select(new)

    def _refuse_known_number(self, new: NewPatient) -> None:
        if known := self._numbered(new.number):
            raise LungkitError(
                f"The number {new.number} already belongs to {known.name}. Select that patient, or check the number."
            )

    def _numbered(self, number: str) -> PatientRow | None:
        return next((known for known in self.records.find_patients(number) if known.number == number), None)

    def _ready(self) -> bool:
        return self.patient is not None and self.model.value is not None

    def _update_upload(self) -> None:
        self.upload.disabled = not self._ready()
        limit = f"up to {config.upload_bytes() // 2**20} MiB each"
        self.upload.hint = f"{ACCEPTED}, {limit}" if self._ready() else "Choose the patient first"

    def _show_form(self, shown: bool) -> None:
        show_if(shown, self.form)
        show_if(not shown, self.next)
        show_if(self.patient, self.more)

    # --- the files

    def _receive(self, name: str, content: bytes | None, number: int, of: int) -> None:
        """One file: read it, save the reading, show the first of several at once."""
        line = self.files.add(name, f"Reading … ({number} of {of})" if of > 1 else "Reading …")
        try:
            self._read(line, name, content)
        except (SignedOut, Forbidden):
            line.refused("Not read.")
            raise
        except LungkitError as problem:
            line.refused(_without_file_name(problem, name))
        except Exception:
            line.refused("Something went wrong and nothing was saved. Try again, or tell an administrator.")
            raise

    def _read(self, line: "_FileLine", name: str, content: bytes | None) -> None:
        started = time.perf_counter()
        sha256 = hashlib.sha256(content or b"").hexdigest()
        known = isinstance(self.patient, PatientRow)
        # Both calls also check who is signed in, before the model runs.
        if not known:
            self._refuse_known_number(self.patient)
        elif earlier := self.records.same_upload(self.patient.id, sha256):
            line.known(earlier)
            return
        if content is None:
            raise LungkitError("did not arrive. Choose it again. If this happens again, reload the page.")
        image = images.read(content, name)
        answer = self._predictor().read(image, started)
        reading_id, patient = self.records.save_case(
            self.patient.id if known else self.patient, image, sha256, answer, self.notes.value
        )
        if not known:
            self._select(patient)
        probability = percent(float(answer.probabilities[list(answer.classes).index(answer.label)]))
        line.read(reading_id, answer.decision, probability, time.perf_counter() - started)
        if not self.reading.children:
            self._show(reading_id)

    def _predictor(self) -> Predictor:
        try:
            return self.models.get(self.model.value)
        except registry.ModelDamaged as problem:
            # Only an administrator can repair it.
            raise LungkitError(
                f"The model {self.model.value} is damaged, so this image was not read and nothing was saved. Choose "
                f"another model, or tell an administrator: {problem}"
            ) from problem

    def _show(self, reading_id: str) -> None:
        case = self.records.case(reading_id)
        replace(self.reading)  # first, or a click could meet a button of the reading before
        self._show_form(False)
        self.files.mark(reading_id)
        replace(self.reading, reading(case, self.records, self.page.act))


class _PatientForm:
    """The fields of a new patient; `on_enter` is called with a NewPatient that can be saved."""

    def __init__(self, act: Callable, on_enter: Callable[[NewPatient], None]):
        self._on_enter = on_enter
        self.number = widgets.Text(description="Patient number").add_class("field")
        self.name = widgets.Text(description="Name").add_class("field")
        self.birth_year = widgets.Text(description="Birth year (if known)", placeholder="YYYY").add_class("field")
        self.sex = widgets.Dropdown(description="Sex", options=SEXES, value="unknown").add_class("field")
        self.use = widgets.Button(description="Use this patient").add_class("primary")
        self.use.on_click(act(lambda _: self._use()))
        self.open = widgets.Button(description="+ New patient").add_class("link")
        self.open.on_click(act(lambda _: self._show_fields(True)))
        self.fields = widgets.VBox(
            [self.number, self.name, widgets.HBox([self.birth_year, self.sex]).add_class("pair"), self.use]
        ).add_class("entry")
        self.widget = widgets.VBox([self.open, self.fields])
        self.clear()

    def clear(self) -> None:
        """Empty the fields and hide them."""
        for field in (self.number, self.name, self.birth_year):
            field.value = ""
        self.sex.value = "unknown"
        self._show_fields(False)

    def _show_fields(self, shown: bool) -> None:
        show_if(shown, self.fields)
        show_if(not shown, self.open)

    def _use(self) -> None:
        year = self.birth_year.value.strip()
        if year and not (year.isascii() and year.isdigit() and len(year) == 4):
            raise LungkitError(f"{year[:20]!r} is not a birth year. Enter four digits such as 1961, or leave it empty.")
        self._on_enter(NewPatient(self.number.value, self.name.value, int(year) if year else None, self.sex.value))


class _FileList:
    """One line for each file: its result, and a button that shows its reading."""

    def __init__(self, act: Callable, show: Callable[[str], None]):
        self._act, self._show = act, show
        self.lines: list[_FileLine] = []
        self.widget = widgets.VBox().add_class("files")

    def add(self, name: str, words: str) -> "_FileLine":
        line = _FileLine(name, words, self._act, self._show)
        self.lines.append(line)
        self.widget.children = [line.widget for line in self.lines]
        return line

    def mark(self, reading_id: str) -> None:
        """Mark the file whose reading is shown below."""
        for line in self.lines:
            line.mark(line.reading_id == reading_id)

    def clear(self) -> None:
        replace(self.widget)
        self.lines = []


class _FileLine:
    """The result of one file."""

    def __init__(self, name: str, words: str, act: Callable, show: Callable[[str], None]):
        self.name, self.reading_id, self._offer = name, None, ""
        self.words = widgets.HTML()
        self.button = widgets.Button(tooltip=f"Show the reading of {name}")
        self.button.on_click(act(lambda _: show(self.reading_id)))
        show_if(False, self.button)
        self.widget = widgets.HBox([self.words, self.button]).add_class("file")
        self._write("working", "…", words)

    def read(self, reading_id: str, decision: str, probability: str, seconds: float) -> None:
        """Read and saved."""
        if decision == REVIEW:
            self._write("review", "?", f"Uncertain. Review needed ({seconds:.1f} s)")
        else:
            self._write("read", "✓", f"{decision}, {probability} ({seconds:.1f} s)")
        self._offer_reading(reading_id, "Show")

    def known(self, reading_id: str) -> None:
        """The same bytes were read before for this patient."""
        self._write("known", "=", "This image was already read for this patient. It was not saved again.")
        self._offer_reading(reading_id, "Open the earlier reading")

    def refused(self, words: str) -> None:
        """Not read, and why."""
        self._write("refused", "✗", words)

    def mark(self, shown: bool) -> None:
        """Show whether this file's reading is the one below."""
        (self.widget.add_class if shown else self.widget.remove_class)("shown")
        self.button.disabled = shown
        self.button.description = "Shown below" if shown else self._offer

    def _offer_reading(self, reading_id: str, words: str) -> None:
        self.reading_id, self._offer = reading_id, words
        self.button.description = words
        show_if(True, self.button)

    def _write(self, kind: str, mark: str, words: str) -> None:
        role = "alert" if kind == "refused" else "status"
        self.words.value = (
            f'<div class="file-line file-{kind}" role="{role}"><span class="mark" aria-hidden="true">{mark}</span>'
            f"<b>{safe(self.name)}</b> <span>{safe(words)}</span></div>"
        )


def _without_file_name(problem: LungkitError, name: str) -> str:
    """The message without the file's name at its beginning, which stands next to it anyway."""
    words = str(problem).removeprefix(f"{name}: ")
    return words[:1].upper() + words[1:]


def _model_description(model: str) -> str:
    """What a model reads and what it was trained on, as HTML; or why that is not known."""
    try:
        version = registry.active(model)
    except LungkitError as problem:
        return notice(str(problem))
    card = version.card
    about = f"{version} reads {card_text.subject(card)}. Training data: {card_text.learned_from(card)}."
    return f'<p class="about">{safe(about)}</p><p class="about">Possible findings: {safe(", ".join(card.classes))}.</p>'
