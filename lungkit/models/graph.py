"""A version's exported graph on OpenVINO: what the clinic runs instead of Keras.

One input, preprocessed images float32 (N, height, width, 1), N free, and these outputs, float32:

    probabilities (N, classes)                 softmax of the logits over the version's temperature
    heat          (N, classes, height, width)  Grad-CAM of each class, its maximum 1, or all 0
    embedding     (N, channels)                the last feature maps' means

and of a graph that looks for lungs first:

    lungs         (N, h, w)                    the probability of lung
    orientation   (N, 8)                       that the image lies in each way of input_checks.ORIENTATIONS

It is computed in float32 on every processor. A graph in 8 bits (see lungkit.training.quantization) computes most of its
convolutions in integers, and the rest in float32. By default OpenVINO uses bfloat16 where the processor has it, and the
same image would get other probabilities on another machine.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# `import openvino` alone writes an identifier below the home folder and sends an event, unless its telemetry package
# cannot be imported; then it uses an empty stand-in. There is no setting for it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import numpy as np  # noqa: E402
import openvino  # noqa: E402

FILE = "graph.xml"  # its weights are in graph.bin
OUTPUTS = ("probabilities", "heat", "embedding")
OF_LUNGS = ("lungs", "orientation")  # which not every graph has
PRECISION = "f32"


def read(folder: Path) -> openvino.Model:
    """The graph in a version's folder, wholly in memory."""
    core = openvino.Core()
    # Weights that stay in the file would change with it, after their hashes were checked; cut short, they end the
    # whole process.
    core.set_property({"ENABLE_MMAP": "NO"})
    return core.read_model(folder / FILE)


def save(model: openvino.Model, folder: Path, half: bool = False) -> None:
    """Write graph.xml and graph.bin into `folder`. half: weights of float32 as float16, in half the space."""
    folder.mkdir(exist_ok=True)
    openvino.save_model(model, folder / FILE, compress_to_fp16=half)


# Two threads that give the runtime their first images at the same time can hang: with OpenVINO 2026.4, both stop while
# the input is copied, and one of them keeps Python's lock. One inference uses several processors anyway.
_alone = threading.Lock()


class Graph:
    """A graph, compiled for this processor.

    heat: False leaves the heat maps out, which for many small images are most of what is written to memory.
    logits: True gives them too, as they are before the softmax, divided by the temperature: "logits" (N, classes).
    many: for `stream`, on all processors; otherwise for one image at a time on 4 at most, since each clinician has a
        separate process.
    threads: how many processors it may use; default: as `many` says.
    """

    def __init__(self, folder: Path, heat: bool = True, many: bool = False, logits: bool = False, threads: int = 0):
        model = read(folder)
        if logits:
            softmax = model.output("probabilities").get_node().input_value(0).get_node()
            model.add_outputs(softmax.input_value(0)).pop().get_tensor().set_names({"logits"})
        self._outputs = [
            name
            for name in (*OUTPUTS, *OF_LUNGS, "logits")
            if any(name in output.names for output in model.outputs) and (heat or name != "heat")
        ]
        if not heat:
            wanted = [output for output in model.outputs if "heat" not in output.names]
            model = openvino.Model([output.node for output in wanted], model.get_parameters(), "without heat")
        processors = os.cpu_count() or 1
        self._compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": PRECISION,
                "PERFORMANCE_HINT": "THROUGHPUT" if many else "LATENCY",
                "INFERENCE_NUM_THREADS": threads or (processors if many else min(4, processors)),
                # Pinned, the threads of every process would take the same first processors, and leave the others idle.
                "ENABLE_CPU_PINNING": False,
            },
        )

    def __call__(self, tensors: np.ndarray) -> dict[str, np.ndarray]:
        """Every output for images float32 (N, height, width, 1). Any thread may call; one at a time computes."""
        with _alone:
            return self._named(self._compiled.create_infer_request().infer([tensors]))

    def stream(self, batches: Iterable[tuple[Any, np.ndarray]]) -> Iterator[tuple[Any, dict[str, np.ndarray], float]]:
        """Batches as they come, several at a time, in order: the key of each, its outputs, its milliseconds.

        The next batch is read while one is computed. An empty batch has no outputs.
        """
        idle = [
            self._compiled.create_infer_request()
            for _ in range(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        ]
        running: deque[tuple[Any, openvino.InferRequest | None]] = deque()

        def finished() -> tuple[Any, dict[str, np.ndarray], float]:
            key, request = running.popleft()
            if request is None:
                return key, {}, 0.0
            request.wait()
            idle.append(request)
            return key, self._named(request.results, copied=True), request.latency

        for key, tensors in batches:
            while not idle:
                yield finished()
            request = idle.pop() if len(tensors) else None
            if request is not None:
                request.start_async([tensors])
            running.append((key, request))
        while running:
            yield finished()

    def _named(self, answered: Any, copied: bool = False) -> dict[str, np.ndarray]:
        return {name: answered[name].copy() if copied else answered[name] for name in self._outputs}
