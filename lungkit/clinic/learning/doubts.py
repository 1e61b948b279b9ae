"""The reviewed readings whose label looks wrong by the model's own probabilities, as a list to look at again."""

from dataclasses import dataclass

import numpy as np

from lungkit.clinic.learning import reviews
from lungkit.clinic.learning.confident import doubtful
from lungkit.clinic.learning.reviews import Asked
from lungkit.clinic.records.store import Store


@dataclass(frozen=True)
class Doubt:
    """A label that looks wrong. looks_like: the class that it looks like, and the probability of that."""

    reading_id: str
    model: str
    label: str
    looks_like: str
    probability: float


def of_records(store: Store, asked: Asked) -> tuple[list[Doubt], int]:
    """The doubts, the largest first, and how many labels were looked at: those of the locked set too."""
    images = [
        image
        for locked in (False, True)
        for image in reviews.selected(store, Asked(asked.model, asked.since, locked)).labelled
    ]
    reviews.refuse_other_classes(images)
    if not images:
        return [], 0
    classes = sorted(images[0].probabilities)
    probabilities = np.array([[image.probabilities[name] for name in classes] for image in images])
    found = doubtful(probabilities, np.array([classes.index(image.label) for image in images]))
    doubts = [
        Doubt(images[at].reading_id, images[at].model, images[at].label, classes[like], float(probabilities[at, like]))
        for at, like in found
    ]
    return doubts, len(images)
