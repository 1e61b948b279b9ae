"""New case: the patient, the model and the images; each image becomes a reading, or is refused with a reason."""

import time
from collections.abc import Callable

import ipywidgets as widgets

from lungkit import config, files
from lungkit.clinic.app.describe import patient_heading
from lungkit.clinic.app.page import FAILED, Page, field, notice, replace, safe, show_if
from lungkit.clinic.app.patient_finder import PatientFinder
from lungkit.clinic.app.reading import reading
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.app.upload import UploadField
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.clinic.records.accounts import Forbidden, SignedOut
from lungkit.clinic.records.cases import NewPatient, PatientRow, Records, age_of
from lungkit.clinic.records.tables import SEXES
from lungkit.clinic.web import door
from lungkit.data import images
from lungkit.errors import LungkitError
from lungkit.models import card_text, registry
from lungkit.wording import percent

ACCEPTED = "PNG, JPEG, TIFF or DICOM; one file or several"


class NewCaseScreen(Screen[Records]):
    """The form, the list of files with their results, and one reading at a time.

    patient: whose images these are; a NewPatient is saved with the first image that is read.
    """

    def build(self) -> None:
        self.patient: PatientRow | NewPatient | None = None
        self.finder = PatientFinder(self.records, self.page, self._select)
        self.entry = _PatientForm(self.page, self._enter)
        self.search = widgets.VBox([self.finder.widget, self.entry.widget])
        self.heading = widgets.HTML()
        change = self.page.button("Choose another patient", lambda: self._select(None), "link")
        self.selected = widgets.VBox([self.heading, change])

        self.model = field(widgets.Dropdown, "Model")
        self.about = widgets.HTML()
        self.notes = field(widgets.Textarea, "Notes (saved with each image)", placeholder="Optional", rows=3)
        self.upload = UploadField(
            self.page.act(self._receive), door.upload, self._ready, config.upload_bytes(), title="3. Images"
        )
        self.page.on_change(self._describe_model, self.model)
        steps = [
            [widgets.HTML("<h2>1. Patient</h2>"), self.selected, self.search],
            [widgets.HTML("<h2>2. Model and notes</h2>"), self.model, self.about, self.notes],
        ]
        cards = [widgets.VBox(parts).add_class("card") for parts in steps]
        self.form = widgets.Box([*cards, self.upload]).add_class("new-case")
        self.files = widgets.VBox().add_class("files")
        self.more = self.page.button("More images of this patient", lambda: self._show_form(True))
        self.next = widgets.HBox([self.page.button("Next patient", self.reset, "primary"), self.more])
        self.reading = widgets.VBox()
        top = widgets.HBox([widgets.HTML("<h1>New case</h1>"), self.next.add_class("case-next")])
        self.widget.children = (top.add_class("screen-top"), self.form, self.files, self.reading)
        self.reset()

    # --- the form

    def reset(self) -> None:
        """Empty the form for the next patient."""
        replace(self.reading)
        replace(self.files)
        self.notes.value = ""
        self._select(None)
        self._show_form(True)
        self.refresh()

    def refresh(self) -> None:
        """Offer the models that are in use now."""
        choices = self.models.choices()
        if list(self.model.options) != choices:
            wanted = self.model.value
            self.model.options = choices
            if choices:
                self.model.value = wanted if wanted in dict(choices).values() else self.models.default()
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
        self.finder.clear()
        self.entry.clear()
        show_if(patient is None, self.search)
        show_if(patient is not None, self.selected)
        new = '<p class="about">This is a new patient, who is saved with the first image.</p>'
        heading = patient_heading(patient) if patient else ""
        self.heading.value = heading + (new if isinstance(patient, NewPatient) else "")
        self._update_upload()

    def _enter(self, new: NewPatient) -> None:
        self._refuse_known_number(new)
        self._select(new)

    def _refuse_known_number(self, new: NewPatient) -> None:
        for known in self.records.find_patients(new.number):
            if known.number == new.number:
                raise LungkitError(
                    f"The number {new.number} already belongs to {known.name}. Select that patient, or check the "
                    "number."
                )

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
        line = _FileLine(self.page, name, f"Reading … ({number} of {of})" if of > 1 else "Reading …", self._show)
        self.files.children += (line,)
        try:
            self._read(line, name, content)
        except (SignedOut, Forbidden):
            line.refused("Not read.")
            raise
        except LungkitError as problem:
            line.refused(_without_file_name(problem, name))
        except Exception:
            line.refused(FAILED)
            raise

    def _read(self, line: "_FileLine", name: str, content: bytes | None) -> None:
        started, patient = time.perf_counter(), self.patient
        if patient is None:
            raise LungkitError("Choose the patient first.")
        sha256 = files.sha256(content or b"")
        # Both calls also check who is signed in, before the model runs.
        if isinstance(patient, NewPatient):
            self._refuse_known_number(patient)
        elif earlier := self.records.same_upload(patient.id, sha256):
            line.known(earlier)
            return
        if content is None:
            raise LungkitError("did not arrive. Choose it again. If this happens again, reload the page.")
        image = images.read(content, name)
        answer = self._predictor().read(image, started, age_of(patient))
        reading_id, saved = self.records.save_case(
            patient.id if isinstance(patient, PatientRow) else patient, image, sha256, answer, self.notes.value
        )
        if saved != patient:
            self._select(saved)
        line.read(reading_id, answer.decision, percent(answer.probability), time.perf_counter() - started)
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
        for line in self.files.children:
            line.mark(line.reading_id == reading_id)
        replace(self.reading, reading(case, self.records, self.page))


class _PatientForm:
    """The fields of a new patient; `on_enter` is called with a NewPatient that can be saved."""

    def __init__(self, page: Page, on_enter: Callable[[NewPatient], None]):
        self._on_enter = on_enter
        self.number, self.name = field(widgets.Text, "Patient number"), field(widgets.Text, "Name")
        self.birth_year = field(widgets.Text, "Birth year (if known)", placeholder="YYYY")
        self.sex = field(widgets.Dropdown, "Sex", options=SEXES)
        self.open = page.button("+ New patient", lambda: self._show_fields(True), "link")
        pair = widgets.HBox([self.birth_year, self.sex]).add_class("pair")
        use = page.button("Use this patient", self._use, "primary")
        self.fields = widgets.VBox([self.number, self.name, pair, use]).add_class("entry")
        self.widget = widgets.VBox([self.open, self.fields])

    def clear(self) -> None:
        """Empty the fields and hide them."""
        self.number.value = self.name.value = self.birth_year.value = ""
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


class _FileLine(widgets.HBox):
    """The result of one file, and a button that shows its reading."""

    def __init__(self, page: Page, name: str, words: str, show: Callable[[str], None]):
        self.name, self.reading_id, self._offer = name, "", ""
        self.words = widgets.HTML()
        self.button = page.button("", lambda: show(self.reading_id), tooltip=f"Show the reading of {name}")
        show_if(False, self.button)
        super().__init__([self.words, self.button])
        self.add_class("file")
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
        (self.add_class if shown else self.remove_class)("shown")
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
