"""New case: the patient, the model and the images; each image becomes a reading, or is refused with a reason."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace as with_changes
from functools import partial
from pathlib import Path

import ipywidgets as widgets

from lungkit import config, files
from lungkit.clinic import series_reading
from lungkit.clinic.app.case_screen import show_case
from lungkit.clinic.app.describe import patient_heading
from lungkit.clinic.app.file_line import FileLine, outcome
from lungkit.clinic.app.page import field, notice, replace, safe, show_if
from lungkit.clinic.app.patient_finder import PatientFinder
from lungkit.clinic.app.patient_form import PatientForm
from lungkit.clinic.app.same_person import SamePerson
from lungkit.clinic.app.screen import Screen
from lungkit.clinic.app.upload import Bundle, UploadField
from lungkit.clinic.predictor import Predictor
from lungkit.clinic.records import identity, stacks
from lungkit.clinic.records.cases import Records, SavedCase
from lungkit.clinic.records.corrections import SavedElsewhere
from lungkit.clinic.records.patients import NewPatient, PatientRow, age_at
from lungkit.clinic.web import door
from lungkit.data import folders, images, person, series
from lungkit.data.archive import is_zip
from lungkit.data.person import Person
from lungkit.errors import LungkitError
from lungkit.models import card_text, population, registry
from lungkit.models.class_names import class_names
from lungkit.models.prediction import Prediction
from lungkit.wording import count, percent

ACCEPTED = (
    "PNG, JPEG, TIFF or DICOM; one file or several. A CT series: all its files at once, its folder, or a zip file"
)

LOOKING = "Looking for CT series …"
MOST_WAITING = 256 * 2**20  # bytes of files that wait for a person's answer

Chosen = PatientRow | NewPatient
Save = Callable[[Chosen, Sequence[str]], None]  # for this patient, although this differed


class NewCaseScreen(Screen[Records]):
    """The form, the list of files with their results, and one reading at a time.

    patient: whose images these are; a NewPatient is saved with the first image that is read.
    """

    def build(self) -> None:
        self.patient: PatientRow | NewPatient | None = None
        self.finder = PatientFinder(self.records, self.page, self._select)
        self.entry = PatientForm(self.page, self._enter)
        self.same = SamePerson(self.page, self._select)
        self.answered: list[Person] = []  # what files stated otherwise, and were saved for this patient anyway
        self.search = widgets.VBox([self.finder.widget, self.entry.widget, self.same.widget])
        self.heading = widgets.HTML()
        change = self.page.button("Choose another patient", self._choose_another, "link")
        self.selected = widgets.VBox([self.heading, change])

        self.model = field(widgets.Dropdown, "Model")
        self.about, self.fit = widgets.HTML(), widgets.VBox()
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
            [widgets.HTML("<h2>2. Model and notes</h2>"), self.model, self.fit, self.about, self.notes],
        ]
        cards = [widgets.VBox(parts).add_class("card") for parts in steps]
        self.form = widgets.Box([*cards, self.upload]).add_class("new-case")
        self.files = widgets.VBox().add_class("files")
        self.more = self.page.button("More images of this patient", lambda: self._show_form(True))
        self.next = widgets.HBox([self.page.button("Next patient", self._next_patient, "primary"), self.more])
        self.reading = widgets.VBox()
        top = widgets.HBox([widgets.HTML("<h1>New case</h1>"), self.next.add_class("case-next")])
        self.widget.children = (top.add_class("screen-top"), self.form, self.files, self.reading)
        self.reset()

    # --- the form

    def _next_patient(self) -> None:
        if any(line.is_asked for line in self.files.children):
            raise LungkitError("Answer the questions about the images first. They are not saved yet.")
        self.page.browser.forget(_notes_of(self.patient))
        self.entry.forget()
        self.reset()

    def reset(self) -> None:
        """Empty the form for the next patient."""
        replace(self.reading)
        replace(self.files)
        self.notes.value = ""
        self.answered = []
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
        self._say_whether_it_fits()

    def _say_whether_it_fits(self) -> None:
        """Whether the model is for this patient, before there is an image; another one, where one is.

        An upload is possible all the same: the file may state another age than the records, such as that of an old
        image, and an image can be kept and reviewed without a finding of the model.
        """
        replace(self.fit)
        if not self._ready() or self.patient is None:
            return
        try:
            card = registry.active(self.model.value).card
        except LungkitError:
            return  # the description says so
        age = age_at(self.patient.birth_year)
        if against := population.against(card, age):
            other = self.models.fitting(self.model.value, age)
            words = f"Not for this patient: {'; '.join(against)}. It gives no finding for this patient."
            words += "" if other else f" No other model in use is for {card_text.subject(card)} of this patient."
            parts = [widgets.HTML(notice(words, "problem"))]
            if other:
                parts.append(self.page.button(f"Use {other} instead", partial(self._use, other)))
            replace(self.fit, *parts)
        elif age is None and (ages := population.ages_of(card)):
            words = f"The birth year is not known. This model learned from patients of {population.ages_words(ages)}: "
            words += "it gives a finding only if the file states the age."
            replace(self.fit, widgets.HTML(notice(words, "note")))

    def _use(self, model: str) -> None:
        self.model.value = model

    def _why_no_model(self) -> tuple[str, str]:
        try:
            self.models.default()
        except registry.ModelDamaged as problem:
            return f"No model can be used. Tell an administrator: {problem}", "problem"
        except LungkitError:
            pass
        return "No model is in use yet. An administrator can select one under Models.", "note"

    def _select(self, patient: PatientRow | NewPatient | None) -> None:
        before, self.patient = self.patient, patient
        self.page.browser.keep(self.notes, _notes_of(patient))
        if before is None and patient:
            self.page.browser.forget(_notes_of(None))  # after `keep`: what was typed is now of this patient
        if isinstance(patient, PatientRow) or isinstance(before, NewPatient):
            self.entry.forget()
        self.finder.clear()
        self.entry.clear()
        self.same.close()
        show_if(patient is None, self.search)
        show_if(patient is not None, self.selected)
        new = '<p class="about">This is a new patient, who is saved with the first image.</p>'
        heading = patient_heading(patient) if patient else ""
        self.heading.value = heading + (new if isinstance(patient, NewPatient) else "")
        self._update_upload()
        self._say_whether_it_fits()

    def _choose_another(self) -> None:
        for line in self.files.children:
            line.withdraw()  # what was sent is of the patient before
        self.answered = []
        self.notes.value = ""  # so are the notes; they come back with that patient
        self._select(None)

    def _enter(self, new: NewPatient) -> None:
        self.same.close()
        if known := identity.namesakes(self.records.access, new):
            self.same.ask(new, known)
        else:
            self._select(new)

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
        with outcome(line):
            self._read(line, name, content)

    def _line(self, name: str, words: str) -> FileLine:
        line = FileLine(self.page, name, words, self._show)
        self.files.children += (line,)
        return line

    def _read(self, line: FileLine, name: str, content: bytes | None) -> None:
        sha256, patient = files.sha256(content or b""), self._patient()
        if content is None:
            raise LungkitError("did not arrive. Choose it again. If this happens again, reload the page.")
        said, save = person.stated(content, name), partial(self._read_image, line, name, content, sha256)
        self._save_if_right(line, patient, said, sha256, save, len(content))

    def _read_image(
        self, line: FileLine, name: str, content: bytes, sha256: str, patient: Chosen, confirmed: Sequence[str]
    ) -> None:
        started = time.perf_counter()
        image = images.read(content, name)
        answer = self._predictor().read(image, started, age_at(patient.birth_year, image.tags))
        saved = self.records.save_case(
            _known_or_new(patient), image, sha256, answer, self.notes.value, confirmed=confirmed
        )
        self._saved(line, patient, saved, answer, started)

    def _patient(self) -> Chosen:
        """Whose image is read now. The question to the records also checks who is signed in."""
        if self.patient is None:
            raise LungkitError("Choose the patient first.")
        if isinstance(self.patient, NewPatient):
            identity.namesakes(self.records.access, self.patient)  # the number may be taken by now
        return self.patient

    # --- is it the right patient?

    def _save_if_right(
        self,
        line: FileLine,
        patient: Chosen,
        said: Person,
        sha256: str,
        save: Save,
        size: int = 0,
        owners: Sequence[PatientRow] = (),
    ) -> None:
        """Read and save it, unless it was read before for this patient; or ask, where something speaks against it.

        said: what the file states of the patient. size: bytes that are kept until the answer. owners: other patients
        who are known to have the image.
        """
        if self._was_read(line, patient, sha256):
            return
        question = identity.question(self.records.access, patient, said, sha256, owners)
        if question is None or (said in self.answered and identity.SAME_IMAGE not in question.asked):
            self._save_or_ask(line, patient, said, sha256, save, size, question.asked if question else ())
            return
        if size + sum(other.waiting_bytes for other in self.files.children) > MOST_WAITING:
            raise LungkitError("Too many files wait for an answer. Answer the questions above, then send it again.")
        asked, other = question.asked, question.other

        def anyway() -> None:
            now = self._same_by_now(patient)
            self.answered.append(said)
            if not self._was_read(line, now, sha256):
                self._save_or_ask(line, now, said, sha256, save, size, asked)

        def instead() -> None:
            assert other is not None
            self._save_if_right(line, other, said, sha256, save, size)

        def no() -> None:
            identity.not_saved(self.records.access, self._same_by_now(patient), asked)
            line.refused("Not saved, as you said.")

        answers = {f"Save for {patient.number} anyway": anyway}
        answers |= {f"Save for {other.number} · {other.name}": instead} if other else {}
        answers["Do not save"] = no
        line.ask(question.words, {words: partial(_then, line, act) for words, act in answers.items()}, size)

    def _save_or_ask(
        self, line: FileLine, patient: Chosen, said: Person, sha256: str, save: Save, size: int, asked: Sequence[str]
    ) -> None:
        """Read and save it; ask where another patient has its pixels, or was given the same file while it was read."""
        try:
            save(patient, asked)
        except SavedElsewhere as problem:
            self._save_if_right(line, patient, said, sha256, save, size, problem.owners)

    def _was_read(self, line: FileLine, patient: Chosen, sha256: str) -> bool:
        """Whether the same was read before for this patient, which the line then says."""
        earlier = self.records.same_upload(patient.id, sha256) if isinstance(patient, PatientRow) else None
        if earlier:
            line.known(earlier)
        return bool(earlier)

    def _same_by_now(self, patient: Chosen) -> Chosen:
        """The same patient, who may have been saved with another file since."""
        known = isinstance(self.patient, PatientRow) and self.patient.number == patient.number
        return self.patient if self.patient and known else patient

    def _saved(self, line: FileLine, patient: Chosen, saved: SavedCase, said: Prediction, started: float) -> None:
        self.page.browser.forget(_notes_of(patient))
        if patient == self.patient != saved.patient:
            self._select(saved.patient)
        elif saved.patient != self.patient:
            line.tell([f"Saved for patient {saved.patient.number}, {saved.patient.name}."])
        if saved.hidden:
            line.read_blind(saved.reading_id)
        else:
            seconds = time.perf_counter() - started
            line.read(saved.reading_id, said.decision, percent(said.probability), seconds, said.refusal)
        if not self.reading.children:
            self._show(saved.reading_id)

    # --- CT series

    def _receive_together(self, bundle: Bundle) -> None:
        """Several files, or a zip: a CT series among them is read as one; where there is none, each file alone."""
        for line in self.files.children:
            if not line.waiting_bytes:  # an image that waits for an answer is kept apart
                line.withdraw()  # its files are gone
        archives = [path for path in bundle.paths if is_zip(path)]
        alone = [path for path in bundle.paths if path not in archives]
        looking = self._line(bundle.paths[0].name if len(bundle.paths) == 1 else f"{len(bundle.paths)} files", LOOKING)
        with outcome(looking):
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

    def _read_series(self, line: FileLine, one: series.Series) -> None:
        with outcome(line):
            line.working("Reading …")
            patient, sha256 = self._patient(), one.sha256()
            said, save = person.stated_in(one), partial(self._read_slices, line, one, sha256)
            self._save_if_right(line, patient, said, sha256, save)

    def _read_slices(
        self, line: FileLine, one: series.Series, sha256: str, patient: Chosen, confirmed: Sequence[str]
    ) -> None:
        started = time.perf_counter()
        said = series_reading.read(
            self._predictor(),
            _told(one, partial(self._progress, line, "Reading: {} slices done")),
            patient.birth_year,
        )
        saved = self.records.save_series(
            _known_or_new(patient), one, said, sha256, self.notes.value,
            tell=partial(self._progress, line, f"Saving: {{}} of {len(one.slices)} slices done"), confirmed=confirmed,
        )  # fmt: skip
        self._saved(line, patient, saved, stacks.reading_of(said), started)

    def _progress(self, line: FileLine, words: str, done: int) -> None:
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
        show_case(self.reading, case, self.records, self.page, labelled=self._labelled, models=self.models)

    def _labelled(self, reading_id: str) -> None:
        for line in self.files.children:
            if line.reading_id == reading_id:
                line.labelled()


def _then(line: FileLine, act: Callable[[], None]) -> None:
    """What an answer does; the line says if it fails."""
    with outcome(line):
        line.working("Reading …")
        act()


def _notes_of(patient: PatientRow | NewPatient | None) -> str:
    """The name under which the browser's tab keeps unsaved notes: never those of one patient on another one's form."""
    match patient:
        case PatientRow():
            return f"notes-{patient.id}"
        case NewPatient():
            return f"notes-new-{files.sha256(patient.number.encode())[:32]}"
    return "notes"


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


def _model_description(model: str) -> str:
    """What a model reads and what it was trained on, as HTML; or why that is not known."""
    try:
        version = registry.active(model)
    except LungkitError as problem:
        return notice(str(problem))
    card = version.card
    about = f"{version} reads {card_text.subject(card)}. Training data: {card_text.learned_from(card)}."
    findings = f"Possible findings: {', '.join(class_names(card.classes))}."
    return "".join(f'<p class="about">{safe(words)}</p>' for words in (about, findings))
