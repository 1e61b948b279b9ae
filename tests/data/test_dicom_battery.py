"""A few hundred DICOM files over the grid of what may stand in them, held against DCMTK and against the standard.

Every file is compared twice with what `images.read` makes of it: with the picture that DCMTK's dcm2pnm renders, and
with numpy written from PS3.3 (dicom_standard.py). Where DCMTK shows something else, `difference` says why, and the
standard alone decides. Two things stand outside that count: pixels of padding, which we show black and DCMTK does not,
are left out of its comparison; and where a file has no window, dcm2pnm is given the one that our rule makes.
`pytest -s` prints the counts.
"""

import collections
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pydicom import Dataset, dcmread

from lungkit.data.images import read
from tests.data import dicom_standard as standard
from tests.data.dicom_cases import DECODERS, Made, cases, make

pytestmark = pytest.mark.skipif(not shutil.which("dcm2pnm"), reason="DCMTK is not installed (Debian's dcmtk)")


def difference(case: dict, header: Dataset) -> str | None:
    """Why DCMTK 3.6 shows another picture of a grey file, or of a palette."""
    if case["kind"] == "DX for processing":
        return "for processing: DCMTK inverts by the photometric interpretation, we by the sign of the intensities"
    if ("RescaleSlope" in header) != ("RescaleIntercept" in header):
        return "slope or intercept alone: DCMTK applies neither, we take 1 and 0 for the other"
    if header.get("VOILUTFunction") == "LINEAR_EXACT" and "VOILUTSequence" not in header:
        return "LINEAR_EXACT: DCMTK takes it as LINEAR"
    if float(header.get("RescaleSlope", 1)) % 1 and case["kind"] != "CT":
        return "rescaled values that are not whole: DCMTK rounds them"
    if case.get("entries") == "segmented":
        return "segmented palette: DCMTK does not read it"
    return None


def rendered(made: Made, header: Dataset, stored: np.ndarray | None) -> np.ndarray:
    """float64 0..1 (rows, columns) or (rows, columns, 3) by DCMTK."""
    depth, options = "+on2", []
    if made.case["kind"] == "CT":
        options = ["+Ww", "0", "65536"]
    elif header.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2"):
        options = _shown_by(header, stored)
    else:
        depth = "+on"
    picture = made.path.with_suffix(".png")
    done = subprocess.run(["dcm2pnm", depth, *options, made.plain, picture], capture_output=True, text=True)
    assert done.returncode == 0, (made.case, done.stderr)
    pixels = np.asarray(PIL.Image.open(picture))
    return pixels / (65535 if depth == "+on2" else 255)


def _shown_by(header: Dataset, stored: np.ndarray) -> list[str]:
    if "VOILUTSequence" in header:
        return ["+Wl", "1"]
    if "WindowCenter" in header:
        return ["+Wi", "1"]
    values = standard.modality_values(stored, header)
    low, high = standard.plain_ends(values[~standard.padding(stored, header)], header)
    return ["+Ww", f"{(low + high + 1) / 2}", f"{high - low + 1}"]


def expected(made: Made, header: Dataset, stored: np.ndarray) -> np.ndarray:
    """By the standard: HU, or 0..1."""
    if made.case["kind"] == "CT":
        return standard.hounsfield(stored, header)
    if "entries" in made.case:
        return standard.luminance(standard.palette_colours(stored, header))
    if stored.ndim == 3:
        return standard.luminance(stored / 255)
    return standard.shown(stored, header)


def one_step(made: Made, header: Dataset) -> float:
    """How far apart neighbouring stored values may come out: the two decoders of a lossy coding differ by that much."""
    lowest = -header.PixelRepresentation * 2 ** (header.BitsStored - 1)
    every = np.arange(lowest, lowest + 2**header.BitsStored)
    without_padding = Dataset()
    without_padding.update(header)
    without_padding.pop("PixelPaddingValue", None)
    return float(np.abs(np.diff(expected(made, without_padding, every))).max())


def compared(case: dict, number: int, folder: Path) -> tuple[str | None, str]:
    """(why DCMTK differs, what is wrong) of one file; None and "" where all agree."""
    made = make(case, number, folder)
    header = dcmread(made.plain)
    grey = header.SamplesPerPixel == 1
    stored = made.stored
    if stored is None and grey:
        stored = standard.stored_of(header)
    found = read(made.path).pixels.astype(float)
    is_lossy = made.stored is None
    why, wrong = difference(case, header), []
    if stored is not None:
        nothing = standard.padding(stored, header) if grey and "entries" not in case else np.zeros(found.shape, bool)
        slack = (2 * one_step(made, header) if is_lossy else 0) + _rounding(made, header)
        _compare(wrong, "standard", found, expected(made, header, stored), slack)
    else:
        nothing, slack = np.zeros(found.shape, bool), 3 / 255
    if not why:
        theirs = rendered(made, header, stored)
        if case["kind"] == "CT":
            theirs = np.maximum(theirs * 65535 - 32768, -1024)
            found = np.minimum(found, 32767)  # the end of the window that dcm2pnm is given
        theirs = standard.luminance(theirs) if theirs.ndim == 3 else theirs
        slack = max(slack, _dcmtk_rounding(made, header))
        _compare(wrong, "DCMTK", np.where(nothing, 0, found), np.where(nothing, 0, theirs), slack)
    return why, f"{number} {case}: {'; '.join(wrong)}" if wrong else ""


def _rounding(made: Made, header: Dataset) -> float:
    """Of float32, and of colours, which become luminance in steps of their depth."""
    if header.PhotometricInterpretation.startswith("MONOCHROME"):
        return 2e-3 if made.case["kind"] == "CT" else 1e-5
    return 1.01 / 255


def _dcmtk_rounding(made: Made, header: Dataset) -> float:
    """DCMTK rounds to 16 bits, a table of n bits to 1 in 2^n, colours to 8 bits, and HU to one or two whole ones."""
    if made.case["kind"] == "CT":
        return 2.01
    if not header.PhotometricInterpretation.startswith("MONOCHROME"):
        return 1.5 / 255
    return 2.01 / 2 ** (header.VOILUTSequence[0].LUTDescriptor[2] if "VOILUTSequence" in header else 16)


def _compare(wrong: list[str], whose: str, found: np.ndarray, theirs: np.ndarray, slack: float) -> None:
    if found.shape != theirs.shape:
        wrong.append(f"{whose}: {theirs.shape} against {found.shape}")
    elif (far := np.abs(found - theirs)).max() > slack:
        wrong.append(f"{whose}: up to {far.max():.6g} in {(far > slack).sum()} pixels")


def test_every_file_of_the_grid_is_read_as_dcmtk_and_the_standard_have_it(tmp_path):
    grid = cases()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda numbered: compared(numbered[1], numbered[0], tmp_path), enumerate(grid)))
    wrong = [text for _, text in results if text]
    reasons = collections.Counter(why for why, _ in results if why)
    lossy = sum(case["coding"] in DECODERS or case["photometric"] == "YBR_ICT" for case in grid)
    print(f"\n{len(grid)} files ({lossy} lossy); {len(grid) - reasons.total()} agree with DCMTK and the standard")
    print(*(f"{count:4} {why}" for why, count in reasons.most_common()), sep="\n")
    padded = sum(case.get("padding", "none") != "none" for case in grid)
    print(f"{padded:4} with a padding value: those pixels are held against the standard alone")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(grid)}", *wrong[:40]])
    assert len(grid) > 300
    assert len(grid) - reasons.total() > 200
