"""How should a CT series be read from its slices, and how well is the extent in its lungs measured? On phantoms.

python -m bench.series [--studies N] [--training N] [--keep FOLDER] reads phantom studies of 24 slices with the shipped
ct-infection. In sick ones, 8 to 50 % of the length has lesions. The way of pooling is chosen on the first half of the
studies, and so is the epoch at which the attention stops learning; the second half is the test. The attention learns
from other studies. A folder to keep studies in saves minutes when the command is given again.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lungkit.backend import keras

import numpy as np
from scipy.stats import rankdata

from lungkit import progress, wording
from lungkit.clinic import series_reading
from lungkit.clinic.predictor import Predictor
from lungkit.data import lungs3d, phantom, preprocess
from lungkit.data.image import Image
from lungkit.data.phantom.anatomy import LENGTH_MM
from lungkit.models import input_checks, pooling, registry
from lungkit.training.evaluation import mean_with_interval

SLICES, SEED = 24, 4242
FIRST_TRAINING = 1000  # number of a study
SHIPPED, ATTENTION = "… 25 %", "gated attention"
Way = Callable[[np.ndarray], np.ndarray]  # (slices, classes) to (classes,)


@dataclass(frozen=True, eq=False)
class Measured:
    """How a study's lungs and the extent in them were measured, and what is true. Shares are of the lungs, 0..1."""

    extent: series_reading.Extent
    overlap: float  # Dice of the lungs
    volume: float  # of the lungs, over the true one
    lesion: float  # true share that is lesion
    in_sick_slices: float  # true share in slices that have a lesion
    lesion_found: float  # share of the lesions that the lungs include; NaN without lesions


@dataclass(frozen=True, eq=False)
class Study:
    """A phantom study as the model sees it."""

    label: int
    probabilities: np.ndarray  # float64 (slices, classes)
    embeddings: np.ndarray  # (slices, channels)
    measured: Measured | None


def study(number: int, predictor: Predictor, keep: Path | None, lungs: bool) -> Study:
    """A study; its class is `number` modulo 3. lungs: whether they are measured."""
    file = keep / f"st{number}.npz" if keep else None
    if file and file.is_file():
        with np.load(file) as kept:
            parts = {name: kept[name] for name in kept}
    else:
        parts = drawn(number, predictor)
        if file:
            np.savez(file, **parts)
    probabilities = parts["p"] / parts["p"].sum(axis=1, keepdims=True, dtype=np.float64)
    sick = predictor.rule.decide(probabilities) != 0
    return Study(number % 3, probabilities, parts["e"], measured(parts, sick) if lungs else None)


def measured(parts: dict[str, np.ndarray], sick: np.ndarray) -> Measured:
    """The lungs of a study, as `drawn` gives it. sick: which slices are not called Normal."""
    found, true, lesion = lungs3d.find(parts["hu"], tuple(parts["sp"])), parts["lungs"], parts["lesion"]
    mask, with_lesion = found.voxels(), parts["lesion"].any(axis=(1, 2))
    return Measured(
        extent=series_reading.extent(found, range(SLICES), sick),
        overlap=2 * (mask & true).sum() / (mask.sum() + true.sum()),
        volume=mask.sum() / true.sum(),
        lesion=lesion.sum() / true.sum(),
        in_sick_slices=true[with_lesion].sum() / true.sum(),
        lesion_found=float(mask[lesion].mean()) if lesion.any() else np.nan,
    )


def drawn(number: int, predictor: Predictor) -> dict[str, np.ndarray]:
    """A study's slices in HU, lungs, lesions, spacing, probabilities and embeddings."""
    rng = np.random.default_rng(number)
    share = rng.uniform(0.08, 0.5)
    start = rng.uniform(0, 1 - share)
    affected = start * LENGTH_MM, (start + share) * LENGTH_MM
    cuts = phantom.make_patient(f"S{number:04}", phantom.CLASSES[number % 3], SEED, SLICES, 224, affected)
    images = [Image(cut.hu.astype(np.float32), "HU", "CT", cut.patient_id, {}) for cut in cuts]
    tensors = np.stack([preprocess.prepare(image, predictor.spec).tensor for image in images])
    said = [predictor.graph(tensors[at : at + 8]) for at in range(0, SLICES, 8)]
    stacked = {name: np.stack([getattr(cut, name) for cut in cuts]) for name in ("hu", "lungs", "lesion")}
    return stacked | {
        "sp": np.array([LENGTH_MM / SLICES, cuts[0].pixel_spacing_mm, cuts[0].pixel_spacing_mm]),
        "p": np.concatenate([one["probabilities"] for one in said]).astype(np.float64),
        "e": np.concatenate([one["embedding"] for one in said]),
    }


# --- pooling -----------------------------------------------------------------------------------------------------


def least_normal(share: float) -> Way:
    """The mean over this share of the slices, as lungkit does it."""
    return lambda rows: rows[pooling.carrying(rows, 0, share)].mean(0)


def noisy_or(rows: np.ndarray) -> np.ndarray:
    """As if each slice were its own, independent witness of a disease."""
    none = np.prod(np.clip(rows[:, 0].astype(np.float64), 1e-6, 1))
    share = rows[:, 1:].sum(0) / rows[:, 1:].sum()
    return np.concatenate([[none], (1 - none) * share])


WAYS: dict[str, Way] = {
    "mean of all slices": lambda rows: rows.mean(0),
    "the least normal slice (maximum)": least_normal(1 / SLICES),
    "mean of the least normal 12 % (top 3)": least_normal(0.12),
    "… 17 %": least_normal(0.16),
    SHIPPED: least_normal(0.25),
    "… 33 %": least_normal(0.33),
    "… 50 %": least_normal(0.5),
    "noisy-or": noisy_or,
}


def attention(channels: int, seed: int) -> keras.Model:
    """Gated attention over slices (Ilse, Tomczak and Welling, ICML 2018): (N, slices, channels) to (N, classes).

    The weight of a slice is the softmax over the slices of w·(tanh(Vh) * sigmoid(Uh)); the study is the weighted mean.
    """
    keras.utils.set_random_seed(seed)
    slices = keras.Input((None, channels))
    h = keras.layers.Dropout(0.3)(keras.layers.Dense(32, activation="relu")(slices))
    gate = keras.layers.Dense(16, activation="tanh")(h) * keras.layers.Dense(16, activation="sigmoid")(h)
    weights = keras.layers.Softmax(axis=1)(keras.layers.Dense(1, use_bias=False)(gate))
    pooled = keras.ops.sum(weights * h, axis=1)
    return keras.Model(slices, keras.layers.Dense(3, activation="softmax")(pooled))


def attended(training: list[Study], validation: list[Study], studies: list[Study]) -> np.ndarray:
    """Probabilities (studies, classes): the mean of three attentions that differ in their seeds."""

    def features(some: list[Study]) -> np.ndarray:
        return np.stack([input_checks.embedding_features(one.embeddings) for one in some])

    def labels(some: list[Study]) -> np.ndarray:
        return np.array([one.label for one in some])

    learned_from = features(training)
    mean, deviation = learned_from.mean(axis=(0, 1)), learned_from.std(axis=(0, 1)) + 1e-6
    told = []
    for seed in progress.bar(range(3), label="attention", unit="network"):
        model = attention(learned_from.shape[-1], seed)
        model.compile(keras.optimizers.AdamW(1e-3, weight_decay=1e-2), "sparse_categorical_crossentropy")
        model.fit(
            (learned_from - mean) / deviation,
            labels(training),
            validation_data=((features(validation) - mean) / deviation, labels(validation)),
            epochs=150,
            batch_size=32,
            verbose=0,
            callbacks=[keras.callbacks.EarlyStopping(patience=20, restore_best_weights=True)],
        )
        told.append(model.predict((features(studies) - mean) / deviation, verbose=0))
    mixed = np.mean(told, axis=0, dtype=np.float64)
    return np.asarray(mixed / mixed.sum(axis=1, keepdims=True))


def auc(pooled: np.ndarray, labels: np.ndarray) -> str:
    """Macro AUC, each class against the others, with its 95 % interval by studies."""
    rng, every = np.random.default_rng(SEED), []
    while len(every) < 1000:
        of = rng.integers(len(labels), size=len(labels))
        if len(np.unique(labels[of])) == 3:
            every.append(macro_auc(pooled[of], labels[of]))
    return wording.figure(macro_auc(pooled, labels), *np.quantile(every, (0.025, 0.975)))


def macro_auc(pooled: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the AUC by ranks (Mann and Whitney)."""
    of_class, ranks = labels[:, np.newaxis] == np.arange(pooled.shape[1]), rankdata(pooled, axis=0)
    inside = of_class.sum(0)
    above = (ranks * of_class).sum(0) - inside * (inside + 1) / 2
    return float((above / (inside * (len(labels) - inside))).mean())


def row(name: str, pooled: np.ndarray, labels: np.ndarray) -> str:
    """A row of the table: macro AUC and accuracy with their intervals, specificity and sensitivity."""
    said = pooled.argmax(1)
    right = wording.figure(*mean_with_interval(said == labels, np.arange(len(labels)), share=True))
    normal, sick = (said == 0)[labels == 0].mean(), (said != 0)[labels != 0].mean()
    return f"| {name} | {auc(pooled, labels)} | {right} | {normal:.2f} | {sick:.2f} |"


def compare(studies: list[Study], training: list[Study]) -> None:
    """Print the tables of pooling, and whether attention is better than what is shipped."""
    half, labels = len(studies) // 2, np.array([one.label for one in studies])
    pooled = {name: np.stack([way(one.probabilities) for one in studies]) for name, way in WAYS.items()}
    pooled[ATTENTION] = attended(training, studies[:half], studies)
    for part, name in ((slice(None, half), "validation"), (slice(half, None), "test")):
        print(f"\n{name}, {len(labels[part])} studies; the attention learned from {len(training)} others\n")
        print("| a series is | macro AUC | accuracy | specificity | sensitivity |\n|---|---|---|--:|--:|")
        for way, values in pooled.items():
            print(row(way, values[part], labels[part]))
        right = {way: (values[part].argmax(1) == labels[part]).astype(float) for way, values in pooled.items()}
        apart = mean_with_interval(right[ATTENTION] - right[SHIPPED], np.arange(len(labels[part])), bounds=(-1, 1))
        print(f"\naccuracy of {ATTENTION} less that of {SHIPPED}: {wording.figure(*apart, signed=True)}")


# --- extent ------------------------------------------------------------------------------------------------------


def errors(name: str, measured: Iterable[float], true: Iterable[float]) -> str:
    """A row of the table: the mean error and the mean absolute error in per cent of the lungs, with intervals."""
    apart = 100 * (np.array([*measured]) - np.array([*true]))
    every = np.arange(len(apart))
    figures = [mean_with_interval(values, every, bounds=(-100, 100)) for values in (apart, np.abs(apart))]
    bias, size = (" ".join((f"{one[0]:.1f}", f"({one[1]:.1f} to {one[2]:.1f})")).replace("-", "−") for one in figures)
    return f"| {name} | {len(apart)} | {100 * np.mean([*true]):.1f} | {bias} | {size} |"


def measure(studies: list[Study]) -> None:
    """Print how well lungs are found, and the errors of the extent."""
    known = [(one.label, one.measured) for one in studies if one.measured]
    for name, values in (
        ("Dice", [one.overlap for _, one in known]),
        ("volume / true", [one.volume for _, one in known]),
    ):
        figure = wording.figure(*mean_with_interval(values, np.arange(len(known)), bounds=(0, 2)))
        print(f"lungs, {name}: {figure}, from {min(values):.3f} to {max(values):.3f}")
    for label, kind in enumerate(phantom.CLASSES):
        kept = np.array([one.lesion_found for of, one in known if of == label])
        if np.isfinite(kept).any():
            figure = wording.figure(*mean_with_interval(kept, np.arange(len(kept)), bounds=(0, 1)))
            print(f"share of the lesions that is within the lungs, {kind}: {figure}; median {np.nanmedian(kept):.2f}")
    print("\n| in % of the lungs | studies | true mean | error | absolute error |\n|---|--:|--:|---|---|")
    for label, kind in enumerate(phantom.CLASSES):
        some = [one for of, one in known if of == label]
        lesion, high = [one.lesion for one in some], [one.extent.high_attenuation for one in some]
        both = [one.extent.high_attenuation + one.extent.dense for one in some]
        print(errors(f"{kind}: high attenuation, for lesions", high, lesion))
        print(errors(f"{kind}: high attenuation and dense, for lesions", both, lesion))
        called, true = [one.extent.not_absent for one in some], [one.in_sick_slices for one in some]
        print(errors(f"{kind}: in slices not Normal, for in slices with lesions", called, true))


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--studies", type=int, default=120, help="for validation and test")
    given.add_argument("--training", type=int, default=120, help="that the attention learns from")
    given.add_argument("--keep", type=Path, help="a folder; a study takes 6 MB")
    options = given.parse_args()
    predictor = Predictor(registry.find("ct-infection"), heat=False)
    numbers = [*range(options.studies), *range(FIRST_TRAINING, FIRST_TRAINING + options.training)]
    half = options.studies // 2
    every = [
        study(one, predictor, options.keep, half <= one < options.studies)
        for one in progress.bar(numbers, label="studies", unit="study")
    ]
    compare(every[: options.studies], every[options.studies :])
    print(f"\nextent in {options.studies - half} studies of the test\n")
    measure(every[half : options.studies])


if __name__ == "__main__":
    main()
