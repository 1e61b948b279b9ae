"""The colours of every screen, figure and report: safe for colour-blind readers, and dark enough to be read as text.

clinic.css declares the same colours as variables; a test compares both.
"""

INK, QUIET, LINE = "#1c2733", "#566573", "#dfe5ea"  # text, quiet text, rules
PAPER, GROUND = "#ffffff", "#f5f7f9"
ACCENT, WARN, GOOD = "#00589c", "#a33a00", "#00694f"  # as text on PAPER: a contrast of at least 6 to 1
ACCENT_PALE, WARN_PALE, GOOD_PALE = "#e8f1f8", "#fff3ea", "#e6f3ef"  # behind text

# The same meanings on the dark look of the screens.
DARK = {
    "ink": "#e6ebf0",
    "quiet": "#aab6c2",
    "line": "#3b4754",
    "paper": "#1b222a",
    "ground": "#12171c",
    "accent": "#7fbdf0",
    "warn": "#ffab80",
    "good": "#74d3b2",
    "accent-pale": "#1f3548",
    "warn-pale": "#3c2a1f",
    "good-pale": "#1c3830",
}

# Okabe and Ito, "Color Universal Design" (2008). The first four also differ in lightness on white.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, BLACK, YELLOW = SERIES
GREY = "#777777"

# One meaning, one colour, in every figure. A class has the colour at its place in CLASSES together with a marker of its
# own (lungkit.training.plots.STYLES); the parts of a split have others, so that blue is training and never a class.
TRAIN, VALIDATION, TEST = BLUE, VERMILLION, QUIET
SPLITS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
OTHER_SPLIT = "#b5bcc3"  # images that are set aside, refused, or not split
CLASSES = (GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW, BLUE, VERMILLION)
RIGHT, WRONG = GOOD, WARN  # an answer: always with a sign or a word as well
REFERENCE = GREY  # dotted: chance, or a constant prediction
CHOSEN = BLACK  # the epoch, the trial or the threshold that was chosen

# Thirteen even steps of matplotlib's inferno (CC0), from 15 % to 87 % of it: lightness rises all the way. The darker
# part would look like a shadow in the lung, the lighter part like bone.
HEAT = (
    *("#2b0b57", "#450a69", "#5f136e", "#771c6d", "#8f2469", "#a82e5f", "#bf3952"),
    *("#d34743", "#e55c30", "#f1731d", "#f98e09", "#fcaa0f", "#f9c72f"),
)


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour such as "#00589c"."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
