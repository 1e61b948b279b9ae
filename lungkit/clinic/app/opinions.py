"""Second opinions: images that wait for another doctor's label, labels that look wrong, and what to review next."""

import ipywidgets as widgets

from lungkit.clinic.app.page import show_if, sortable_time
from lungkit.clinic.app.screen import Screen, Table
from lungkit.clinic.learning import doubts, next_labels
from lungkit.clinic.records import opinions
from lungkit.clinic.records.cases import Records
from lungkit.models.class_names import class_name
from lungkit.wording import count, percent

AGAIN = "One doctor has read these without the model's answer. Your label shows how far readers agree."
DIFFER = (
    "Two doctors say different things: each another class, or one of them that no class fits. What you say decides if "
    "one of them says the same; otherwise the image stays aside."
)
NEXT = (
    "Images without a review, whose label would teach the model most: it is unsure of them, or they are "
    "unlike those that it learned from."
)
DOUBTS = "Labels that look wrong by the model's probabilities. The model may be the one that is wrong."


class OpinionsScreen(Screen[Records]):
    """Four lists; an image of the first two opens without the answer, and shows it after the label."""

    def build(self) -> None:
        self.again = self._table("No image waits for a second reader.", "Open the image to read it as second reader")
        self.differ = self._table(
            "There is no image of which two readers say different things.", "Open the image to read it as third reader"
        )
        self.next = self._table("No image waits for a review.", "Open the case to review it", label_first=False)
        self.suggest = self.page.button("Suggest images", self._suggest)
        self.doubts = Table(
            self.page,
            {
                "Patient": lambda row: row.number,
                "Name": lambda row: row.name,
                "Read": lambda row: sortable_time(row.read_at),
                "Label": lambda row: class_name(row.doubt.label),
                "Looks like": lambda row: f"{class_name(row.doubt.looks_like)}, {percent(row.doubt.probability)}",
                "Model": lambda row: row.doubt.model,
            },
            self.page.button("Open case", self._open_doubt, "primary").add_class("opens"),
            name=lambda row: f"{row.number} · {row.name}",
            empty="No label looks wrong.",
            search=False,
        )
        self.look = self.page.button("Search for such labels", self._look)
        parts = [
            widgets.VBox([widgets.HTML(f'<h2>{title}</h2><p class="about">{about}</p>'), *below]).add_class("card")
            for title, about, *below in (
                ("To read a second time", AGAIN, self.again.widget),
                ("Readers differ", DIFFER, self.differ.widget),
                ("Look again", DOUBTS, self.look, self.doubts.widget),
                ("Review next", NEXT, self.suggest, self.next.widget),
            )
        ]
        self.lay_out("Second opinions", widgets.VBox(parts).add_class("opinions"))
        show_if(False, self.doubts.widget, self.next.widget)

    def refresh(self) -> None:
        """Load the lists; a search for doubtful labels, or for what to review next, is repeated if there was one."""
        access = self.records.access
        for table, rows in (
            (self.again, opinions.to_read_again(access)),
            (self.differ, opinions.readers_differ(access)),
        ):
            table.show(rows, count(len(rows), "image"))
        if self.doubts.widget.layout.display != "none":
            self._look()
        if self.next.widget.layout.display != "none":
            self._suggest()

    def _table(self, empty: str, tooltip: str, label_first: bool = True) -> Table:
        def open_it() -> None:
            self._open(table.selected().reading_id, label_first)

        table = Table(
            self.page,
            {
                "Patient": lambda row: row.number,
                "Name": lambda row: row.name,
                "Modality": lambda row: row.kind,
                "Read": lambda row: sortable_time(row.read_at),
                "Model": lambda row: row.model,
            },
            self.page.button("Open image", open_it, "primary", tooltip=tooltip).add_class("opens"),
            name=lambda row: f"{row.number} · {row.name}",
            empty=empty,
            search=False,
        )
        return table

    def _look(self) -> None:
        rows, number = doubts.look_again(self.records.access)
        more = f", the {len(rows)} most doubtful are listed" if number > len(rows) else ""
        self.doubts.show(rows, f"{count(number, 'label')}{more}")
        show_if(True, self.doubts.widget)

    def _suggest(self) -> None:
        rows = next_labels.suggested(self.records.access)
        self.next.show(rows, count(len(rows), "image"))
        show_if(True, self.next.widget)

    def _open_doubt(self) -> None:
        self._open(self.doubts.selected().doubt.reading_id, label_first=False)

    def _open(self, reading_id: str, label_first: bool) -> None:
        self.open_reading(reading_id, back="opinions", label_first=label_first)
