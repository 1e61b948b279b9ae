"""The exported graph with integers of 8 bits in place of float32, kept only if it separates the classes as well.

Weights and feature maps are rounded to 256 levels after the training (NNCF; Jacob et al., "Quantization and training of
neural networks for efficient integer-arithmetic-only inference", CVPR 2018). The range of each feature map comes from
training images. The head stays in float32: its weights can be so large that rounding its input decides the answer.
"""

import logging
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lungkit.models import graph
from lungkit.models.card import GraphFigures, Interval, Quantization

IMAGES = 128  # training images that the ranges come from
MOST = 0.002  # what the AUC and both ends of its interval may move
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_BATCH, _ROUNDS = 8, 3  # of the timing

Auc = tuple[float, float, float]  # value, low, high


def required() -> Any:
    """NNCF, without its log but with its progress bars. ModuleNotFoundError if it is not installed."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def attempt(
    folder: Path, calibration: np.ndarray, auc: Callable[[graph.Graph], Auc], half: bool = False
) -> Quantization:
    """Replace the graph in `folder` by one of 8 bits if the AUC's interval moves by at most MOST; say what came out.

    If it moves further, the first and the last convolutions are left in float32 as well. If it still does, the graph
    stays as it is.
    calibration: preprocessed training images (n, height, width, 1). auc: a graph's AUC on the validation images with
    its interval. half: save what stays in float32 as float16.
    """
    nncf, before = required(), auc(graph.Graph(folder, heat=False))
    made = folder / "int8"
    for in_float32 in _LEFT:
        model = graph.read(folder)
        graph.save(_quantized(nncf, model, calibration, _LEFT[in_float32](model)), made, half)
        after = auc(graph.Graph(made, heat=False))
        moved = max(abs(new - old) for new, old in zip(after, before, strict=True))
        if moved <= MOST:
            break
    times = _milliseconds([folder, made], calibration)
    kept = moved <= MOST  # not if there is no AUC: NaN
    if kept:
        for file in made.iterdir():
            file.replace(folder / file.name)
    shutil.rmtree(made)
    return Quantization(
        kept=kept,
        reason=_reason(moved),
        float32=_figures(before, times[0]),
        int8=_figures(after, times[1]),
        images=len(calibration),
        in_float32=in_float32,
        tool=f"NNCF {nncf.__version__}",
    )


def _quantized(nncf: Any, model: Any, calibration: np.ndarray, left: list[str]) -> Any:
    """The model in 8 bits, except its head and the nodes of these names."""
    # One half of the weights' range: without it, processors that lack VNNI instructions overflow, and answer otherwise.
    portable = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    return nncf.quantize(
        model,
        nncf.Dataset([tensor[np.newaxis] for tensor in calibration]),
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=left, types=["MatMul"]),
        advanced_parameters=portable,
    )


def _ends(model: Any) -> list[str]:
    """Names of the convolutions that no other one precedes, or that no other one follows."""
    nearest: dict[str, set[str]] = {}  # of each node, the convolutions whose outputs reach it first
    first, followed, convolutions = set(), set(), set()
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        before = set().union(*(nearest[source.get_node().get_friendly_name()] for source in node.input_values()))
        nearest[name] = before
        if node.get_type_name() in _CONVOLUTIONS:
            convolutions.add(name)
            followed |= before
            first |= set() if before else {name}
            nearest[name] = {name}
    return sorted(first | (convolutions - followed))


# What is left in float32, in words, and the names of these nodes besides the head; tried in this order.
_LEFT: dict[str, Callable[[Any], list[str]]] = {
    "the head": lambda model: [],
    "the head, the first and the last convolutions": _ends,
}


def _milliseconds(folders: list[Path], tensors: np.ndarray) -> list[float]:
    """Processor time of an image in each graph, without heat maps: medians of rounds in which they take turns."""
    runtimes = [graph.Graph(folder, heat=False, many=True) for folder in folders]
    times: list[list[float]] = [[] for _ in runtimes]
    for number in range(_ROUNDS + 1):  # the first warms up
        for runtime, of_graph in zip(runtimes, times, strict=True):
            started = time.process_time()
            for start in range(0, len(tensors), _BATCH):
                runtime(tensors[start : start + _BATCH])
            if number:
                of_graph.append(1000 * (time.process_time() - started) / len(tensors))
    return [statistics.median(of_graph) for of_graph in times]


def _figures(auc: Auc, milliseconds: float) -> GraphFigures:
    value, *ends = (None if np.isnan(figure) else float(figure) for figure in auc)
    interval: Interval = (ends[0], ends[1])
    return GraphFigures(auc=value, interval=interval, milliseconds=round(milliseconds, 2))


def _reason(moved: float) -> str:
    if np.isnan(moved):
        return "the validation images have no AUC with an interval"
    return f"on validation, the AUC or an end of its interval moves by {moved:.4f}; at most {MOST} is accepted"
