"""How much a clinic's own reviews help a model, which images to review first, and what is forgotten.

    nice python -m bench.learning --shared FOLDER [--work FOLDER]

Two pairs of an old and a new clinic: phantoms of a scanner before and after its protocol was changed, and MosMedData
(Moscow) with the SARS-CoV-2 CT-scan dataset (Sao Paulo). The model is a linear head on frozen features of
EfficientNet-Lite0, which has learned from photographs alone. Reviews are simulated: the reader gives the published
label. After each number of reviews the head is solved again on the old images and the reviewed ones, and the images are
ordered again by the new head. Every figure is of patients whom no head has seen, the same ones for all. Features and
answers are kept in --work: a second call continues there.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lungkit.backend import keras

import numpy as np
import pandas as pd
from PIL import Image as Picture
from scipy.special import softmax
from scipy.stats import rankdata

from lungkit.clinic.learning import measures, ordering
from lungkit.data import images, joined, preprocess, splits
from lungkit.data.phantom import scanners
from lungkit.data.phantom.patient import COVID, NORMAL, SyntheticPatient
from lungkit.data.relabel import Labels
from lungkit.models import backbones, input_checks
from lungkit.progress import bar
from lungkit.training import calibration, finetune, fit, input_statistics, retrain, reviewed

STEPS = (25, 50, 100, 200, 350, 500)
SHOWN = (50, 200, 500)
SEEDS = (1, 2, 3)
PATIENTS = 500  # of each phantom clinic, two slices each
UNSEEN = 0.35  # of the new clinic's patients, whom every head is measured on
OLD_UNSEEN = 0.3
SIDE = {"phantoms": 96, "Moscow, Sao Paulo": 224}
DRAWS = 1000


@dataclass(frozen=True)
class Clinics:
    """Both clinics' images as arrays of one length. unseen: of the patients whom every head is measured on."""

    features: np.ndarray  # (n, f): the embedding
    numbers: np.ndarray  # (n, 9): what the clinic's monitor looks at
    labels: np.ndarray
    patients: np.ndarray  # whose images are drawn together
    new: np.ndarray  # bool: of the new clinic
    unseen: np.ndarray  # bool


# --- images and features


def phantoms(work: Path, shared: Path) -> tuple[list[Path], pd.DataFrame]:
    """Patients of scanner A, and others after its protocol was changed; every second one is sick."""
    folder, rows = work / "phantoms", []
    folder.mkdir(exist_ok=True)
    for number in bar(range(2 * PATIENTS), label="drawing", unit="patient"):
        new, sick = number >= PATIENTS, number % 2 == 1
        scanner, who = (scanners.CHANGED if new else scanners.A), f"P{number:04d}"
        patient = SyntheticPatient(who, COVID if sick else NORMAL, 7, SIDE["phantoms"])
        for index, drawn in enumerate(scanners.pictures(patient, {"one": scanner}, 2, number)):
            Picture.fromarray(drawn["one"]).save(folder / f"{who}-{index}.png")
            rows.append({"file": f"{who}-{index}.png", "patient_id": who, "group": who, "new": new, "sick": sick})
    return [folder / row["file"] for row in rows], pd.DataFrame(rows)


def hospitals(work: Path, shared: Path) -> tuple[list[Path], pd.DataFrame]:
    """CT-0 against CT-2 to CT-4 of Moscow; COVID-19 against the rest of Sao Paulo. CT-1 is left out, as in ct-covid."""
    given = [shared / "mosmed_ct", shared / "sarscov2_ct"]
    meaning = Labels(
        classes={"NonCOVID": ("CT-0", "Not COVID-19", "Healthy"), "COVID": ("CT-2", "CT-3", "CT-4", "COVID-19")},
        omitted=("CT-1",),
    )
    rows = joined.read(given, meaning, ("severity",)).rows
    files = [shared / file for file in rows["file"]]
    cases = pd.read_csv(given[1] / "labels.csv", dtype=str).set_index("file")["case_id"]
    new = rows["set"] == "sarscov2_ct"
    case = rows["file"].str.removeprefix("sarscov2_ct/").map(cases)
    # Patients were not published: parts are dealt out by blocks of five rebuilt cases, intervals drawn by case.
    rows = rows.assign(new=new, group=rows["patient_id"], patient_id=case.where(new, rows["patient_id"]))
    return files, rows.assign(sick=rows["label"] == "COVID")


def clinics(name: str, make: Callable, work: Path, shared: Path) -> Clinics:
    """The images with their features, which are kept."""
    kept = work / f"{name.split(',')[0].lower()}.npz"
    if not kept.is_file():
        files, rows = make(work, shared)
        spec = preprocess.Preprocessing(size=(SIDE[name],) * 2, mean=0.45, std=0.3)
        tensors = preprocess.read_batch(files, spec, label=name)
        network = backbones.build("efficientnet_lite0", tensors.shape[1:], 2, preprocessing=spec, until="stage4")
        embed = keras.Model(network.input, network.get_layer("embedding").output)
        numbers = [measures.describe(one.pixels, one.units) for one in map(images.read, bar(files, label="numbers"))]
        np.savez(
            kept, features=embed.predict(tensors, batch_size=32, verbose=0), numbers=np.stack(numbers),
            labels=rows["sick"].to_numpy(int), patients=rows["patient_id"].to_numpy(str),
            new=rows["new"].to_numpy(bool), unseen=_unseen(rows),
        )  # fmt: skip
    with np.load(kept) as arrays:
        return Clinics(**arrays)


def _unseen(rows: pd.DataFrame) -> np.ndarray:
    """Whether each row is of a group that is measured on: in each clinic and class, a share of them by chance."""
    unseen = set()
    for (new, _), of in rows.groupby(["new", "sick"]):
        groups = sorted(of["group"].unique(), key=lambda name: splits.chance(name, 7))
        unseen.update(groups[: round((UNSEEN if new else OLD_UNSEEN) * len(groups))])
    return rows["group"].isin(unseen).to_numpy()


# --- one clinic's course


@dataclass(frozen=True)
class Head:
    """A linear head with its temperature."""

    kernel: np.ndarray
    bias: np.ndarray
    temperature: float

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(n, 2), for features (n, f)."""
        return softmax((features @ self.kernel + self.bias) / self.temperature, axis=1)


def solved(of: Clinics, train: np.ndarray, validation: np.ndarray, counts: np.ndarray) -> Head:
    """The head that these rows give; counts: for how many images each of `train` counts."""
    weights = fit.image_weights(of.labels[train], 2, None, counts)
    kernel, bias = finetune.linear_head(
        of.features[train], of.labels[train], of.features[validation], of.labels[validation], weights,
        np.ones(len(validation)),
    )  # fmt: skip
    raw = of.features[validation] @ kernel + bias
    return Head(kernel, bias, calibration.temperature(of.labels[validation], raw) or 1.0)


def old_rows(of: Clinics, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The old clinic's images for training and for validation; a tenth of its patients is left out, by the seed."""
    rows = np.flatnonzero(~of.new & ~of.unseen)
    place = {p: i for i, p in enumerate(sorted(set(of.patients[rows]), key=lambda p: splits.chance(p, seed)))}
    turn = np.array([place[p] for p in of.patients[rows]]) % 10
    return rows[turn > 2], rows[(turn == 1) | (turn == 2)]


def learned(of: Clinics, seed: int, chosen: np.ndarray, way: str = "rule") -> Head:
    """The head after the images `chosen` were reviewed; every sixth patient of them is for validation."""
    train, validation = old_rows(of, seed)
    patients = sorted(set(of.patients[chosen]), key=lambda p: splits.chance(p, 7))
    apart = set(patients[2 :: reviewed.VALIDATION])
    is_apart = np.isin(of.patients[chosen], sorted(apart))
    new, held = chosen[~is_apart], chosen[is_apart]
    if way == "new alone":
        return solved(of, new, held, np.ones(len(new)))
    count = {"rule": retrain.count(len(train), len(new)), "one each": 1.0, "alike": len(train) / max(1, len(new))}[way]
    both = np.concatenate([train, new])
    return solved(of, both, np.concatenate([validation, held]), np.r_[np.ones(len(train)), np.full(len(new), count)])


Order = Callable[[Clinics, Head, np.ndarray, np.ndarray, int, int], np.ndarray]


def _reasons(of: Clinics, head: Head, pool: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Entropy, and the distance from the training images as the clinic's input check measures it."""
    train, _ = old_rows(of, seed)
    known = input_statistics.reference(input_checks.embedding_features(of.features[train]), of.labels[train], 1e-3)
    distance = known.distance(input_checks.embedding_features(of.features[pool]))
    return ordering.entropy(head.probabilities(of.features[pool])), distance


def _random(of: Clinics, head: Head, pool: np.ndarray, done: np.ndarray, most: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, len(done))).permutation(len(pool))[:most]


def _unsure(of: Clinics, head: Head, pool: np.ndarray, done: np.ndarray, most: int, seed: int) -> np.ndarray:
    return np.argsort(-ordering.entropy(head.probabilities(of.features[pool])), kind="stable")[:most]


def _product(of: Clinics, head: Head, pool: np.ndarray, done: np.ndarray, most: int, seed: int) -> np.ndarray:
    unsure, unlike = _reasons(of, head, pool, seed)
    return ordering.spread(unsure * unlike, of.numbers[pool], of.numbers[done], most)


def _spread(of: Clinics, head: Head, pool: np.ndarray, done: np.ndarray, most: int, seed: int) -> np.ndarray:
    weights = ordering.weights(*_reasons(of, head, pool, seed))
    return ordering.spread(weights, of.features[pool], of.features[done], most)


def _spread_numbers(of: Clinics, head: Head, pool: np.ndarray, done: np.ndarray, most: int, seed: int) -> np.ndarray:
    """As `lungkit learn next` does it."""
    weights = ordering.weights(*_reasons(of, head, pool, seed))
    return ordering.spread(weights, of.numbers[pool], of.numbers[done], most)


def _k_centre(of: Clinics, head: Head, pool: np.ndarray, done: np.ndarray, most: int, seed: int) -> np.ndarray:
    return ordering.spread(np.ones(len(pool)), of.features[pool], of.features[done], most)


def _badge(of: Clinics, head: Head, pool: np.ndarray, done: np.ndarray, most: int, seed: int) -> np.ndarray:
    """BADGE: k-means++ on the gradients of the head; of two classes, (1 - p of the likelier) times the features."""
    unsure = 1 - head.probabilities(of.features[pool]).max(axis=1, keepdims=True)
    gradients, random = unsure * of.features[pool], np.random.default_rng((seed, len(done)))
    chosen = [int(np.linalg.norm(gradients, axis=1).argmax())]
    nearest = ((gradients - gradients[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(most, len(pool)):
        left = np.where(np.isin(np.arange(len(pool)), chosen), 0, nearest + 1e-12)
        chosen.append(int(random.choice(len(pool), p=left / left.sum())))
        nearest = np.minimum(nearest, ((gradients - gradients[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)


ORDERS: dict[str, Order] = {
    "random": _random,
    "unsure first": _unsure,
    "far from each other (k-centre)": _k_centre,
    "BADGE": _badge,
    "unsure x unlike x spread, nine numbers": _product,
    "(unsure + unlike) x spread, embedding": _spread,
    "(unsure + unlike) x spread, nine numbers": _spread_numbers,
}
WAYS = ("one each", "rule", "alike", "new alone")


def course(of: Clinics, order: Order, seed: int) -> Iterator[tuple[int, np.ndarray, Head]]:
    """After each of STEPS: the number of reviews, the images reviewed, and the head that they give."""
    done = np.empty(0, int)
    head = learned(of, seed, done)
    yield 0, done, head
    everything = np.flatnonzero(of.new & ~of.unseen)
    for step in STEPS:
        pool = np.setdiff1d(everything, done)
        done = np.concatenate([done, pool[order(of, head, pool, done, step - len(done), seed)]])
        head = learned(of, seed, done)
        yield len(done), done, head


# --- answers, kept, and what they say


def answers(name: str, of: Clinics, work: Path) -> dict[str, dict[int, np.ndarray]]:
    """By order or way: after each number of reviews, the probability of disease of all unseen images, (seeds, n)."""
    rows, kept = np.flatnonzero(of.unseen), work / f"{name.split(',')[0].lower()}-answers"
    kept.mkdir(exist_ok=True)
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    for seed in bar(SEEDS, label=name, unit="seed"):
        for called, order in ORDERS.items():
            file = kept / f"{called.replace(' ', '-')}-{seed}.npz"
            if not file.is_file():
                scores = {str(n): head.probabilities(of.features[rows])[:, 1] for n, _, head in course(of, order, seed)}
                np.savez(file, **scores)
            _add(found, called, file)
        file = kept / f"ways-{seed}.npz"
        if not file.is_file():
            taken = {n: done for n, done, _ in course(of, _random, seed) if n in SHOWN or n == max(STEPS)}
            np.savez(file, **{
                f"{way}/{n}": learned(of, seed, done, way).probabilities(of.features[rows])[:, 1]
                for way in WAYS for n, done in taken.items()
            })  # fmt: skip
        with np.load(file) as arrays:
            for key in arrays:
                way, n = key.split("/")
                found.setdefault(f"way: {way}", {}).setdefault(int(n), []).append(arrays[key])
    return {called: {n: np.stack(of) for n, of in by.items()} for called, by in found.items()}


def _add(found: dict[str, dict[int, list[np.ndarray]]], called: str, file: Path) -> None:
    with np.load(file) as arrays:
        for n in arrays:
            found.setdefault(called, {}).setdefault(int(n), []).append(arrays[n])


class Measure:
    """Mean AUC over seeds on the unseen patients of one clinic, with bootstrap draws that are the same for all."""

    def __init__(self, of: Clinics, new: bool):
        rows = np.flatnonzero(of.unseen)
        self.rows = np.flatnonzero(of.new[rows] == new)
        self.sick = of.labels[rows][self.rows] == 1
        names, patient = np.unique(of.patients[rows][self.rows], return_inverse=True)
        drawn = np.random.default_rng(7).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
        self.weights, self.patients = drawn[:, patient].astype(float), len(names)

    def auc(self, scores: np.ndarray) -> np.ndarray:
        """(1 + DRAWS,): of all patients and of each draw, the mean over seeds of scores (seeds, n)."""
        return np.mean([self._one(of[self.rows]) for of in scores], axis=0)

    def _one(self, scores: np.ndarray) -> np.ndarray:
        """AUC with weights: of each pair of a sick and another, whether the sick has the higher score."""
        weights = np.vstack([np.ones(len(scores)), self.weights])
        place = rankdata(scores, method="dense") - 1
        size = int(place.max()) + 1
        sick, well = (
            np.stack([np.bincount(place, row * of, size) for row in weights]) for of in (self.sick, ~self.sick)
        )
        below = np.cumsum(well, axis=1) - well / 2
        return (sick * below).sum(axis=1) / (sick.sum(axis=1) * well.sum(axis=1))


def told(values: np.ndarray, signed: bool = False) -> str:
    """A figure with its interval."""
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    sign = "+" if signed else ""
    return f"{values[0]:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})".replace("-", "−")


def table(columns: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [columns, ["---"] + ["--:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(name: str, of: Clinics, found: dict[str, dict[int, np.ndarray]]) -> str:
    """What the answers say of one pair of clinics."""
    new, old = Measure(of, True), Measure(of, False)
    last = max(found["random"])
    shown = [n if n in found["random"] else last for n in SHOWN]
    before = found["random"][0]
    pool = int((of.new & ~of.unseen).sum())
    heads = [f"{n} reviews" for n in shown]
    gained = [
        [called, *(told(new.auc(found[called][n])) for n in shown),
         *(told(new.auc(found[called][n]) - new.auc(found["random"][n]), True) if called != "random" else ""
           for n in shown[:2]), _labels_needed(new, found, called, last)]
        for called in ORDERS
    ]  # fmt: skip
    ways = [
        [way, *(told(new.auc(found[f"way: {way}"][n])) for n in (shown[0], last)),
         *(told(old.auc(found[f"way: {way}"][n]) - old.auc(before), True) for n in (shown[0], last))]
        for way in WAYS
    ]  # fmt: skip
    counts = f"{len(new.rows)} images of {new.patients} unseen patients, {pool} images to review"
    return "\n".join([
        f"### {name}\n",
        f"New clinic: {counts}. Before any review its AUC is {told(new.auc(before))}; the old clinic's is "
        f"{told(old.auc(before))} on {len(old.rows)} images of {old.patients} unseen patients.\n",
        table(["order", *heads, *(f"less random, {n}" for n in shown[:2]), "labels for random's AUC at 200"], gained),
        "",
        table(["a reviewed image counts", *(f"new clinic, {n}" for n in (shown[0], last)),
               *(f"old clinic, change after {n}" for n in (shown[0], last))], ways),
        "",
    ])  # fmt: skip


def _labels_needed(new: Measure, found: dict[str, dict[int, np.ndarray]], called: str, last: int) -> str:
    """The first of the measured numbers of reviews after which an order reaches what random has after 200."""
    aim = new.auc(found["random"][200])[0]
    enough = [n for n in sorted(found[called]) if new.auc(found[called][n])[0] >= aim]
    return f"{enough[0]}" if enough else f"over {last}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the folder with mosmed_ct and sarscov2_ct")
    parser.add_argument("--work", type=Path, default=Path("reports/bench-learning"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    for name, make in (("phantoms", phantoms), ("Moscow, Sao Paulo", hospitals)):
        of = clinics(name, make, given.work, given.shared.resolve())
        print(tables(name, of, answers(name, of, given.work)), flush=True)
    print(json.dumps({"seconds": round(time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
