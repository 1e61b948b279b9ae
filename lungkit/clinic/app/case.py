"""New case: who the patient is, which model reads, which images; each becomes a reading, or a refusal in words."""

import hashlib
import time
from collections.abc import Callable

import ipywidgets as widgets

from lungkit import config
from lungkit.clinic.app.page import close, notice, safe
from lungkit.clinic.app.reading import learned_from, reading
from lungkit.clinic.app.search import PatientSearch, heading
from lungkit.clinic.app.upload import Upload
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.clinic.records.accounts import Forbidden, SignedOut
from lungkit.clinic.records.cases import NewPatient, PatientRow, Records
from lungkit.clinic.records.tables import SEXES
from lungkit.clinic.web import door
from lungkit.clinic.words import percent
from lungkit.data import images
from lungkit.errors import LungkitError
from lungkit.models import registry

ACCEPTED = "PNG, JPEG, TIFF or DICOM, one or several"


def view(records: Records, models, act: Callable, go: Callable) -> widgets.Widget:
    """The screen; what was entered and read stays while other screens are visited."""
    case = NewCase(records, models, act, go)
    case.widget.refresh = case.refresh
    return case.widget


class NewCase:
    """The form, the list of files with what became of each, and one reading at a time.

    patient: who the images belong to; a NewPatient is saved with the first image that is read.
    """

    def __init__(self, records: Records, models, act: Callable, go: Callable):
        self._records, self._models, self._act, self._go = records, models, act, go
        self.patient: PatientRow | NewPatient | None = None

        self.search = PatientSearch(records, act, self._choose)
        self.entry = _Entry(act, self._enter)
        self.chosen = widgets.HTML()
        self.change = widgets.Button(description="Choose another patient").add_class("link")
        self.change.on_click(act(lambda _: self._choose(None)))
        self.finding = widgets.VBox([self.search.widget, self.entry.widget])
        self.known = widgets.VBox([self.chosen, self.change])

        self.model = widgets.Dropdown(description="Model that reads").add_class("field")
        self.about = widgets.HTML()
        self.notes = widgets.Textarea(
            description="Notes (kept with each image)", placeholder="Optional", rows=3
        ).add_class("field")
        self.upload = Upload(
            act(self._received), door.upload, self._ready, config.upload_bytes(), title="3. Choose images"
        )
        self.model.observe(act(lambda _: self._describe()), "value")

        self.form = widgets.Box(
            [
                widgets.VBox([widgets.HTML("<h2>1. Patient</h2>"), self.known, self.finding]).add_class("card"),
                widgets.VBox(
                    [widgets.HTML("<h2>2. Model and notes</h2>"), self.model, self.about, self.notes]
                ).add_class("card"),
                self.upload,
            ]
        ).add_class("new-case")
        self.files = _Files(act, self._show)
        self.more = widgets.Button(description="More images of this patient")
        self.more.on_click(act(lambda _: self._form_shown(True)))
        self.again = widgets.Button(description="Next patient").add_class("primary")
        self.again.on_click(act(lambda _: self.reset()))
        self.next = widgets.HBox([self.again, self.more]).add_class("case-next")
        self.reading = widgets.VBox()
        top = widgets.HBox([widgets.HTML("<h1>New case</h1>"), self.next]).add_class("screen-top")
        self.widget = widgets.VBox([top, self.form, self.files.widget, self.reading])
        self.reset()

    # --- the form

    def reset(self) -> None:
        """An empty form for the next patient."""
        self._close_reading()
        self.files.clear()
        self.search.clear()
        self.entry.clear()
        self.notes.value = ""
        self._choose(None)
        self._form_shown(True)
        self.refresh()

    def refresh(self) -> None:
        """Follow what an administrator did: models that came or went."""
        choices = self._models.choices()
        if list(self.model.options) != choices:
            names = {name for _, name in choices}
            wanted = self.model.value if self.model.value in names else None
            self.model.options = choices
            if choices:
                self.model.value = wanted or self._models.default()
        self._describe()

    def _describe(self) -> None:
        if self.model.value is None:
            self.about.value = notice(*self._why_no_model())
        else:
            self.about.value = _about(self.model.value)
        self._update_upload()

    def _why_no_model(self) -> tuple[str, str]:
        try:
            self._models.default()
        except registry.ModelDamaged as problem:
            return f"No model can read. Tell an administrator: {problem}", "problem"
        except LungkitError:
            pass
        return "No model is in use yet. An administrator promotes one under Models.", "note"

    def _choose(self, patient: PatientRow | NewPatient | None) -> None:
        self.patient = patient
        self.finding.layout.display = "none" if patient else ""
        self.known.layout.display = "" if patient else "none"
        new = '<p class="about">New patient: saved with the first image that is read.</p>'
        self.chosen.value = (heading(patient) + (new if isinstance(patient, NewPatient) else "")) if patient else ""
        self._update_upload()

    def _enter(self, new: NewPatient) -> None:
        self._refuse_taken(new)
        self._choose(new)

    def _refuse_taken(self, new: NewPatient) -> None:
        if taken := self._numbered(new.number):
            raise LungkitError(
                f"The number {new.number} belongs to {taken.name} already; choose that patient, or check it."
            )

    def _numbered(self, number: str) -> PatientRow | None:
        return next((known for known in self._records.find_patients(number) if known.number == number), None)

    def _ready(self) -> bool:
        return self.patient is not None and self.model.value is not None

    def _update_upload(self) -> None:
        self.upload.disabled = not self._ready()
        limit = f"up to {config.upload_bytes() // 2**20} MiB each"
        self.upload.hint = f"{ACCEPTED}, {limit}" if self._ready() else "Choose the patient first"

    def _form_shown(self, shown: bool) -> None:
        self.form.layout.display = "" if shown else "none"
        self.next.layout.display = "none" if shown else ""
        self.more.layout.display = "" if self.patient else "none"

    # --- the files

    def _received(self, name: str, content: bytes | None, number: int, of: int) -> None:
        """One file: read it, save the reading, show the first of several at once."""
        line = self.files.add(name, f"Reading … ({number} of {of})" if of > 1 else "Reading …")
        try:
            self._read(line, name, content)
        except (SignedOut, Forbidden):
            line.refused("Not read.")
            raise
        except LungkitError as problem:
            line.refused(_without_name(problem, name))
        except Exception:
            line.refused("Something went wrong; nothing was saved. Try again, or tell an administrator.")
            raise

    def _read(self, line: "_Line", name: str, content: bytes | None) -> None:
        started = time.perf_counter()
        sha256 = hashlib.sha256(content or b"").hexdigest()
        known = isinstance(self.patient, PatientRow)
        # Both ask who is signed in as well: the model does not run for nobody.
        if not known:
            self._refuse_taken(self.patient)
        elif earlier := self._records.same_upload(self.patient.id, sha256):
            line.known(earlier)
            return
        if content is None:
            raise LungkitError("did not arrive; choose it again. If this comes back, load the page anew.")
        image = images.read(content, name)
        said = self._predictor().read(image, started)
        whose = self.patient.id if known else self.patient
        reading_id, patient = self._records.save_case(whose, image, sha256, said, self.notes.value)
        if not known:
            self._choose(patient)
        probability = percent(float(said.probabilities[list(said.classes).index(said.label)]))
        line.read(reading_id, said.decision, probability, time.perf_counter() - started)
        if not self.reading.children:
            self._show(reading_id)

    def _predictor(self) -> Predictor:
        try:
            return self._models.get(self.model.value)
        except registry.ModelDamaged as problem:
            # What mends it only an administrator can do.
            raise LungkitError(
                f"The model {self.model.value} is damaged, so this was not read; nothing was saved. Choose another "
                f"model, or tell an administrator: {problem}"
            ) from problem

    def _show(self, reading_id: str) -> None:
        case = self._records.case(reading_id)
        self._close_reading()
        self._form_shown(False)
        self.files.mark(reading_id)
        self.reading.children = [reading(case, self._records, self._act)]

    def _close_reading(self) -> None:
        for child in self.reading.children:
            close(child)
        self.reading.children = ()


class _Entry:
    """The fields of a new patient; `entered` is called with a NewPatient that can be kept."""

    def __init__(self, act: Callable, entered: Callable[[NewPatient], None]):
        self._entered = entered
        self.number = widgets.Text(description="Patient number").add_class("field")
        self.name = widgets.Text(description="Name").add_class("field")
        self.birth_year = widgets.Text(description="Birth year (if known)", placeholder="YYYY").add_class("field")
        self.sex = widgets.Dropdown(description="Sex", options=SEXES, value="unknown").add_class("field")
        self.use = widgets.Button(description="Use this patient")
        self.use.on_click(act(lambda _: self._use()))
        self.open = widgets.Button(description="+ New patient").add_class("link")
        self.open.on_click(act(lambda _: self._shown(True)))
        self.fields = widgets.VBox(
            [self.number, self.name, widgets.HBox([self.birth_year, self.sex]).add_class("pair"), self.use]
        ).add_class("entry")
        self.widget = widgets.VBox([self.open, self.fields])
        self.clear()

    def clear(self) -> None:
        """Empty fields, folded away."""
        for field in (self.number, self.name, self.birth_year):
            field.value = ""
        self.sex.value = "unknown"
        self._shown(False)

    def _shown(self, shown: bool) -> None:
        self.fields.layout.display = "" if shown else "none"
        self.open.layout.display = "none" if shown else ""

    def _use(self) -> None:
        year = self.birth_year.value.strip()
        if year and not (year.isascii() and year.isdigit() and len(year) == 4):
            raise LungkitError(f"The birth year {year[:20]!r} is no year; give four digits such as 1961, or nothing.")
        self._entered(NewPatient(self.number.value, self.name.value, int(year) if year else None, self.sex.value))


class _Files:
    """One line for each file: what became of it, and the way to its reading."""

    def __init__(self, act: Callable, show: Callable[[str], None]):
        self._act, self._show = act, show
        self.lines: list[_Line] = []
        self.widget = widgets.VBox().add_class("files")

    def add(self, name: str, words: str) -> "_Line":
        line = _Line(name, words, self._act, self._show)
        self.lines.append(line)
        self.widget.children = [line.widget for line in self.lines]
        return line

    def mark(self, reading_id: str) -> None:
        """Which of them is shown below."""
        for line in self.lines:
            line.mark(line.reading_id == reading_id)

    def clear(self) -> None:
        for line in self.lines:
            close(line.widget)
        self.lines, self.widget.children = [], ()


class _Line:
    """What became of one file."""

    def __init__(self, name: str, words: str, act: Callable, show: Callable[[str], None]):
        self.name, self.reading_id, self._way = name, None, ""
        self.words = widgets.HTML()
        self.button = widgets.Button(description="Show", tooltip=f"Show the reading of {name}")
        self.button.layout.display = "none"
        self.button.on_click(act(lambda _: show(self.reading_id)))
        self.widget = widgets.HBox([self.words, self.button]).add_class("file")
        self._say("working", "…", words)

    def read(self, reading_id: str, decision: str, probability: str, seconds: float) -> None:
        """Read and saved."""
        if decision == REVIEW:
            self._say("review", "?", f"Uncertain: review needed ({seconds:.1f} s)")
        else:
            self._say("read", "✓", f"{decision}, {probability} ({seconds:.1f} s)")
        self._offer(reading_id, "Show")

    def known(self, reading_id: str) -> None:
        """The same bytes were read before for this patient."""
        self._say("known", "=", "This image was read for this patient before; it was not saved again.")
        self._offer(reading_id, "Open the earlier reading")

    def refused(self, words: str) -> None:
        """Not read, and why."""
        self._say("refused", "✗", words)

    def mark(self, shown: bool) -> None:
        """Whether its reading is the one below."""
        (self.widget.add_class if shown else self.widget.remove_class)("shown")
        self.button.disabled = shown
        self.button.description = "Shown below" if shown else self._way

    def _offer(self, reading_id: str, words: str) -> None:
        self.reading_id, self._way = reading_id, words
        self.button.description = words
        self.button.layout.display = ""

    def _say(self, kind: str, mark: str, words: str) -> None:
        role = "alert" if kind == "refused" else "status"
        self.words.value = (
            f'<div class="file-line file-{kind}" role="{role}"><span class="mark" aria-hidden="true">{mark}</span>'
            f"<b>{safe(self.name)}</b> <span>{safe(words)}</span></div>"
        )


def _without_name(problem: LungkitError, name: str) -> str:
    """The message without the file's name in front, which stands beside it already."""
    words = str(problem).removeprefix(f"{name}: ")
    return words[:1].upper() + words[1:]


def _about(model: str) -> str:
    """What a model reads and what it learned from, as HTML; or why that cannot be said."""
    try:
        version = registry.active(model)
    except LungkitError as problem:
        return notice(str(problem))
    card = version.card
    reads = {"CT": "slices of chest CT", "X-ray": "chest X-rays", "MRI": "slices of brain MRI"}
    reads = reads.get(card.get("modality"), "chest images")
    about = f"{version} reads {reads}. It learned from {learned_from(version.model, version.version)}."
    return f'<p class="about">{safe(about)}</p><p class="about">Classes: {safe(", ".join(card["classes"]))}.</p>'
