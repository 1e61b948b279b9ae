"""Models: which versions there are, how good they were, which one reads; promote another, or go back."""

from collections.abc import Callable

import ipywidgets as widgets

from lungkit.clinic.app.page import notice, safe, scrolling, show_if
from lungkit.clinic.app.screen import Confirm, Screen, Table
from lungkit.clinic.records.administration import Administration, ModelRow
from lungkit.models import card_text
from lungkit.models.card import ModelCard
from lungkit.models.class_names import class_names
from lungkit.wording import count


class ModelsScreen(Screen[Administration]):
    """All versions, and the card of the one that is selected."""

    def build(self) -> None:
        self.in_use = widgets.HTML()
        self.show = self.page.button("Show card", self._show)
        self.promote = self.page.button("Use this version …", self._promote, "primary")
        self.back = self.page.button("Roll back …", self._roll_back)
        self.confirm = Confirm(self.page)
        self.table = Table(
            self.page,
            {
                "Version": str,
                "In use": lambda row: "● yes" if row.active else "",
                "Registered": _of_card(lambda card: (card.created or "")[:10]),
                "Accuracy (95 % interval)": _of_card(lambda card: str(card.reported[1].figure("accuracy"))),
                "AUC (95 % interval)": _of_card(lambda card: str(card.reported[1].figure("auc"))),
                "Measured on": _of_card(lambda card: card_text.reported_on(card) if card.metrics else "not measured"),
                "Notes": lambda row: row.problem or ("synthetic data only" if row.card and row.card.synthetic else ""),
            },
            *(self.show, self.promote, self.back),
            on_select=self._selected,
            empty="No model is registered yet. Train one with the notebooks, or run `make demo`.",
        )
        self.card = widgets.HTML().add_class("card").add_class("model-card")
        self.lay_out("Models", self.in_use, self.confirm.widget, self.table.widget, self.card)

    def refresh(self) -> None:
        """Load all versions."""
        rows = self.records.models()
        used = ", ".join(str(row) for row in rows if row.active)
        self.in_use.value = (
            f"<p>In use now: <b>{safe(used)}</b>. These read new images.</p>"
            if used
            else notice("No version is in use, so images cannot be read. Select a version and use it.", "problem")
        )
        self.table.show(rows, count(len(rows), "version"))

    def _selected(self) -> None:
        self.confirm.close()
        self.card.value = ""
        show_if(False, self.card)
        row = self.table.item
        self.promote.disabled = row is None or row.active
        self.back.description = "Roll back …" if row is None else f"Roll back {row.model} …"

    def _show(self) -> None:
        row = self.table.selected()
        self.card.value = _card(self.records.card(row.model, row.version))
        show_if(True, self.card)

    def _promote(self) -> None:
        row = self.table.selected()
        without = self.records.without_trial(row.model, row.version)
        self.confirm.ask(
            " ".join(filter(None, (f"Use {row} for new readings? Earlier readings stay as they are.", without))),
            "Use this version",
            lambda: self._report(self.records.promote(row.model, row.version)),
        )

    def _roll_back(self) -> None:
        model = self.table.selected().model
        self.confirm.ask(
            f"Go back to the version of {model} that was in use before?",
            "Roll back",
            lambda: self._report(self.records.roll_back(model)),
        )

    def _report(self, row: ModelRow) -> None:
        self.refresh()
        self.page.say(f"{row} is in use now. No restart is needed.", "done")


def _of_card(text: Callable[[ModelCard], str]) -> Callable[[ModelRow], str]:
    """A cell that shows a part of the card; empty where the card cannot be read."""
    return lambda row: text(row.card) if row.card else ""


def _card(card: ModelCard) -> str:
    sentences = "".join(f"<li>{safe(sentence)}</li>" for sentence in card_text.trust(card))
    return (
        f"<h2>{safe(card.model)}@{safe(card.version)}</h2>"
        + (notice(card_text.SYNTHETIC, "note") if card.synthetic else "")
        + "".join(_figures(card_text.figures_table(*of)) for of in card.metrics.items())
        + (f"<h3>Trust</h3><ul>{sentences}</ul>" if sentences else "")
        + "".join(_facts(title, rows) for title, rows in card_text.sections(card).items() if rows)
        + _facts("Files", card_text.files(card))
    )


def _figures(table: card_text.FiguresTable) -> str:
    head = "".join(f'<th scope="col">{safe(name)}</th>' for name in ("Figure", *class_names(table.columns)))
    rows = "".join(
        f'<tr><th scope="row">{safe(label)}</th>{"".join(f"<td>{safe(cell)}</td>" for cell in cells)}</tr>'
        for label, cells in table.rows
    )
    return f'<h3>{safe(table.title)}</h3><p class="about">In brackets: 95 % interval by patient.</p>' + scrolling(
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", table.title
    )


def _facts(title: str, rows: list[card_text.Row]) -> str:
    items = "".join(f"<dt>{safe(label)}</dt><dd>{safe(value)}</dd>" for label, value in rows)
    return f"<h3>{safe(title)}</h3><dl>{items}</dl>"
