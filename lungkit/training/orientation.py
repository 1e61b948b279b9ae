"""How a picture lies: the network that finds lungs is also asked whether it is upright, turned or mirrored.

A linear layer on what that network sees where it is coarsest (lungkit.models.lungs), learned from pictures that are
upright as they are published, and from the seven other ways in which each can lie.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lungkit.backend import keras

import numpy as np

from lungkit import wording
from lungkit.data import dataset
from lungkit.errors import LungkitError
from lungkit.models import input_checks, lungs, weights_file
from lungkit.models.input_checks import ORIENTATIONS
from lungkit.training import finetune, lung_finder
from lungkit.training.evaluation import mean_with_interval

MOST_OF_A_SOURCE = 1500  # pictures: one large source would outweigh the others


def lying(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, side, side) in each of ORIENTATIONS: (8, n, side, side)."""
    return np.stack([
        np.rot90(pictures[..., ::-1] if mirrored else pictures, quarters, axes=(1, 2))
        for mirrored, quarters in ORIENTATIONS
    ])  # fmt: skip


def learn(kind: str, sources: Sequence[lung_finder.Masked], seed: int = 0) -> keras.Model:
    """lungs.with_orientation, its second output learned from the pictures of each source that are not held out."""
    network = lungs.trained(kind)
    features = lungs.orientation_features(network)
    random, rows = np.random.default_rng(seed), []
    for source in sources:
        some = random.permutation(np.flatnonzero(~source.held_out))[:MOST_OF_A_SOURCE]
        rows.append((source.pictures[some], source.patients[some]))
    pictures, patients = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    seen = np.stack([features.predict(turned[..., None], verbose=0) for turned in lying(pictures)], axis=1)
    held_out = np.isin(patients, random.permutation(np.unique(patients))[::5])
    answers = np.tile(np.arange(len(ORIENTATIONS)), (len(pictures), 1))
    parts = [(seen[of].reshape(-1, seen.shape[-1]), answers[of].ravel()) for of in (~held_out, held_out)]
    weights = [np.ones(len(labels)) for _, labels in parts]
    kernel, bias = finetune.linear_head(*parts[0], *parts[1], *weights)
    layer = keras.layers.Dense(len(ORIENTATIONS), activation="softmax", name="orientation")
    model = keras.Model(network.input, [network.output, layer(features.output)], name=network.name)
    layer.set_weights([kernel, bias])
    return model


def flagged(model: keras.Model, pictures: np.ndarray) -> np.ndarray:
    """Whether the clinic says of each picture (n, side, side) that it does not lie upright: bool (n,)."""
    said = (input_checks.seen_orientation(lies) for lies in model.predict(pictures[..., None], verbose=0)[1])
    return np.array([value > most for value, most, _ in said])


def _pictures(kind: str, source: str) -> lung_finder.Masked:
    """All of a data set; of one that holds frontal X-rays among other images, those with a mask of the lungs."""
    if kind == "X-ray":
        with suppress(LungkitError):
            return lung_finder.xrays(Path(source))
    return lung_finder.unmasked(dataset.load(source))


def command(kind: str, sources: Sequence[str], out: Path, elsewhere: Sequence[str]) -> list[str]:
    """Learn it, keep the layer's weights in `out`, and say how well it does; the arguments of `lungkit orientation`."""
    of_sources = {source: _pictures(kind, source) for source in (*sources, *elsewhere)}
    model = learn(kind, [of_sources[source] for source in sources])
    lines = []
    for source, given in of_sources.items():
        tested = given.held_out if source in sources else np.ones(len(given.patients), bool)
        said = [flagged(model, turned) for turned in lying(given.pictures[tested])]
        patients = given.patients[tested]
        shares = {
            "upright": said[0],
            "mirrored": said[ORIENTATIONS.index((True, 0))],
            "turned": np.mean([of for (_, quarters), of in zip(ORIENTATIONS, said, strict=True) if quarters], axis=0),
        }
        figures = "; ".join(
            f"{name} {wording.figure(*mean_with_interval(of, patients, share=True))}" for name, of in shares.items()
        )
        new = "of patients that it did not learn from" if source in sources else "of a source that it has not seen"
        lines.append(f"{Path(source).name}: flagged {figures} ({tested.sum():,} pictures {new})")
    layer = model.get_layer("orientation")
    return [*lines, f"{out}: SHA-256 {weights_file.write(layer, out)}"]
