"""From probabilities to a decision: a class at the operating point, and how far from it the answer lies.

numpy alone: training chooses operating point and band with these functions, the clinic applies them.
"""

import numpy as np

from lungkit.errors import LungkitError

_SURE = 1e-6  # probabilities nearer to 0 or 1 count as this far from it, so that their log-odds stay finite


def decide(probabilities: np.ndarray, operating_point: dict) -> np.ndarray:
    """Class index of each row of probabilities (n, classes) at an operating point: int (n,)."""
    probabilities = np.asarray(probabilities)
    match operating_point:
        case {"kind": "argmax"}:
            return probabilities.argmax(axis=1)
        case {"kind": "threshold", "threshold": threshold} if probabilities.shape[1] == 2:
            return (probabilities[:, 1] >= threshold).astype(int)
    raise LungkitError(
        f"operating point {operating_point} does not fit probabilities of {probabilities.shape[1]} classes; accepted: "
        '{"kind": "argmax"}, or {"kind": "threshold", "threshold": t} for two classes'
    )


def margin(probabilities: np.ndarray, operating_point: dict) -> np.ndarray:
    """How far each row of probabilities (n, classes) lies from another decision: float64 (n,), 0 or more.

    In log-odds, so that it means the same near 0 as near 0.5. Threshold: the distance of the last class's log-odds from
    the threshold's. Likeliest class: log of how many times likelier it is than the next.
    """
    sure = np.clip(np.asarray(probabilities, float), _SURE, 1 - _SURE)
    if operating_point["kind"] == "threshold":
        threshold = np.clip(operating_point["threshold"], _SURE, 1 - _SURE)
        return np.abs(log_odds(sure[:, 1]) - log_odds(threshold))
    second, first = np.sort(sure, axis=1)[:, -2:].T
    return np.log(first / second)


def uncertain(probabilities: np.ndarray, operating_point: dict, band: dict) -> np.ndarray:
    """Whether each row of probabilities (n, classes) lies within the band of a card's "uncertainty": bool (n,).

    Also where no class is likelier than all others together: "Normal, 46 %" would be read as an answer.
    """
    return (margin(probabilities, operating_point) <= band["margin"]) | (np.max(probabilities, axis=1) < 0.5)


def prediction_set(probabilities: np.ndarray, conformal: dict) -> np.ndarray:
    """Which classes a card's "conformal" keeps for each row of probabilities (n, classes): bool (n, classes).

    Every class at least as likely as `least`, and always the likeliest. Of new patients like those of validation, the
    true class is among them for a share of at least `level`.
    """
    probabilities = np.asarray(probabilities)
    kept = probabilities >= conformal["least"]
    kept[np.arange(len(kept)), probabilities.argmax(axis=1)] = True
    return kept


def log_odds(probability):
    """log(p / (1 - p)) of a probability within 0 and 1, or of an array of them."""
    return np.log(probability) - np.log1p(-probability)
