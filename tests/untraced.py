"""Coverage pauses where only other packages run.

On Python 3.11 a tracer slows every line of its thread, whoever wrote it. Keras and TensorFlow run tens of millions of
lines to load, to build a network or to trace a graph, and none of them is lungkit's: no tracer has to look at them.
"""

import functools
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from _pytest.assertion import rewrite

_INSTALLED = Path(sysconfig.get_path("purelib"))

# Installed packages are loaded without the tracer, and these functions and methods of theirs run without it: module ->
# names. `Model.fit` is not one of them: it calls lungkit's callbacks. Of lungkit's code, the others call back a few
# lines: the settings of its layers, the step of its optimizer.
FUNCTIONS = {
    "PIL.Image": ("Image.convert", "Image.resize", "Image.save", "Image.tobytes", "fromarray", "open"),
    "PIL.ImageFile": ("ImageFile.load",),
    "fontTools.subset": ("Subsetter.populate", "Subsetter.subset"),
    "fontTools.ttLib.ttFont": ("TTFont.__init__", "TTFont.save"),
    "fpdf.bidi": ("BidiParagraph.__init__", "BidiParagraph.get_bidi_fragments", "BidiParagraph.get_reordered_string"),
    "fpdf.fonts": ("TTFFont.__init__", "TTFFont.get_text_width", "TTFFont.shape_text"),
    "fpdf.line_break": ("MultiLineBreak.get_line",),
    "fpdf.output": ("OutputProducer.bufferize",),
    "imagehash": ("phash",),
    "keras": (
        "Layer.__call__",
        "Layer.set_weights",
        "Model.evaluate",
        "Model.load_weights",
        "Model.predict",
        "Model.save",
        "Model.save_weights",
        "Model.train_on_batch",
        "applications.DenseNet121",
        "applications.EfficientNetB0",
        "applications.MobileNetV2",
        "applications.ResNet50",
        "applications.VGG16",
        "models.clone_model",
        "optimizers.Optimizer.apply",
        "optimizers.Optimizer.build",
        "saving.load_model",
    ),
    "keras_tuner.tuners.bayesian": ("BayesianOptimizationOracle.populate_space",),
    "matplotlib.backends.backend_agg": ("FigureCanvasAgg.draw",),
    "matplotlib.pyplot": ("subplots",),
    "openvino": ("Core.compile_model", "Core.read_model", "convert_model"),
    "pandas": (
        "DataFrame.__getitem__",
        "DataFrame.__init__",
        "DataFrame.drop",
        "DataFrame.merge",
        "DataFrame.reindex",
        "DataFrame.sort_values",
        "DataFrame.to_csv",
        "Series.isin",
        "Series.value_counts",
        "concat",
        "crosstab",
    ),
    "pandas.core.groupby.groupby": ("GroupBy.max", "GroupBy.mean", "GroupBy.min", "GroupBy.size", "GroupBy.sum"),
    "pydicom.filereader": ("dcmread", "read_dataset"),
    "pydicom.filewriter": ("dcmwrite",),
    "sklearn.metrics": ("accuracy_score", "average_precision_score", "roc_auc_score"),
    "tensorflow.python.data.ops.dataset_ops": ("DatasetV2.map",),
    "tensorflow.python.eager.backprop": ("GradientTape.gradient",),
    "tensorflow.python.eager.polymorphic_function.polymorphic_function": (
        "Function.__call__",
        "Function.get_concrete_function",
    ),
}


def untraced(function: Callable) -> Callable:
    """The same function; the tracer of the calling thread pauses while it runs, but not for objects of lungkit."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = sys.gettrace()
        if tracer is None or (args and type(args[0]).__module__.startswith("lungkit.")):
            return function(*args, **kwargs)
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)  # also of this frame: coverage's tracer has itself in `f_trace`, for this very use

    return call


class _Finder:
    """Finds the modules of installed packages where Python does, and has them loaded without the tracer."""

    @staticmethod
    def find_spec(name: str, path: Any = None, _target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None or _INSTALLED not in Path(spec.origin or "").parents:
            return None
        spec.loader.exec_module = untraced(_loading(spec.loader.exec_module))  # type: ignore[method-assign]
        return spec


def _loading(execute: Callable) -> Callable:
    def load(module: ModuleType) -> None:
        execute(module)
        for name in FUNCTIONS.get(module.__name__, ()):
            *owner, function = name.split(".")
            place = attrgetter(".".join(owner))(module) if owner else module
            setattr(place, function, untraced(getattr(place, function)))

    return load


def pause() -> None:
    """Begin: from now on, where a tracer is at work in this process."""
    if sys.gettrace():
        sys.meta_path.insert(0, _Finder)
        rewrite._rewrite_test = untraced(rewrite._rewrite_test)  # pytest's work on the assertions of each test file
