"""A trial as HTML: its verdict, a forest plot of the differences, the figures of each set, and what was signed."""

from collections.abc import Callable, Sequence

from lungkit.clinic.app.page import notice, safe, scrolling, when
from lungkit.clinic.learning.trial import Standing
from lungkit.clinic.records.trials import SIGNATURES, TrialRow
from lungkit.models import verdict
from lungkit.models.verdict import CANNOT_TELL, KEEP, PROMOTE, WORSE, Evidence, OfSet
from lungkit.wording import figure, percent

WIDTH, NAMES, FIGURES = 920, 250, 210  # of the plot, and of its columns of text, in its own units
_ROW, _TOP, _AXIS = 34, 26, 34
_VERDICTS = {
    PROMOTE: "Promote: the challenger may take the place of the version in use",
    KEEP: "Keep the version in use",
    CANNOT_TELL: "Cannot tell: the version in use stays",
}


def whole(trial: TrialRow) -> str:
    """All of a trial."""
    evidence, said = trial.evidence, trial.verdict
    kind = {PROMOTE: "done", KEEP: "problem", CANNOT_TELL: "note"}[said.word]
    return (
        f"<h2>{safe(trial)}</h2>"
        + notice(_VERDICTS[said.word], kind)
        + _list(said.reasons)
        + (f"<h3>What would tell</h3>{_list(said.would_tell)}" if said.would_tell else "")
        + forest(evidence)
        + _table(evidence)
        + f"<h3>Also measured</h3>{_list(_besides(evidence))}"
        + f"<h3>Rule for going back</h3><p>{safe(trial.rollback)}</p>"
        + f'<p class="about">Derived from {safe(trial.rollback.derived_from)}. Each limit raises a false alarm in '
        f"{percent(trial.rollback.false_alarm)} of such runs. Nothing goes back by itself.</p>"
        + f"<h3>Signatures</h3>{_signatures(trial)}"
        + f'<details><summary>The rule of the verdict</summary><p class="about">{safe(evidence.rule)}</p></details>'
    )


def standing_notice(standing: Standing) -> str:
    """How the rule for going back stands, for the top of the screen."""
    name = f"{standing.trial.model}@{standing.trial.challenger}"
    return notice(f"{name}: {standing.words}", "problem" if standing.due else "note")


def _besides(evidence: Evidence) -> list[str]:
    """Power, looks, labels, speed and size."""
    return verdict.says(evidence)[1 + len(verdict.judge(evidence).would_tell) :]


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{safe(one[:1].upper() + one[1:])}</li>' for one in sentences)}</ul>"


def _signatures(trial: TrialRow) -> str:
    rows = "".join(f"<li>{safe(one.full_name)}, {safe(when(one.at))}</li>" for one in trial.signatures)
    missing = SIGNATURES - len(trial.signatures)
    state = f"{missing} more needed, of other administrators." if missing > 0 else "Complete."
    problem = notice(f"{trial.problem[:1].upper()}{trial.problem[1:]}.", "problem") if trial.problem else ""
    return f'{problem}<ul>{rows}</ul><p>{state} <span class="about">Evidence {safe(trial.sha256[:12])}…</span></p>'


def _table(evidence: Evidence) -> str:
    rows = [verdict.set_row(evidence, of) for of in evidence.sets]
    head = "".join(f'<th scope="col">{safe(name)}</th>' for name in rows[0])
    cells = "".join(
        f'<tr><th scope="row">{safe(first)}</th>{"".join(f"<td>{safe(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in (row.values() for row in rows)
    )
    return f'<p class="about">{verdict.FIGURES}</p>' + scrolling(
        f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>", "Figures of each set"
    )


# --- the forest plot


def forest(evidence: Evidence) -> str:
    """The difference in AUC on each set with its interval, with lines at 0 and at the margin, as inline SVG."""
    low, high = _range(evidence)
    left, right = NAMES, WIDTH - FIGURES
    bottom = _TOP + _ROW * len(evidence.sets)

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    lines = "".join(
        f'<line class="{kind}" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{_TOP - 4}" y2="{bottom}"/>'
        f'<text class="tick" x="{x(at):.1f}" y="{bottom + 16}" text-anchor="{anchor}">{safe(words)}</text>'
        for at, kind, words, anchor in (
            (0.0, "none", "no difference", "start"),
            (-evidence.margin, "margin", f"margin −{evidence.margin:g}", "end"),
        )
    )
    sides = (
        f'<text class="tick" x="{left}" y="14">challenger worse</text>'
        f'<text class="tick" x="{right}" y="14" text-anchor="end">challenger better</text>'
    )
    marks = "".join(_mark(evidence, of, x, _TOP + _ROW * (i + 0.5)) for i, of in enumerate(evidence.sets))
    words = "Difference in AUC: " + "; ".join(
        f"{of} {figure(*of.auc, signed=True)}, {evidence.outcome(of)}" for of in evidence.sets
    )
    return (
        '<figure class="chart forest"><figcaption>Difference in AUC, challenger minus version in use '
        "<span>dot: measured, line: 95 % interval</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {bottom + _AXIS}" role="img" aria-label="{safe(words)}">{lines}{sides}{marks}</svg>'
        "</figure>"
    )


def _mark(evidence: Evidence, of: OfSet, x: Callable[[float], float], y: float) -> str:
    value, low, high = of.auc
    outcome = evidence.outcome(of)
    kind = "worse" if outcome == WORSE else "shown" if outcome != verdict.OPEN else "unclear"
    place = {"locked": f"{of.data} (locked)", "new": f"{of.data} (new)", "home": f"{of.source} (home)"}
    name = place.get(of.kind, of.source)
    name = name if len(name) <= 34 else f"{name[:33]}…"
    return (
        f'<text x="0" y="{y + 5:.1f}">{safe(name)}</text>'
        f'<line class="range {kind}" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<circle class="dot {kind}" cx="{x(value):.1f}" cy="{y:.1f}" r="5"/>'
        f'<text x="{WIDTH}" y="{y + 5:.1f}" text-anchor="end">{safe(figure(*of.auc, signed=True))}'
        f"<title>{safe(outcome)}</title></text>"
    )


def _range(evidence: Evidence) -> tuple[float, float]:
    """The ends of the axis: all intervals, 0 and the margin, with some room."""
    low = min([-2 * evidence.margin, *(of.auc[1] for of in evidence.sets)])
    high = max([2 * evidence.margin, *(of.auc[2] for of in evidence.sets)])
    room = 0.05 * (high - low)
    return low - room, high + room
