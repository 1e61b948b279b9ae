"""A small model card for tests of what is done with one."""

from lungkit.data.preprocess import Preprocessing
from lungkit.models.card import ModelCard

VALUES = {
    "classes": ["Pneumonia", "Normal"],
    "preprocessing": Preprocessing().to_dict(),
    "data": {"name": "phantom", "fingerprint": "ab12"},
    "metrics": {},
    "operating_point": {"kind": "argmax"},
    "synthetic": True,
}


def model_card(**changes) -> ModelCard:
    """A card as it stands in card.json, with these keys in place of its own."""
    return ModelCard.from_dict(VALUES | changes)
