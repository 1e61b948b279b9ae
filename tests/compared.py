"""Answers of made-up runs, for tests that compare them."""

import numpy as np

from lungkit.models.rule import DecisionRule
from lungkit.training.predictions import Answers


def run(name: str, lift: float, size: int = 2, n: int = 80, seed: int = 0, per_patient: int = 1, y=None) -> Answers:
    """The answers of a run whose scores lie `lift` apart; runs of one seed share their noise."""
    y = np.arange(n) % size if y is None else np.asarray(y)
    scores = lift * np.eye(size)[y] + np.random.default_rng(seed).normal(size=(len(y), size))
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    files = np.array([f"{i}.png" for i in range(len(y))])
    patients = np.array([f"p{i // per_patient}" for i in range(len(y))])
    classes = ("well", "sick", "very sick")[:size]
    blank, rule = np.full(len(y), ""), DecisionRule(kind="argmax")
    return Answers(name, files, classes, y, p.argmax(axis=1), p, patients, blank, rule)
