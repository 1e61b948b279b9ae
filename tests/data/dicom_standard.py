"""What a DICOM file shows, written from PS3.3 in numpy: for tests, and without a line of the reader's.

Rules of the reader's own, which the standard leaves open, are marked "ours"; they head lungkit.data.images.
"""

import numpy as np
from pydicom import Dataset


def stored_of(plain: Dataset) -> np.ndarray:
    """int64 (rows, columns): the values of an uncompressed grey picture (C.7.6.3.1)."""
    words = np.frombuffer(plain.PixelData, "<u2" if plain.BitsAllocated == 16 else np.uint8)[
        : plain.Rows * plain.Columns
    ]
    values = (words.astype(np.int64) >> (plain.HighBit + 1 - plain.BitsStored)) & (2**plain.BitsStored - 1)
    if plain.PixelRepresentation:
        values -= (values >> (plain.BitsStored - 1)) << plain.BitsStored
    return values.reshape(plain.Rows, plain.Columns)


def padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """bool: C.7.5.1.1.2."""
    if "PixelPaddingValue" not in header:
        return np.zeros(stored.shape, bool)
    ends = sorted([header.PixelPaddingValue, header.get("PixelPaddingRangeLimit", header.PixelPaddingValue)])
    return (stored >= ends[0]) & (stored <= ends[1])


def modality_values(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """float64: C.11.1."""
    if "ModalityLUTSequence" in header:
        return looked_up(stored, header.ModalityLUTSequence[0]).astype(float)
    return stored * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))


def looked_up(values: np.ndarray, item: Dataset) -> np.ndarray:
    count, first, _ = item.LUTDescriptor
    entries = np.frombuffer(item.LUTData, "<u2")
    return entries[np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)].astype(np.int64)


def shown(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """float64 0..1: C.11.1 and C.11.2, then the inversion; padding is black (ours)."""
    values, nothing = modality_values(stored, header), padding(stored, header)
    if "VOILUTSequence" in header:
        item = header.VOILUTSequence[0]
        found = looked_up(values, item) / (2 ** item.LUTDescriptor[2] - 1)
    elif "WindowCenter" in header:
        found = windowed(values, *first_window(header))
    else:
        low, high = plain_ends(values[~nothing], header)
        found = np.clip((values - low) / (high - low), 0, 1)
    found = 1 - found if is_negative(header) else found
    return np.where(nothing, 0, found)


def first_window(header: Dataset) -> tuple[float, float, str]:
    centre, width = (float(np.atleast_1d(header[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    return centre, width, header.get("VOILUTFunction", "LINEAR")


def windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, in their own words."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        inside = (values - centre) / width + 0.5
        return np.where(values <= centre - width / 2, 0, np.where(values > centre + width / 2, 1, inside))
    below, above = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    inside = (values - (centre - 0.5)) / (width - 1 or 1) + 0.5
    return np.where(values <= below, 0, np.where(values > above, 1, inside))


def plain_ends(values: np.ndarray, header: Dataset) -> tuple[float, float]:
    """What becomes 0 and 1 where there is no window (ours): the ends of 8 bits, or percentiles of more."""
    if header.BitsStored > 8:
        return tuple(np.percentile(values, (0.5, 99.5)))
    lowest = -header.PixelRepresentation * 2 ** (header.BitsStored - 1)
    every = modality_values(np.arange(lowest, lowest + 2**header.BitsStored), header)
    return every.min(), every.max()


def is_negative(header: Dataset) -> bool:
    """Whether dense would be dark (ours for images for processing): C.8.11.3.1.2.

    More X-rays go through where less is dense: where they give larger values, and these a brighter picture, it is
    turned round.
    """
    if "PixelIntensityRelationshipSign" not in header:
        return header.PhotometricInterpretation == "MONOCHROME1"
    return (header.PixelIntensityRelationshipSign == 1) == (float(header.get("RescaleSlope", 1)) > 0)


def hounsfield(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """HU; padding is air, and nothing is below it (ours)."""
    return np.where(padding(stored, header), -1024, np.maximum(modality_values(stored, header), -1024))


def palette_colours(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """float64 0..1 (rows, columns, 3): C.7.6.3.1.5, C.7.6.3.1.6 and C.7.9.2."""
    planes = []
    for name in (f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")):
        count, first, depth = header[f"{name}Descriptor"].value
        if segments := header.get(f"Segmented{name}Data"):
            kind, length, *rest = np.frombuffer(segments, "<u2").tolist()
            assert (kind, rest[length]) == (0, 1)  # these values, then a slope
            steps, end = rest[length + 1 :]
            entries = [*rest[:length], *np.linspace(rest[length - 1], end, steps + 1)[1:]]
        else:
            content = header[f"{name}Data"].value
            entries = np.frombuffer(content, np.uint8 if len(content) <= count + 1 else "<u2")
        planes.append(np.asarray(entries)[np.clip(stored - first, 0, count - 1)] / (2**depth - 1))
    return np.stack(planes, -1)


def luminance(rgb: np.ndarray) -> np.ndarray:
    """ITU-R BT.601."""
    return rgb @ np.array([0.299, 0.587, 0.114])
