"""A heat map over a grey picture, in the colours of every report and result."""

import numpy as np
import PIL.Image

from lungkit import palette

OPACITY = 0.65  # of the hottest place; none where there is no heat
_HEAT = np.array([palette.rgb(colour) for colour in palette.HEAT])


def overlay(gray: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """(height, width, 3) in 0..1: the more heat, the less of the picture is seen through its colour.

    gray: float32 (height, width), 0..1. heat: (any height, any width), 0..1, of the whole picture.
    """
    heat = np.clip(resized(heat, (gray.shape[1], gray.shape[0])), 0, 1)
    at = heat * (len(_HEAT) - 1)
    colours = np.stack([np.interp(at, range(len(_HEAT)), channel / 255) for channel in _HEAT.T], axis=-1)
    opacity = OPACITY * heat[..., None]
    return np.asarray(gray[..., None] * (1 - opacity) + colours * opacity)


def colour_scale(height: int = 8) -> np.ndarray:
    """(height, 256, 3) in 0..1: from no to most weight, with the opacity that the overlay has there."""
    heat = np.linspace(0, 1, 256, dtype=np.float32)[None]
    return np.repeat(overlay(np.full((1, 256), 0.45, np.float32), heat), height, axis=0)


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values (height, width) as float32 at a size of (width, height), bilinear."""
    picture = PIL.Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize(size, PIL.Image.Resampling.BILINEAR))
