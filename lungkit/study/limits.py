"""What a run cannot show, from what is known of it: each limit in one sentence, with the number it rests on."""

from collections.abc import Iterator

from lungkit.models import card_text
from lungkit.models.card import Figure, Measured
from lungkit.study.material import PLAN, SCORE, Material
from lungkit.wording import count

FEW_PATIENTS = 100  # of a test: an AUC of 0.9 has an interval of about ±0.06 with so many, half of them ill
WIDE = 0.1  # of the interval of the AUC or the accuracy: 0.85 to 0.95 can mean useful and useless


def limits(material: Material) -> list[str]:
    """One sentence each, the gravest first."""
    sentences = [
        *_of_images(material),
        *_of_test(material),
        *_of_groups(material),
        *_of_data(material),
        *_of_plan(material),
        *_of_run(material),
    ]
    return [
        *sentences,
        *material.unknown,
        "Nothing here has been validated for clinical use, and no output is a diagnosis.",
    ]


def _of_images(material: Material) -> Iterator[str]:
    data, card = material.data, material.card
    if (data and data.synthetic) or (card and card.synthetic):
        yield (
            "The images are synthetic (a phantom): the figures say that the software works, and nothing about patients."
        )
    if material.profile in ("quick", "smoke"):
        yield (
            f"The run used the profile {material.profile}: small images and a short training that show the pipeline. "
            "Figures worth reporting come from the profile full."
        )


def _of_test(material: Material) -> Iterator[str]:
    measured, score = material.measured, material.score or {}
    if measured is None and SCORE in material.unread:
        return  # material.unknown says why
    if measured is None:
        yield "The model was not tested in this run (notebook 04), so the run shows no figure on unseen patients."
        return
    if seen := int(score.get("seen_in_training") or 0):
        were = "was" if seen == 1 else "were"
        yield f"{count(seen, 'test image')} {were} seen in training: the figures are too good."
    if measured.patients is not None and measured.patients < FEW_PATIENTS:
        yield f"The test has {count(measured.patients, 'patient')}, fewer than {FEW_PATIENTS}."
    yield from _wide(measured)
    if (times := measured.times_scored or 0) > 1:
        yield f"This test part was scored {times} times: choices between versions may have adapted to it."
    for name in score.get("absent_classes") or ():
        yield f"The test has no image of {name}, so the figures of this class are missing."
    yield from _baseline(measured)
    if unreadable := len(score.get("unreadable") or ()):
        yield f"{count(unreadable, 'image')} of the test could not be read; the figures are without them."


def _wide(measured: Measured) -> Iterator[str]:
    for name in ("auc", "accuracy"):
        one = measured.figure(name)
        low, high = one.interval or (None, None)
        if one.value is not None and (low is None or high is None):
            yield f"The {_called(name)} has no interval: the test has one patient."
        elif low is not None and high is not None and high - low > WIDE:
            yield f"The interval of the {_called(name)} is wide: {one}. More test patients would narrow it."


def _called(metric: str) -> str:
    name = card_text.metric_name(metric)
    return name if name == "AUC" else name.lower()


def _baseline(measured: Measured) -> Iterator[str]:
    largest, accuracy = measured.largest_class, measured.figure("accuracy")
    low = (accuracy.interval or (None, None))[0]
    if largest and low is not None and low <= largest["share"]:
        yield (
            f"The accuracy, {accuracy}, is not shown to be above {Figure(largest['share'])}, that of always answering "
            f"'{largest['class']}'."
        )


def _of_data(material: Material) -> Iterator[str]:
    card, data = material.card, material.data
    sources = list(card.data.sources or ()) if card else (data.source_names if data else [])
    if len(sources) == 1:
        yield f"All training images are from one source, {sources[0]}, which says nothing about others."
    if card and not card.outside and not _tested_elsewhere(material):
        yield "The model was not measured on a source that it has not seen (no external set)."
    if n := material.without_patient:
        yield (
            f"The patient of {count(n, 'image')} is not known, and each counts as a patient of its own: two images of "
            "one person can be in training and test."
        )
    if card and card.data.recipe.get("by") == "image":
        yield "The split is by image: images of one patient can be in training and test."
    if material.findings is not None:
        for row in material.findings[material.findings["severity"] == "error"].to_dict("records"):
            yield f"The audit found an error: {found(row['finding'], row['count'])}. {row['meaning']}"
    yield from _of_labels(material)


def found(finding: str, number: int) -> str:
    """A finding of the audit with its count, and what is counted: "exact duplicates across splits: 4 images"."""
    if finding == "class imbalance":
        return f"{finding}: {count(number, 'image')} of the smallest class"
    of_images = any(word in finding for word in ("duplicates", "same picture"))
    return f"{finding}: {count(number, 'image') if of_images else f'{number:,}'}"


def _of_labels(material: Material) -> Iterator[str]:
    """What notebook 11 found of the labels, if it ran."""
    as_if_true = "errors are learned and measured as if true."
    if any(one.name == "11_suspects" for one in material.tables):
        suspects = material.kept("11_suspects")
        n = 0 if suspects is None else len(suspects)
        look = "looks" if n == 1 else "look"
        yield (
            f"Of the data set's labels, {count(n, 'label')} {look} wrong (notebook 11), and no person is known to have "
            f"checked them: {as_if_true}"
            if n
            else "No label looks wrong (notebook 11), which does not show that all are right; no person checked them."
        )
    elif not (material.data and material.data.synthetic):
        yield f"Labels are those of the data set and were not checked: {as_if_true}"


def _of_groups(material: Material) -> Iterator[str]:
    """What notebook 10 found of groups of patients, if it ran: its figures state it in their captions."""
    for one in material.figures:
        if one.name.startswith("10_gaps") and one.caption:
            yield f"{one.caption.strip().rstrip('.')}."
    groups = material.kept("10_subgroups")
    few = 0 if groups is None else int(groups.agg(" ".join, axis=1).str.contains("*", regex=False).sum())
    if few:
        were = "was" if few == 1 else "were"
        yield f"{count(few, 'group')} of patients {were} too small for a test of every figure (notebook 10)."


def _tested_elsewhere(material: Material) -> bool:
    """Whether the test itself was on another set than the one that the model learned from."""
    return bool(material.score and material.card and material.score.get("data") != material.card.data.name)


def _of_plan(material: Material) -> Iterator[str]:
    plan = material.plan
    if plan is None:
        if material.measured and PLAN not in material.unread:
            yield "No plan was fixed before the test was read: the figures are exploratory."
        return
    yield from (str(one) for one in plan.get("deviations") or ())
    if isinstance(looks := plan.get("looks"), int) and looks > 1:
        yield f"The test part was read {looks} times, this reading included."


def _of_run(material: Material) -> Iterator[str]:
    for one in material.notebooks:
        if one.stage.status != "done":
            yield f"Notebook {one.stage.name} did not run to its end: {one.stage.status}"
    code = material.record.code
    if code.get("changed"):
        yield "The code was changed after its last commit: this commit alone does not give the same program."
    if code.get("commit") is None:
        yield "The commit of the code is not known: the code was not run from a git checkout."
