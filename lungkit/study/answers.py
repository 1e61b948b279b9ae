"""What the run knows of the items of a checklist: each answer says where it is in the report, and the value."""

from collections.abc import Iterator

from lungkit.models import card_text
from lungkit.models.card import ModelCard
from lungkit.study import datasheet, plan_text
from lungkit.study.content import where
from lungkit.study.document import Inline, Ref, Section, Text
from lungkit.study.material import Material
from lungkit.wording import count, listed


def answers(material: Material, sections: tuple[Section, ...]) -> dict[str, Text]:
    """Name of an answer (as in lungkit.study.checklists) to the answer; only those that the run knows."""
    names = _names(sections)
    found = dict(_of_data(material, names))
    found |= dict(_of_run(material, names))
    if material.card:
        found |= dict(_of_model(material, material.card, names))
    return found | dict(_of_test(material, names)) | dict(_of_notebooks(material, names))


def _names(sections: tuple[Section, ...]) -> list[Ref]:
    """What the report has that can be mentioned, in its order."""
    found = []
    for section in sections:
        found.append(Ref("section", section.name))
        found += [Ref(type(block).__name__.lower(), block.name) for block in section.blocks if hasattr(block, "name")]
        found += _names(section.parts)
    return found


def _said(names: list[Ref], text: str, *refs: Ref) -> Text:
    """ "Section 2, Table 1: the text." """
    there: tuple[Inline, ...] = where(names, *refs)
    return (*there, f": {text}" if text else "") if there else (text,)


def _section(name: str) -> Ref:
    return Ref("section", name)


def _table(name: str) -> Ref:
    return Ref("table", name)


def _figures(*names: str) -> list[Ref]:
    return [Ref("figure", name) for name in names]


_FIGURES = (_table("figures"), _table("04_metrics"))
_BY_CLASS = (_table("by-class"), _table("04_metrics"))


def _of_data(material: Material, names: list[Ref]) -> Iterator[tuple[str, Text]]:
    data, card = material.data, material.card
    counts = (_section("data"), _table("counts"))
    if card and card.data.sources:
        yield "sources", _said(names, f"{'; '.join(card.data.sources)}. Why these, the author must state.", *counts)
    elif data is not None:
        yield "sources", _said(names, f"{'; '.join(data.source_names)}. Why these, the author must state.", *counts)
    if card and card.about and card.about.population:
        yield (
            "population",
            _said(names, f"{card.about.population}. The step of care, the author must state.", _section("data")),
        )
        yield "setting", _said(names, f"{card.about.population}.", _section("data"))
    if data is not None or material.findings is not None:
        refs = (_section("data"), _table("audit"), _table("01_findings"), _section("preprocessing"))
        yield (
            "preparation",
            _said(names, "Whether this was alike for all groups of people, the author must state.", *refs),
        )
    if data is not None:
        left = int(data.manifest["split"].isin(["refused", "set_aside"]).sum())
        parts = "; ".join(filter(None, (f"{count(left, 'image')} left out", datasheet.taken(data))))
        text = f"{parts}. Criteria of the data set itself, the author must state."
        yield "eligibility", _said(names, text, _section("data"))
        unread = int((data.manifest["split"] == "refused").sum())
        yield "missing", _said(
            names, f"{count(unread, 'image')} could not be read and no value was imputed; the model uses images only.",
            _section("data"))  # fmt: skip
        yield "characteristics", _said(
            names, "Images and patients of each class, part and source. Age, sex and others, the author must state.",
            _table("counts"), _table("sources"), *_subgroups(names))  # fmt: skip
    if data is not None or card:
        yield "flow", _said(names, "Images and patients of each part.", *counts)
        text = "The classes are the labels of the data set. How they were determined, the author must state."
        classes = card.classes if card else data.classes if data else ()
        yield "outcome", _said(names, f"{listed(list(classes), 'or')}. {text}", _section("question"), _section("data"))


def _subgroups(names: list[Ref]) -> list[Ref]:
    """The exhibits that show a figure for each group of patients."""
    return _exhibits(names, "10_subgroups", "10_gaps", "04_plan_subgroups")


def _useful(names: list[Ref]) -> list[Ref]:
    """The exhibits that show what decisions by the model are worth."""
    return _exhibits(names, "10_net_benefit", "10_predictive_values", "10_decision_curve")


def _exhibits(names: list[Ref], *begin: str) -> list[Ref]:
    """Tables, then figures, whose names begin so."""
    found = [ref for ref in names if ref.kind != "section" and ref.name.startswith(begin)]
    return sorted(found, key=lambda ref: ref.kind, reverse=True)


def _of_run(material: Material, names: list[Ref]) -> Iterator[tuple[str, Text]]:
    code, packages = material.record.code, material.record.environment.get("packages", {})
    commit = f", commit {code['commit']}" if code.get("commit") else ""
    yield "software", _said(
        names, f"lungkit {code.get('lungkit')}, {', '.join(f'{name} {of}' for name, of in packages.items())}.",
        _section("reproduction"), _table("environment"))  # fmt: skip
    yield "code", _said(
        names, f"lungkit {code.get('lungkit')}{commit}, Apache License 2.0. Where data and model are: the author.",
        _section("reproduction"), _section("declarations"))  # fmt: skip
    yield "retrospective", ("Retrospective: the images were there before the study.",)
    yield "limits", _said(names, "Listed from the run's numbers.", _section("limits"))
    yield (
        "data_access",
        _said(names, "A datasheet describes the data. Access to them, the author must state.", _section("datasheet")),
    )
    plan = material.plan
    if plan is not None:
        yield "protocol", _said(names, plan_text.fixed(plan), _section("question"))
        if hypothesis := (plan.get("plan") or {}).get("hypothesis"):
            yield "hypothesis", _said(names, str(hypothesis), _section("question"))
        if (n := (plan.get("plan") or {}).get("planned_n")) is not None:
            yield (
                "size",
                _said(
                    names, f"The plan asks for {count(n, 'patient')}. Why, the author must state.", _section("question")
                ),
            )


def _of_model(material: Material, card: ModelCard, names: list[Ref]) -> Iterator[tuple[str, Text]]:
    question, measured = card_text.question(card).rstrip("?"), material.measured
    trained = f"{'a model was trained' if material.ran('03') else 'a trained model was used'}"
    tested = " and evaluated" if measured else ""
    yield "title", (f"Proposed: a deep learning model, developed{tested}, for the question: {question}?",)
    yield (
        "question",
        _said(names, f"{question}? The need for it and earlier models, the author must state.", _section("question")),
    )
    yield "goal", _said(names, f"In this run, {trained}{' and tested' if measured else ''}.", _section("question"))
    yield "predictors", ("The pixels of one image; no other variable.",)
    yield "no_judgement", ("Not applicable: no person judges the predictors.",)
    for name in ("split", "preprocessing", "model", "output", "inputs"):
        refs = {"output": "rule", "inputs": "checks"}
        if (ref := _section(refs.get(name, name))) in names:
            yield name, (ref,)
    disjoint = "images" if card.data.recipe.get("by") == "image" else "patients"
    yield "disjoint", _said(names, f"The parts share no {disjoint}.", _section("split"))
    yield "subset", _said(names, _crop(card), _section("preprocessing"))
    architecture = dict(card.architecture or {})
    random = (
        "At random."
        if architecture.get("name") == "cnn"
        else "From a network trained on other images, without its last layer."
    )
    if architecture:
        yield "initial", _said(names, random, _section("model"))
        members = int(architecture.get("members", 1))
        together = f"{members} networks, their probabilities averaged." if members > 1 else "No ensemble: one network."
        yield "ensemble", _said(names, together, _section("model"))
    if "best_epoch" in (card.training or {}):
        yield "selected", _said(names, "The weights with the lowest loss on validation patients.", _section("model"))
    if weights := (card.training or {}).get("class_weights"):
        told = "The classes are equally frequent." if len(set(weights.values())) == 1 else "Weights in the loss."
        calibrated = " Probabilities were calibrated afterwards." if card.rule.temperature is not None else ""
        yield "imbalance", _said(names, f"{told}{calibrated}", _section("model"), _section("rule"))
    yield (
        "specification",
        (f"The registered version {material.version}, with a SHA-256 of each file. Who has access: the author.",),
    )
    yield "computed", (f"By the exported graph of {material.version} (lungkit predict, lungkit evaluate).",)
    updated = "The model was not updated after the test."
    yield "updating", (updated,)
    if card.outside:
        row = f"{len(card.outside)} unseen sources; worst: {card_text.worst_unseen(card)}."
        yield "external", (row,)
    else:
        yield "external", _said(names, "None. The model was not tested on external data.", _section("limits"))


def _crop(card: ModelCard) -> str:
    if (card.training or {}).get("lungs"):
        return "The square around the lungs, which a network finds."
    return "Whole images, without a crop."


def _of_test(material: Material, names: list[Ref]) -> Iterator[tuple[str, Text]]:
    measured, score = material.measured, material.score or {}
    if measured is None:
        return
    figures = ", ".join(
        f"{card_text.metric_name(name, measured.classes)} {measured.figures[name]}"
        for name in ("kappa", "auc", "accuracy") if name in measured.figures
    )  # fmt: skip
    yield (
        "performance",
        _said(names, f"{figures}; {measured.counts}.", _section("notebook-04"), *_FIGURES, *_subgroups(names)),
    )
    yield (
        "diagnostic",
        _said(names, "Sensitivity, specificity and precision of each class, with intervals.", *_BY_CLASS),
    )
    yield "uncertainty", _said(names, "95 % intervals by patient, from a bootstrap.", _section("intervals"))
    yield (
        "failures",
        _said(
            names,
            "",
            _table("confusion"),
            _table("11_errors"),
            *_figures("04_confusion", "04_predictions", "11_errors", "11_errors_test"),
        ),
    )
    elsewhere = bool(material.card and score.get("data") != material.card.data.name)
    text = f"On the part '{score.get('split')}' of {score.get('data')}: {measured.counts}."
    yield ("external", _said(names, text, _section("notebook-04"))) if elsewhere else (
        "internal", _said(names, text, _section("notebook-04")))  # fmt: skip
    if not elsewhere:
        yield "differences", ("None by design: development and test are parts of one data set, divided by patient.",)
    if measured.sources:
        yield "clusters", (f"{len(measured.sources)} sources, each alone, on the model's card.",)


def _of_notebooks(material: Material, names: list[Ref]) -> Iterator[tuple[str, Text]]:
    """What notebooks show in addition to the test of notebook 04, whether or not that one ran too."""
    useful = _useful(names)
    worth = (
        "Clinical usefulness: net benefit and predictive values." if useful else
        "Clinical usefulness, the author must state."
    )  # fmt: skip
    if material.measured:
        yield "measures", _said(names, f"Discrimination and calibration. {worth}", _section("intervals"), *_FIGURES,
                                *_figures("04_roc", "04_reliability"), *useful)  # fmt: skip
    elif useful:
        yield "measures", _said(names, worth, *useful)
    if not material.measured and (wrong := _exhibits(names, "11_errors")):
        yield "failures", _said(names, "", *wrong)
    heat = _figures("05_gradcam", "05_localisation", "05_randomisation")
    if any(ref in names for ref in heat):
        text = "Grad-CAM, measured against lesion masks if there are any, and against random weights."
        yield "explained", _said(names, text, _section("heat"), *heat)
    if subgroups := _subgroups(names):
        yield "fairness", _said(names, "Figures of subgroups.", *subgroups)
    if stable := _exhibits(names, "08_"):
        yield "robustness", _said(names, "Training seeds and folds.", *stable)
