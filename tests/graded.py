"""Classes that are grades, for tests of what is done with them."""

import numpy as np

from lungkit.models.grades import Grades
from lungkit.models.rule import ConformalLevel, DecisionRule

CLASSES = ("CT-0", "CT-1", "CT-2", "CT-3/4")
CAUTION = "One slice is not the whole scan"
GRADES = Grades(extents=((0, 0), (0, 25), (25, 50), (50, 100)), of="the lungs", caution=CAUTION)
MIDDLE = DecisionRule(kind="median", grades=GRADES)
RANGES = DecisionRule(kind="median", grades=GRADES, conformal=ConformalLevel(level=0.9, least=0.8))


def answers(n=300, skill=2.0, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Grades (n,), most of them the second, and probabilities (n, 4) that are likelier the nearer they are."""
    rng = np.random.default_rng(seed)
    y = rng.choice(4, n, p=[0.25, 0.5, 0.15, 0.1])
    seen = y + rng.normal(0, 2 / skill, n)
    logits = -((np.arange(4) - seen[:, None]) ** 2) / 2
    p = np.exp(logits)
    return y, p / p.sum(axis=1, keepdims=True)
