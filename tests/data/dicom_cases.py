"""The DICOM files of the battery: which there are, and how each is written from known stored values."""

import io
import itertools
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from openjpeg.utils import encode_array
from pydicom import Dataset, dcmwrite, uid
from pydicom.encaps import encapsulate

from tests.data.jpeg_lossless import encoded

ROWS, COLUMNS = 48, 64

PLAIN = {"implicit": uid.ImplicitVRLittleEndian, "explicit": uid.ExplicitVRLittleEndian, "big endian": None}
DCMTK = {  # the encoder and its options
    "baseline": ["dcmcjpeg", "+eb", "+q", "95"],
    "extended": ["dcmcjpeg", "+ee", "+q", "95"],
    "lossless SV1": ["dcmcjpeg", "+e1"],
    "lossless 4": ["dcmcjpeg", "+el", "+sv", "4"],
    "lossless 6": ["dcmcjpeg", "+el", "+sv", "6"],
    "lossless in fragments": ["dcmcjpeg", "+e1", "+fs", "1"],
    "JPEG-LS": ["dcmcjpls", "+el"],
    "JPEG-LS cooked": ["dcmcjpls", "+el", "+pc"],
    "JPEG-LS by samples": ["dcmcjpls", "+el", "+is", "+pz"],
    "JPEG-LS near": ["dcmcjpls", "+en"],
    "RLE": ["dcmcrle"],
}
OWN = {"lossless 1 wraps": (1, True), "lossless 7 wraps": (7, True), "lossless 5": (5, False)}  # predictor, wraps
JPEG_2000 = {"JPEG 2000": False, "JPEG 2000 as file": True}  # whether in a file wrapper
DECODERS = {"baseline": "dcmdjpeg", "extended": "dcmdjpeg", "JPEG-LS near": "dcmdjpls"}  # of what is lossy

_BITS = [(8, 8, 7), (8, 6, 5), (8, 6, 7), (16, 8, 7), (16, 10, 9), (16, 10, 12), (16, 12, 11), (16, 12, 15)]
_BITS += [(16, 14, 13), (16, 15, 14), (16, 16, 15)]  # allocated, stored, high
_CODINGS = [*PLAIN, *DCMTK, *OWN, *JPEG_2000]
_VOI = ["none", "linear", "first of two", "width 1", "centre 0", "centre negative", "wide", "exact", "exact, narrow"]
_VOI += ["sigmoid", "table", "table and window"]
_PADDING = ["none", "inside", "outside", "range"]
_GREY = {
    "kind": ["CR", "DX", "DX for processing", "SC"],
    "photometric": ["MONOCHROME1", "MONOCHROME2"],
    "bits": _BITS,
    "signed": [0, 1],
    "coding": _CODINGS,
    "rescale": ["none", "both", "slope only", "intercept only", "fractional", "negative", "table"],
    "voi": _VOI,
    "padding": _PADDING,
}
_CT = {
    "kind": ["CT"],
    "photometric": ["MONOCHROME2"],
    "bits": [(8, 8, 7), (16, 12, 11), (16, 12, 15), (16, 14, 13), (16, 16, 15)],
    "signed": [0, 1],
    "coding": [*PLAIN, "lossless SV1", "lossless 6", *OWN, "JPEG-LS", "RLE", *JPEG_2000],
    "rescale": ["both", "fractional", "negative"],
    "voi": ["none", "linear"],
    "padding": _PADDING,
}
_PALETTES = {
    "kind": ["SC"],
    "photometric": ["PALETTE COLOR"],
    "bits": [(8, 8, 7), (8, 6, 5), (16, 12, 11), (16, 16, 15)],
    "signed": [0, 1],
    "coding": [*PLAIN, "lossless SV1", "lossless 7 wraps", "JPEG-LS", "RLE", "JPEG 2000"],
    "entries": ["8 bits packed", "8 bits", "16 bits", "few", "from below 0", "segmented"],
}
_LS = ["JPEG-LS", "JPEG-LS by samples"]
_COLOURS = {  # photometric interpretation, planes one after the other: codings
    ("RGB", 0): [*PLAIN, "baseline", "lossless SV1", "lossless 6", *_LS, "JPEG-LS near", "RLE", *JPEG_2000],
    ("RGB", 1): [*PLAIN, "lossless SV1", "JPEG-LS", "RLE"],
    ("YBR_FULL", 0): [*PLAIN, "lossless SV1", "JPEG-LS", "RLE", "baseline"],
    ("YBR_FULL", 1): [*PLAIN, "RLE"],
    ("YBR_FULL_422", 0): [*PLAIN, "baseline"],
    ("YBR_RCT", 0): [*JPEG_2000],
    ("YBR_ICT", 0): [*JPEG_2000],
}


def cases() -> list[dict]:
    """What each file holds, in words; always the same."""
    colours = [
        {"kind": "SC", "photometric": photometric, "planar": planar, "bits": (8, 8, 7), "signed": 0, "coding": coding}
        for (photometric, planar), codings in _COLOURS.items()
        for coding in codings
    ]
    return [*_pairwise(_GREY, 1), *_pairwise(_CT, 2), *_pairwise(_PALETTES, 3), *colours]


def _pairwise(grid: dict[str, list], seed: int) -> list[dict]:
    """Every two choices that can stand together are together in at least one case."""
    rng = random.Random(seed)
    pool = [{name: rng.choice(choices) for name, choices in grid.items()} for _ in range(6000)]
    pool = [case for case in pool if _can_be(case)]
    pairs = [frozenset(itertools.combinations(case.items(), 2)) for case in pool]
    left, found = set().union(*pairs), []
    while left:
        place = max(rng.sample(range(len(pool)), 200), key=lambda at: len(pairs[at] & left))
        if not pairs[place] & left:
            place = next(at for at in range(len(pool)) if pairs[at] & left)
        found.append(pool[place])
        left -= pairs[place]
    return found


def _can_be(case: dict) -> bool:
    """Whether the standard allows such a file, and the encoders here can make it."""
    (_, stored, high), coding = case["bits"], case["coding"]
    if case.get("entries") == "from below 0" and not case["signed"]:
        return False
    if coding == "baseline":
        return case["bits"] == (8, 8, 7) and not case["signed"]
    if coding == "extended":
        return (stored, high) == (12, 11) and not case["signed"]
    if coding in ("JPEG-LS cooked", "JPEG-LS near"):  # DCMTK codes no sign, and 6 bits not as ISO 14495-1 has it
        return stored == high + 1 > 6 and not case["signed"]
    return stored == high + 1 or coding in PLAIN or coding in DCMTK


# --- writing -----------------------------------------------------------------------------------------------------

_KINDS = {
    "CR": (uid.ComputedRadiographyImageStorage, "CR"),
    "DX": (uid.DigitalXRayImageStorageForPresentation, "DX"),
    "DX for processing": (uid.DigitalXRayImageStorageForProcessing, "DX"),
    "SC": (uid.SecondaryCaptureImageStorage, "OT"),
    "CT": (uid.CTImageStorage, "CT"),
}


@dataclass
class Made:
    """A file of the battery."""

    case: dict
    path: Path  # what is read
    plain: Path  # the same values without compression; of a lossy coding, as DCMTK decodes them
    stored: np.ndarray | None  # what went in, int64 (rows, columns) or uint8 (rows, columns, 3) RGB; None if lossy


def make(case: dict, number: int, folder: Path) -> Made:
    """Writes the file of a case."""
    rng = np.random.default_rng(number)
    made = _header(case, number)
    if made.SamplesPerPixel == 3:
        stored = _colours(made, case, rng)
    else:
        stored = _waves(case["bits"][1], case["signed"], rng)
        (_add_palette if "entries" in case else _add_meaning)(made, case, rng)
        made.PixelData = _words(stored, made, case["coding"], rng).tobytes()
    made["PixelData"].VR = "OW" if made.BitsAllocated == 16 else "OB"
    plain, path = _written(made, folder / f"{number}.plain.dcm"), folder / f"{number}.dcm"
    _code(made, case, stored, plain, path)
    if decoder := DECODERS.get(case["coding"]):
        _run(decoder, path, plain)
    is_lossy = case["coding"] in DECODERS or case["photometric"] == "YBR_ICT"
    return Made(case, path, plain, None if is_lossy else stored)


def _header(case: dict, number: int) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.Modality = _KINDS[case["kind"]]
    made.SOPInstanceUID = made.StudyInstanceUID = made.SeriesInstanceUID = f"1.2.3.{number}"
    made.Rows, made.Columns = ROWS, COLUMNS
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, case["photometric"]
    made.BitsAllocated, made.BitsStored, made.HighBit = case["bits"]
    made.PixelRepresentation = case["signed"]
    if "planar" in case:
        made.SamplesPerPixel, made.PlanarConfiguration = 3, case["planar"]
    if case["kind"] == "DX for processing":
        made.PixelIntensityRelationship, made.PixelIntensityRelationshipSign = "LIN", -1 if number % 2 else 1
    return made


def _waves(bits: int, signed: int, rng: np.random.Generator) -> np.ndarray:
    """int64 over the whole range that can be stored, in smooth slopes as a lossy coder needs them."""
    rows, columns = np.mgrid[0:ROWS, 0:COLUMNS]
    waves = np.cos(rows / 9 + rng.uniform(0, 6)) * np.cos(columns / 11 + rng.uniform(0, 6))
    waves = (waves - waves.min()) / np.ptp(waves) * (2**bits - 1)
    return np.rint(waves).astype(np.int64) - signed * 2 ** (bits - 1)


def _ends(made: Dataset) -> tuple[int, int]:
    lowest = -made.PixelRepresentation * 2 ** (made.BitsStored - 1)
    return lowest, lowest + 2**made.BitsStored - 1


def _words(stored: np.ndarray, made: Dataset, coding: str, rng: np.random.Generator) -> np.ndarray:
    """The values where HighBit says that they lie in their words; rubbish around them where it may be."""
    below, high = made.HighBit + 1 - made.BitsStored, made.HighBit + 1
    found = (stored & (2**made.BitsStored - 1)) << below
    if coding in PLAIN or coding == "RLE":
        found |= rng.integers(0, 2**below, stored.shape) + (rng.integers(0, 2 ** (made.BitsAllocated - high)) << high)
    elif made.PixelRepresentation and not below:
        found = stored & (2**made.BitsAllocated - 1)
    return found.astype("<u2" if made.BitsAllocated == 16 else np.uint8)


_RESCALES = {
    "both": (2, -100),
    "slope only": (3, None),
    "intercept only": (None, 40),
    "fractional": (0.37, -12.5),
    "negative": (-2, 700),
}


def _add_meaning(made: Dataset, case: dict, rng: np.random.Generator) -> None:
    """What the stored values of a grey picture mean, and how they are shown."""
    slope, intercept = _RESCALES.get(case["rescale"], (None, None))
    if case["kind"] == "CT" and case["rescale"] == "both":
        slope, intercept = 1, -1024
    if slope is not None:
        made.RescaleSlope = slope
    if intercept is not None:
        made.RescaleIntercept = intercept
    lowest, highest = _ends(made)
    ends = sorted(end * (slope or 1) + (intercept or 0) for end in (lowest, highest))
    if case["rescale"] == "table":
        count = min(2**made.BitsStored, 1000)
        entries = np.linspace(20, 4000, count).astype(int)
        first = lowest + (2**made.BitsStored - count) // 2
        made.ModalityLUTSequence = [_table(entries, first, 12, made.PixelRepresentation)]
        made.ModalityLUTSequence[0].ModalityLUTType = "US"
        ends = entries[0], entries[-1]
    _add_voi(made, case["voi"], float(ends[0]), float(ends[1]), rng)
    kind, inside = "SS" if made.PixelRepresentation else "US", lowest + 2**made.BitsStored // 3
    if case["padding"] == "outside" and made.BitsStored < 16:
        made.add_new("PixelPaddingValue", kind, highest + 1)
    elif case["padding"] != "none":
        made.add_new("PixelPaddingValue", kind, inside)
    if case["padding"] == "range":
        made.add_new("PixelPaddingRangeLimit", kind, inside + 2**made.BitsStored // 8)


def _add_voi(made: Dataset, voi: str, low: float, high: float, rng: np.random.Generator) -> None:
    """The window or table; `low` and `high` are the ends of the values that it is for."""
    middle, span = (low + high) / 2, high - low
    windows = {
        "linear": (middle + span * 0.05, span * 0.4 + 2),
        "first of two": ([middle - span * 0.1, middle], [span * 0.3 + 2, span * 2 + 2]),
        "width 1": (middle, 1),
        "centre 0": (0, span * 0.3 + 2),
        "centre negative": (min(low, 0) / 2 - span * 0.1 - 3, span * 0.9 + 2),
        "wide": (middle, span * 3 + 2),
        "exact": (middle - span * 0.05, span * 0.2 + 1),
        "exact, narrow": (middle, 0.5),
        "sigmoid": (middle, span * 0.3 + 1),
        "table and window": (middle, span * 0.3 + 2),
    }
    if voi in windows:
        for keyword, value in zip(("WindowCenter", "WindowWidth"), windows[voi], strict=True):
            setattr(made, keyword, [f"{part:.6g}" for part in np.atleast_1d(value)])
    if voi.startswith(("exact", "sigmoid", "first")):
        made.VOILUTFunction = {"e": "LINEAR_EXACT", "s": "SIGMOID", "f": "LINEAR"}[voi[0]]
    if voi.startswith("table"):
        count, depth = int(min(span * 0.9, 3000)), int(rng.choice([8, 10, 12, 16]))
        entries = np.rint(np.linspace(0, 1, count) ** 1.7 * (2**depth - 1)).astype(int)
        first = int(np.clip(np.ceil(low + span * 0.05), -(2**15), 2**15 - 1))
        made.VOILUTSequence = [_table(entries, first, depth, first < 0)]


def _table(entries: np.ndarray, first: int, depth: int, signed: bool) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries), first, depth])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def _add_palette(made: Dataset, case: dict, rng: np.random.Generator) -> None:
    entries, (lowest, highest) = case["entries"], _ends(made)
    count = min(highest - lowest + 1, 256 if entries.startswith("8") else 1000)
    first = {"few": lowest + 7, "from below 0": -20}.get(entries, lowest)
    count = 40 if entries in ("few", "from below 0") else count
    depth = 8 if entries.startswith("8") else 16
    for number, name in enumerate(f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")):
        made.add_new(f"{name}Descriptor", "SS" if made.PixelRepresentation else "US", [count, first, depth])
        rising = np.linspace(0, 2**depth - 1, count)
        colours = np.rint([rng.permutation(rising), rising, rising[::-1]][number]).astype("<u2")
        if entries == "8 bits packed":
            made.add_new(f"{name}Data", "OW", colours.astype(np.uint8).tobytes() + bytes(count % 2))
        elif entries == "segmented":
            segments = [0, 2, colours[0], colours[1], 1, count - 2, colours[-1]]
            made.add_new(f"Segmented{name}Data", "OW", np.array(segments, "<u2").tobytes())
        else:
            made.add_new(f"{name}Data", "OW", colours.tobytes())


def _colours(made: Dataset, case: dict, rng: np.random.Generator) -> np.ndarray:
    """Writes the samples of a colour picture; returns what they mean in RGB."""
    rgb = np.dstack([_waves(8, 0, rng) for _ in range(3)]).astype(np.uint8)
    is_ycc = case["photometric"].startswith("YBR_FULL") and case["coding"] != "baseline"
    if not is_ycc:
        made.PhotometricInterpretation = "RGB"  # the encoders make of it what the case says
        samples = rgb
    else:
        samples = np.asarray(PIL.Image.fromarray(rgb).convert("YCbCr"))
    if is_ycc and case["photometric"].endswith("422"):
        first, second = samples[:, ::2], samples[:, 1::2]
        made.PixelData = np.stack([first[..., 0], second[..., 0], first[..., 1], first[..., 2]], -1).tobytes()
        thinned = np.repeat(first, 2, axis=1)
        thinned[..., 0] = samples[..., 0]
        return from_ycc(thinned)
    made.PixelData = (samples.transpose(2, 0, 1) if case["planar"] else samples).tobytes()
    return from_ycc(samples) if is_ycc else rgb


def from_ycc(ycc: np.ndarray) -> np.ndarray:
    """uint8 RGB of YBR_FULL, PS3.3, C.7.6.3.1.2."""
    luma, blue, red = ycc[..., 0].astype(float), ycc[..., 1] - 128.0, ycc[..., 2] - 128.0
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], -1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


# --- coding ------------------------------------------------------------------------------------------------------


def _code(made: Dataset, case: dict, stored: np.ndarray, plain: Path, path: Path) -> None:
    coding = case["coding"]
    if coding == "big endian":
        _run("dcmconv", "+tb", plain, path)
    elif coding in PLAIN:
        _written(made, path, PLAIN[coding])
    elif coding in DCMTK:
        colours = {"RGB": ["+cr"], "YBR_FULL": ["+s4"]}.get(case["photometric"], []) if coding == "baseline" else []
        _run(*DCMTK[coding], *colours, plain, path)
    elif coding in OWN:
        predictor, wraps = OWN[coding]
        unsigned = stored & (2**made.BitsStored - 1)
        made.PixelData = encapsulate([encoded(unsigned, made.BitsStored, predictor, wraps, restart_rows=5)])
        _written(made, path, uid.JPEGLossless)
    else:
        made.PhotometricInterpretation = case["photometric"]
        made.PixelData = encapsulate([_jpeg_2000(made, case, stored)])
        _written(made, path, uid.JPEG2000 if case["photometric"] == "YBR_ICT" else uid.JPEG2000Lossless)


def _jpeg_2000(made: Dataset, case: dict, stored: np.ndarray) -> bytes:
    """OpenJPEG codes values as they are, with their sign and depth; Pillow codes whole words, and file wrappers."""
    if not JPEG_2000[case["coding"]] and made.SamplesPerPixel == 1:
        kind = f"{'i' if made.PixelRepresentation else 'u'}{made.BitsAllocated // 8}"
        return encode_array(stored.astype(kind), bits_stored=made.BitsStored, photometric_interpretation=2)
    content, word = io.BytesIO(), stored
    if made.SamplesPerPixel == 1:
        word = (stored & (2**made.BitsAllocated - 1)).astype(np.uint8 if made.BitsAllocated == 8 else np.uint16)
    PIL.Image.fromarray(word).save(
        content,
        "JPEG2000",
        irreversible=case["photometric"] == "YBR_ICT",
        mct=int(case["photometric"].startswith("YBR")),
        no_jp2=not JPEG_2000[case["coding"]],
    )
    return content.getvalue()


def _written(made: Dataset, path: Path, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> Path:
    made.file_meta = Dataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    with path.open("wb") as stream:
        dcmwrite(stream, made, enforce_file_format=True)
    return path


def _run(*command) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
