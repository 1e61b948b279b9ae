"""New case: the patient, the model and the images; each image becomes a reading, or is refused with a reason."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace as with_changes
from functools import partial
from pathlib import Path

import ipywidgets as widgets

from lungkit import config, files
from lungkit.clinic import series_reading
from lungkit.clinic.app.case_screen import show_case
from lungkit.clinic.app.describe import patient_heading
from lungkit.clinic.app.page import FAILED, Page, field, notice, replace, safe, show_if
from lungkit.clinic.app.patient_finder import PatientFinder
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.app.upload import Bundle, UploadField
from lungkit.clinic.predictor import REVIEW, Predictor
from lungkit.clinic.records.accounts import Forbidden, SignedOut
from lungkit.clinic.records.cases import NewPatient, PatientRow, Records, SavedCase, age_of
from lungkit.clinic.records.tables import SEXES
from lungkit.clinic.web import door
from lungkit.data import folders, images, series
from lungkit.data.archive import is_zip
from lungkit.errors import LungkitError
from lungkit.models import card_text, registry
from lungkit.wording import count, percent

ACCEPTED = (
    "PNG, JPEG, TIFF or DICOM; one file or several. A CT series: all its files at once, its folder, or a zip file"
)

LOOKING = "Looking for CT series …"


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
        change = self.page.button("Choose another patient", self._choose_another, "link")
        self.selected = widgets.VBox([self.heading, change])

        self.model = field(widgets.Dropdown, "Model")
        self.about = widgets.HTML()
        self.notes = field(widgets.Textarea, "Notes (saved with each image)", placeholder="Optional", rows=3)
        self.upload = UploadField(
            receive=self.page.act(self._receive),
            receive_together=self.page.act(self._receive_together),
            take=door.upload,
            folder=door.folder,
            ready=self._ready,
            limit=config.upload_bytes(),
            limit_together=config.series_bytes(),
            title="3. Images",
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

    def _choose_another(self) -> None:
        for line in self.files.children:
            line.withdraw()  # what was sent is of the patient before
        self._select(None)

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
        limit = f"Up to {config.upload_bytes() >> 20} MiB an image, {config.series_bytes() >> 20} MiB a series"
        self.upload.hint = f"{ACCEPTED}. {limit}." if self._ready() else "Choose the patient first"

    def _show_form(self, shown: bool) -> None:
        show_if(shown, self.form)
        show_if(not shown, self.next)
        show_if(self.patient, self.more)

    # --- the files

    def _receive(self, name: str, content: bytes | None, number: int, of: int) -> None:
        """One file: read it, save the reading, show the first of several at once."""
        line = self._line(name, f"Reading … ({number} of {of})" if of > 1 else "Reading …")
        with _outcome(line):
            self._read(line, name, content)

    def _line(self, name: str, words: str) -> "_FileLine":
        line = _FileLine(self.page, name, words, self._show)
        self.files.children += (line,)
        return line

    def _read(self, line: "_FileLine", name: str, content: bytes | None) -> None:
        started, sha256 = time.perf_counter(), files.sha256(content or b"")
        patient = self._patient_of(line, sha256)
        if patient is None:
            return
        if content is None:
            raise LungkitError("did not arrive. Choose it again. If this happens again, reload the page.")
        image = images.read(content, name)
        answer = self._predictor().read(image, started, age_of(patient))
        saved = self.records.save_case(_known_or_new(patient), image, sha256, answer, self.notes.value)
        self._saved(line, saved, answer.decision, answer.probability, started)

    def _patient_of(self, line: "_FileLine", sha256: str) -> PatientRow | NewPatient | None:
        """Whose image is read now; None if the same was read before, which the line says.

        The questions to the records also check who is signed in, before the model runs.
        """
        if self.patient is None:
            raise LungkitError("Choose the patient first.")
        if isinstance(self.patient, NewPatient):
            self._refuse_known_number(self.patient)
        elif earlier := self.records.same_upload(self.patient.id, sha256):
            line.known(earlier)
            return None
        return self.patient

    def _saved(self, line: "_FileLine", saved: SavedCase, decision: str, probability: float, started: float) -> None:
        if saved.patient != self.patient:
            self._select(saved.patient)
        if saved.hidden:
            line.read_blind(saved.reading_id)
        else:
            line.read(saved.reading_id, decision, percent(probability), time.perf_counter() - started)
        if not self.reading.children:
            self._show(saved.reading_id)

    # --- CT series

    def _receive_together(self, bundle: Bundle) -> None:
        """Several files, or a zip: a CT series among them is read as one; where there is none, each file alone."""
        for line in self.files.children:
            line.withdraw()  # its files are gone
        archives = [path for path in bundle.paths if is_zip(path)]
        alone = [path for path in bundle.paths if path not in archives]
        looking = self._line(bundle.paths[0].name if len(bundle.paths) == 1 else f"{len(bundle.paths)} files", LOOKING)
        with _outcome(looking):
            contents = [series.read(path, path.name) for path in archives]
            contents += [series.read([(path.name, path) for path in alone])] if alone else []
            found = [one for each in contents for one in each.series if _is_stack(one)]
            if archives and not found:
                looking.refused(
                    f"There is no CT series in it. {_left_out([one for each in contents for one in each.set_aside])}"
                )
        if looking.is_working:
            self.files.children = [line for line in self.files.children if line is not looking]
        if not found:
            for number, path in enumerate(alone, 1):
                self._receive(path.name, _content(path), number, len(alone))
            return
        self._offer(found, [one for each in contents for one in each.set_aside])

    def _offer(self, found: list[series.Series], set_aside: list[series.SetAside]) -> None:
        """A line for each series; the only one that can be read is read, of several a person chooses."""
        readable = []
        for one in found:
            line = self._line(_named(one), "")
            line.tell([finding.words for finding in one.findings])
            if one.readable == "refused":
                refusing = next(finding for finding in one.findings if finding.severity == series.Severity.REFUSED)
                line.refused(f"Refused: {refusing.rule}.")
                continue
            line.offer(
                "Several series: choose which to read." if len(found) > 1 else "", partial(self._read_series, line, one)
            )
            readable.append(line)
        if set_aside:
            self._line(count(len(set_aside), "file or frame", "files or frames"), "").note(_left_out(set_aside))
        if len(readable) == 1:
            readable[0].act()

    def _read_series(self, line: "_FileLine", one: series.Series) -> None:
        with _outcome(line):
            line.working("Reading …")
            started = time.perf_counter()
            sha256 = one.sha256()
            patient = self._patient_of(line, sha256)
            if patient is None:
                return
            said = series_reading.read(
                self._predictor(), _told(one, partial(self._progress, line, "Reading: {} slices done"))
            )
            saved = self.records.save_series(
                _known_or_new(patient), one, said, sha256, self.notes.value,
                tell=partial(self._progress, line, f"Saving: {{}} of {len(one.slices)} slices done"),
            )  # fmt: skip
            probability = said.probabilities[said.classes.index(said.label)]
            self._saved(line, saved, said.decision, float(probability), started)

    def _progress(self, line: "_FileLine", words: str, done: int) -> None:
        if done % 8 == 0:
            line.working(words.format(done))
            self.upload.working()

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
        case = self.records.open_case(reading_id)
        replace(self.reading)  # first, or a click could meet a button of the reading before
        self._show_form(False)
        for line in self.files.children:
            line.mark(line.reading_id == reading_id)
        show_case(self.reading, case, self.records, self.page, labelled=self._labelled)

    def _labelled(self, reading_id: str) -> None:
        for line in self.files.children:
            if line.reading_id == reading_id:
                line.labelled()


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
    """The result of one file or series, and a button that shows its reading, or reads it."""

    def __init__(self, page: Page, name: str, words: str, show: Callable[[str], None]):
        self.name, self.reading_id, self._offer = name, "", ""
        self.act: Callable[[], None] = lambda: show(self.reading_id)
        self._show = self.act
        self.words, self._details = widgets.HTML(), ""
        self.button = page.button("", lambda: self.act(), tooltip=f"Show the reading of {name}")
        show_if(False, self.button)
        super().__init__([self.words, self.button])
        self.add_class("file")
        self.working(words)

    def working(self, words: str) -> None:
        """Something is being done."""
        show_if(False, self.button)
        self._write("working", "…", words)

    def tell(self, details: list[str]) -> None:
        """What else is to be said of it, from now on."""
        self._details = f"<ul>{''.join(f'<li>{safe(words)}</li>' for words in details)}</ul>" if details else ""

    def note(self, words: str) -> None:
        """Nothing is to be done, but this should be known."""
        self._write("known", "i", words)

    def offer(self, words: str, read: Callable[[], None]) -> None:
        """A series that can be read."""
        self._write("known", "?", words)
        self.act, self._offer, self.button.description = read, "Read this series", "Read this series"
        self.button.tooltip = f"Read {self.name}"
        show_if(True, self.button)

    def withdraw(self) -> None:
        """It can no longer be read, also by a click that is on its way."""
        if self.act is not self._show:
            self.act = self._refuse
            show_if(False, self.button)

    def _refuse(self) -> None:
        raise LungkitError(f"{self.name} was sent for another patient, or is gone. Send it again.")

    def read(self, reading_id: str, decision: str, probability: str, seconds: float) -> None:
        """Read and saved."""
        if decision == REVIEW:
            self._write("review", "?", f"Uncertain. Review needed ({seconds:.1f} s)")
        else:
            self._write("read", "✓", f"{decision}, {probability} ({seconds:.1f} s)")
        self._offer_reading(reading_id, "Show")

    def read_blind(self, reading_id: str) -> None:
        """Read and saved; the answer waits for a label."""
        self._write("review", "?", "Saved. Give your label: the model's answer appears after it.")
        self._offer_reading(reading_id, "Show")

    def labelled(self) -> None:
        """The label is given, and the answer is below."""
        self._write("read", "✓", "Your label is saved. The model's answer is shown.")

    def known(self, reading_id: str) -> None:
        """The same bytes were read before for this patient."""
        self._write("known", "=", "This image was already read for this patient. It was not saved again.")
        self._offer_reading(reading_id, "Open the earlier reading")

    def refused(self, words: str) -> None:
        """Not read, and why; a series may be read again, with another model for example."""
        self._write("refused", "✗", words)
        show_if(self.act is not self._show, self.button)

    def mark(self, shown: bool) -> None:
        """Show whether this file's reading is the one below."""
        if not self.reading_id:
            return
        (self.add_class if shown else self.remove_class)("shown")
        self.button.disabled = shown
        self.button.description = "Shown below" if shown else self._offer

    def _offer_reading(self, reading_id: str, words: str) -> None:
        self.reading_id, self._offer, self.act = reading_id, words, self._show
        self.button.description, self.button.tooltip = words, f"Show the reading of {self.name}"
        show_if(True, self.button)

    def _write(self, kind: str, mark: str, words: str) -> None:
        self.is_working = kind == "working"
        role = "alert" if kind == "refused" else "status"
        self.words.value = (
            f'<div class="file-line file-{kind}" role="{role}"><span class="mark" aria-hidden="true">{mark}</span>'
            f"<b>{safe(self.name)}</b> <span>{safe(words)}</span></div>{self._details}"
        )


@contextmanager
def _outcome(line: _FileLine) -> Iterator[None]:
    """Say in the line why it failed; what is no fault of the file goes on to the page, too."""
    try:
        yield
    except (SignedOut, Forbidden):
        line.refused("Not read.")
        raise
    except LungkitError as problem:
        line.refused(_without_file_name(problem, line.name))
    except Exception:
        line.refused(FAILED)
        raise


def _known_or_new(patient: PatientRow | NewPatient) -> str | NewPatient:
    return patient.id if isinstance(patient, PatientRow) else patient


def _content(path: Path) -> bytes:
    """A file to be read as one image. Raises LungkitError if it is too large for that."""
    if path.stat().st_size > config.upload_bytes():
        raise LungkitError(
            f"{path.name} is no CT series, and too large for an image: at most {config.upload_bytes() >> 20} MiB"
        )
    return path.read_bytes()


def _is_stack(one: series.Series) -> bool:
    """Whether it has slices at two positions at least; others are single images."""
    places = {round(cut.position, 2) for cut in one.slices}
    return len(places) > 1 or not one.slices


def _named(one: series.Series) -> str:
    kernel = f", kernel {folders.one_line(one.kernel)[:40]}" if one.kernel else ""
    between = f", {one.spacing[2]:.3g} mm apart" if one.spacing[2] else ""
    return (
        f"CT {one.name[:80]}: {count(len(one.slices), 'slice')}{between}{f', {one.view}' if one.view else ''}{kernel}"
    )


def _left_out(aside: list[series.SetAside]) -> str:
    """What is in no series, by rule, with some names."""
    rules = Counter(one.rule for one in aside)
    each = (f"{rule} ({folders.few(one for one in aside if one.rule == rule)})" for rule in rules)
    return f"Left out: {'; '.join(each)}." if aside else "It has no files."


def _told(one: series.Series, tell: Callable[[int], None]) -> series.Series:
    """The same series, which tells how many of its slices were decoded."""
    done = itertools.count(1)

    def read(cut: series.Slice) -> images.Image:
        image = cut.read()
        number = next(done)
        if threading.current_thread() is threading.main_thread():  # widgets are no matter of other threads
            tell(number)
        return image

    return with_changes(one, slices=tuple(with_changes(cut, read=partial(read, cut)) for cut in one.slices))


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
