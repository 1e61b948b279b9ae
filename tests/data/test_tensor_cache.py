"""Preprocessed images on disk: exact, whole, bounded, never out of date."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lungkit import config
from lungkit.data import images, preprocess, tensor_cache

SPEC = preprocess.Preprocessing(size=(32, 32), mean=0.4, std=0.25)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("LUNGKIT_DATA", str(tmp_path / "data"))
    random = np.random.default_rng(3)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (50, 40), np.uint8)).save(path)
    return paths


@pytest.fixture
def decodings(monkeypatch) -> list[str]:
    """The names of the files that were decoded for the cache."""
    names, prepare = [], preprocess.prepare

    def counting(source, spec, name=None):
        if name:
            names.append(Path(name).name)
        return prepare(source, spec, name)

    monkeypatch.setattr(preprocess, "prepare", counting)
    return names


def _packs() -> list:
    return sorted((config.data_dir() / "tensors").iterdir())


def _forget():
    """As a new process begins."""
    tensor_cache._cache.cache_clear()
    tensor_cache._known.clear()


def test_a_kept_tensor_is_the_decoded_one_to_the_last_bit_with_its_facts(files, decodings):
    decoded = list(preprocess.prepared(files, SPEC))
    _forget()
    kept = list(preprocess.prepared(files, SPEC))
    assert len(decodings) == len(files)
    for one, same, file in zip(decoded, kept, files, strict=True):
        np.testing.assert_array_equal(one.tensor, same.tensor)
        np.testing.assert_array_equal(one.tensor, preprocess.prepare(images.read(file), SPEC).tensor)
        assert (one.units, one.shape, one.note) == (same.units, same.shape, same.note)


def test_mean_and_spread_do_not_matter_size_and_window_do(files, decodings):
    preprocess.read_batch(files, SPEC)
    preprocess.read_batch(files, preprocess.Preprocessing(size=(32, 32)))
    assert len(decodings) == 6
    preprocess.read_batch(files, preprocess.Preprocessing(size=(32, 24)))
    preprocess.read_batch(files, preprocess.Preprocessing(size=(32, 32), intensity_window=(20, 200)))
    assert len(decodings) == 18


def test_greys_of_8_bits_take_a_quarter_of_the_space(tmp_path, files):
    exact = preprocess.Preprocessing(size=(50, 40))
    preprocess.read_batch(files, exact)
    small = _packs()[0].stat().st_size
    assert 6 * 50 * 40 < small < 6 * 50 * 40 + 3000
    _forget()
    np.testing.assert_array_equal(
        preprocess.read_batch(files, exact), [preprocess.prepare(images.read(file), exact).tensor for file in files]
    )


def test_greys_and_other_tensors_of_one_folder_are_all_kept(tmp_path, files, decodings):
    exact = preprocess.Preprocessing(size=(50, 40))
    larger = Image.fromarray(np.random.default_rng(4).integers(0, 256, (90, 80), np.uint8))
    for number in (2, 3):
        larger.rotate(90 * number).save(files[number])
    first = preprocess.read_batch([*files, *files], exact)
    assert len(_packs()) == 2 and len(decodings) <= 12
    _forget()
    np.testing.assert_array_equal(preprocess.read_batch([*files, *files], exact), first)
    assert len(decodings) <= 12


def test_a_run_of_many_images_fills_several_packs(files, decodings, monkeypatch):
    monkeypatch.setattr(tensor_cache, "PACK_BYTES", 2 * 4 * 32 * 32)
    first = preprocess.read_batch(files, SPEC)
    assert len(_packs()) == 3
    _forget()
    np.testing.assert_array_equal(preprocess.read_batch(files, SPEC), first)
    assert len(decodings) == 6


def test_a_file_with_other_content_under_the_same_name_is_decoded(files, decodings):
    preprocess.read_batch(files, SPEC)
    times = files[0].stat()
    files[1].rename(files[0])
    os.utime(files[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    other = preprocess.read_batch(files[:1], SPEC)
    np.testing.assert_array_equal(other[0], preprocess.prepare(images.read(files[0]), SPEC).tensor)
    assert decodings.count("0.png") == 1, "the content was known under its other name"


def test_other_code_or_another_decoder_makes_other_entries(files, decodings, monkeypatch):
    preprocess.read_batch(files, SPEC)
    _forget()
    monkeypatch.setattr(tensor_cache, "_code", lambda: "other")
    preprocess.read_batch(files, SPEC)
    assert len(decodings) == 12


ODD = b'{"dtype": "object"}'


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", ODD + len(ODD).to_bytes(8, "little"), b"\xff" * 40, b"0" + bytes(8)],
    ids=["empty", "cut", "odd", "far", "no index"],
)
def test_a_damaged_pack_is_decoded_again(files, decodings, damage):
    preprocess.read_batch(files, SPEC)
    _packs()[0].write_bytes(damage)
    _forget()
    preprocess.read_batch(files, SPEC)
    assert len(decodings) == 12


def test_a_row_that_changed_on_the_disk_is_decoded_again(files, decodings):
    first = preprocess.read_batch(files, SPEC)
    pack = bytearray(_packs()[0].read_bytes())
    pack[5] ^= 1
    _packs()[0].write_bytes(pack)
    _forget()
    np.testing.assert_array_equal(preprocess.read_batch(files, SPEC), first)
    assert len(decodings) == 7


def test_what_was_decoded_before_a_refusal_is_kept_and_nothing_of_the_refused(files, decodings):
    files[3].write_bytes(b"not an image")
    with pytest.raises(images.ImageRefused, match=r"3\.png: not an image"):
        preprocess.read_batch(files, SPEC, workers=1)
    said = [str(one) for one in preprocess.prepared_or_refused(files, SPEC) if isinstance(one, images.ImageRefused)]
    assert len(said) == 1 and "3.png" in said[0]
    assert decodings.count("0.png") == 1


def test_the_oldest_packs_go_when_there_are_too_many_bytes(files, monkeypatch):
    preprocess.read_batch(files[:3], SPEC)
    first = _packs()[0]
    os.utime(first, (1, 1))
    monkeypatch.setattr(tensor_cache, "MOST_BYTES", first.stat().st_size + 100)
    preprocess.read_batch(files[3:], SPEC)
    assert first not in _packs() and len(_packs()) == 1


def test_a_disk_that_takes_nothing_costs_a_line_and_no_image(files, decodings, monkeypatch, capsys):
    (config.data_dir()).mkdir()
    (config.data_dir() / "tensors").write_text("in the way")
    assert preprocess.read_batch(files, SPEC).shape == (6, 32, 32, 1)
    assert "not kept for later runs" in capsys.readouterr().err


def test_several_processes_may_decode_the_same_files_at_once(files, decodings):
    code = (
        "import sys; from pathlib import Path; from lungkit.data import preprocess\n"
        "spec = preprocess.Preprocessing((32, 32), mean=.4, std=.25)\n"
        "print(float(preprocess.read_batch([Path(name) for name in sys.argv[1:]], spec).sum()))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, *map(str, files)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    sums = {process.communicate()[0] for process in running}
    assert sums == {f"{float(preprocess.read_batch(files, SPEC).sum())}\n"}
    assert decodings == []
    assert all(path.suffix == ".pack" and not path.name.startswith(".") for path in _packs())
