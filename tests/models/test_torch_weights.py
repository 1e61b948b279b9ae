"""PyTorch weights without PyTorch: tensors come out as they went in, and a hostile file gets nowhere."""

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from lungkit.models import torch_weights

MAGIC, VERSION, MACHINE = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}
NUMBERS = np.arange(12, dtype="<f4")


class _Global:
    """Pickled as a name that a file asks for."""

    def __init__(self, module: str, name: str):
        self.name = f"c{module}\n{name}\n".encode()


class _Call:
    """Pickled as a call of something with arguments."""

    def __init__(self, called, *arguments):
        self.called, self.arguments = called, arguments


class _Storage:
    """Pickled as a reference to numbers that follow in the file."""

    def __init__(self, key="0", count=12, kind="FloatStorage"):
        self.reference = ("storage", _Global("torch", kind), key, "cpu", count, None)


REBUILD = _Global("torch._utils", "_rebuild_tensor_v2")


def tensor(storage=None, offset=0, shape=(3, 4), strides=(4, 1)):
    return _Call(
        REBUILD, storage or _Storage(), offset, shape, strides, False, _Call(_Global("collections", "OrderedDict"))
    )


class _Pickler(pickle._Pickler):
    """Writes names and calls that do not exist here, as PyTorch writes its own."""

    def save(self, value, save_persistent_id=True):
        match value:
            case _Global():
                self.write(value.name)
            case _Storage():
                self.save(value.reference)
                self.write(pickle.BINPERSID)
            case _Call():
                self.save(value.called)
                self.save(value.arguments)
                self.write(pickle.REDUCE)
            case _:
                super().save(value, save_persistent_id)


def pickled(value) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def storage(numbers=NUMBERS, count=None) -> bytes:
    return struct.pack("<q", numbers.size if count is None else count) + numbers.tobytes()


def state(**tensors):
    """A mapping as PyTorch writes it: an empty OrderedDict, filled by instructions."""
    filled = io.BytesIO()
    pickler = _Pickler(filled, protocol=2)
    pickler.write(pickle.PROTO + b"\2")
    pickler.save(_Call(_Global("collections", "OrderedDict")))
    pickler.write(pickle.MARK)
    for name, value in tensors.items():
        pickler.save(name)
        pickler.save(value)
    pickler.write(pickle.SETITEMS)
    return filled.getvalue()


def file(
    content=None, *, magic=MAGIC, machine=MACHINE, keys=("0",), numbers=None, raw=None, after=b"", ending=pickle.STOP
):
    """The bytes of a weights file; `raw` stands for the whole pickle of the tensors."""
    tensors = raw if raw is not None else state(**({"w": tensor()} if content is None else content)) + ending
    head = b"".join(map(pickled, (magic, VERSION, machine)))
    return head + tensors + pickled(list(keys)) + (storage() if numbers is None else numbers) + after


@pytest.fixture
def read(tmp_path):
    def read(content: bytes):
        (tmp_path / "w.pth").write_bytes(content)
        return torch_weights.read(tmp_path / "w.pth")

    return read


def test_tensors_come_out_with_their_names_shapes_and_numbers(read):
    long = np.array([7], dtype="<i8")
    found = read(
        file(
            {
                "rows": tensor(),
                "turned": tensor(shape=(4, 3), strides=(1, 4)),
                "part": tensor(offset=5, shape=(2,), strides=(3,)),
                "steps": tensor(_Storage("1", 1, "LongStorage"), shape=(), strides=()),
            },
            keys=("1", "0"),
            numbers=storage(long) + storage(),
        )
    )
    np.testing.assert_array_equal(found["rows"], NUMBERS.reshape(3, 4))
    np.testing.assert_array_equal(found["turned"], NUMBERS.reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"], [5, 8])
    assert (found["steps"].dtype, int(found["steps"])) == (np.int64, 7)
    assert not found["rows"].flags.writeable


def test_what_pytorch_hangs_onto_its_mapping_is_left_out(read):
    with_metadata = pickled({"items": 1, "_metadata": {}})[2:-1] + pickle.BUILD + pickle.STOP
    assert list(read(file(ending=with_metadata))) == ["w"]


# --- hostile


class _Runs:
    """Runs a command where a plain pickle is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_command_in_a_pickle_is_refused_and_does_not_run(read, tmp_path):
    marker = tmp_path / "ran"
    hostile = pickle.dumps(_Runs(marker), protocol=2)
    pickle.loads(hostile)
    assert marker.is_dir(), "a plain pickle would have run it"
    marker.rmdir()
    with pytest.raises(torch_weights.WeightsRefused, match=r"w\.pth is not read: it asks for posix\.mkdir; accepted"):
        read(file(raw=hostile))
    with pytest.raises(torch_weights.WeightsRefused, match=r"posix\.mkdir"):
        read(file(magic=_Runs(marker)))
    assert not marker.exists()


@pytest.mark.parametrize(
    "asked",
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch", "FloatStorage.__class__"),
        ("torch.storage", "_load_from_bytes"),
        ("collections", "Counter"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("copyreg", "add_extension"),
        ("lungkit.models.torch_weights", "read"),
    ],
    ids=".".join,
)
def test_every_other_name_is_refused(read, asked):
    for protocol_4 in (False, True):
        name = (
            b"".join(pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in asked)
            + pickle.STACK_GLOBAL
            if protocol_4
            else _Global(*asked).name
        )
        with pytest.raises(torch_weights.WeightsRefused, match=f"asks for {asked[0]}"):
            read(file(raw=pickle.PROTO + b"\4" + name + pickle.STOP))


@pytest.mark.parametrize("name", list(torch_weights._NAMES), ids=".".join)
@pytest.mark.parametrize("slots", [False, True], ids=["__dict__", "slots"])
def test_what_a_name_stands_for_cannot_be_changed(read, name, slots):
    before = dict(vars(torch_weights._Mapping)), dict(vars(torch_weights._Tensor))
    attributes = {"__init__": 1, "_fields": 2}
    change = pickled((None, attributes) if slots else attributes)[2:-1]
    with pytest.raises(torch_weights.WeightsRefused):
        read(file(raw=pickle.PROTO + b"\2" + _Global(*name).name + change + pickle.BUILD + pickle.STOP))
    assert (dict(vars(torch_weights._Mapping)), dict(vars(torch_weights._Tensor))) == before
    assert list(read(file())) == ["w"]


def test_a_pickle_that_asks_for_gigabytes_of_memo_is_refused(read):
    hoard = pickle.PROTO + b"\2" + pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1) + pickle.STOP
    with pytest.raises(torch_weights.WeightsRefused, match="keeps a value as number 4294967295"):
        read(file(raw=hoard))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (1, (3, 4), (4, 1)),
        (0, (3, 4), (5, 1)),
        (0, (4, 4), (4, 1)),
        (-1, (2,), (1,)),
        (8, (2,), (-1,)),
        (12, (), ()),
        (0, (0,), (1,)),
        (0, (2**40,), (0,)),
        (0, (2**40, 2**40), (0, 0)),
        (2**70, (1,), (1,)),
        (0, (3,), (1, 1)),
        (0, (1.5,), (1,)),
        (0, "12", (1, 1)),
        (0, None, ()),
        ("0", (1,), (1,)),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(read, offset, shape, strides):
    with pytest.raises(torch_weights.WeightsRefused):
        read(file({"w": tensor(offset=offset, shape=shape, strides=strides)}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (file({"w": tensor(_Storage(count=13))}), "does not hold the 13 numbers"),
        (file({"w": tensor(_Storage(count=-1))}), "not a storage"),
        (file({"w": tensor(_Storage(kind="ByteStorage"))}), r"asks for torch\.ByteStorage"),
        (file({"w": tensor(_Storage("9"))}), "not those that its tensors refer to"),
        (file({"w": tensor(), "v": tensor(_Storage(count=11))}), "storage '0' in two ways"),
        (file({"w": tensor("0")}, keys=(), numbers=b""), "'w' is not a tensor"),
        (file({"w": 3}, keys=(), numbers=b""), "'w' is not a tensor"),
        (file(keys=("0", "0")), "not those that its tensors refer to"),
        (file(keys=(0,)), "not those that its tensors refer to"),
        (file(keys=("0", 0)), "damaged"),
        (file(numbers=storage(count=13)), "does not hold the 12 numbers"),
        (file(numbers=storage()[:-1]), "damaged"),
        (file(after=b"\0"), "1 bytes follow"),
        (file(raw=pickled([])), "does not hold a mapping"),
        (file(raw=pickled({"w": 1})), "does not hold a mapping"),
        (file(machine={"little_endian": False}), "little-endian"),
        (file(machine=3), "damaged"),
        (file(magic=1), "does not begin as"),
        (b"PK\x03\x04", "zip file, as PyTorch writes since 1.6"),
        (b"", "damaged"),
        (b"\x89PNG\r\n", "damaged"),
        (file()[:200], "damaged"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_with_the_reason(read, content, reason):
    with pytest.raises(torch_weights.WeightsRefused, match=rf"^w\.pth is not read: .*{reason}"):
        read(content)


def test_a_missing_and_a_too_large_file_are_refused(read, tmp_path, monkeypatch):
    with pytest.raises(torch_weights.WeightsRefused, match=r"no\.pth cannot be read: No such file"):
        torch_weights.read(tmp_path / "no.pth")
    monkeypatch.setattr(torch_weights, "MAX_BYTES", 100)
    with pytest.raises(torch_weights.WeightsRefused, match="MiB; at most"):
        read(file())


def test_plain_ordered_dicts_are_known_by_name_only(read):
    """A mapping that this Python would pickle as its own class is the one that PyTorch writes."""
    assert read(file(raw=pickle.dumps(OrderedDict(), protocol=2), keys=(), numbers=b"")) == {}
