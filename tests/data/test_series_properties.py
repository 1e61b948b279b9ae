"""What holds for every made-up series: highdicom agrees on order, spacing and what is a volume; no file breaks it."""

import math

import numpy as np
from highdicom.spatial import get_series_volume_positions
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from lungkit.data import series
from lungkit.data.image import ImageRefused
from lungkit.data.series import Rule
from tests.data.ct_series import change, ct_slice, enhanced, file, files, normal, place, stack, values

EXAMPLES = settings(max_examples=30, deadline=None)


@st.composite
def orientations(draw, most: float = 180.0) -> tuple[float, ...]:
    """Rows and columns of slices that were turned by up to `most` degrees about each axis in turn."""
    turns = [math.radians(draw(st.floats(-most, most))) for _ in range(3)]
    matrix = np.eye(3)
    for axis, angle in enumerate(turns):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = math.cos(angle)
        turn[one, other], turn[other, one] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return (*matrix[:, 0], *matrix[:, 1])


spacings = st.floats(0.5, 10).map(lambda number: round(number, 3))
starts = st.tuples(*[st.floats(-500, 500).map(lambda number: round(number, 1))] * 3)


@st.composite
def stacks(draw, least: int = 2, most: float = 180.0) -> list[Dataset]:
    """Evenly spaced slices in any order."""
    made = stack(draw(st.integers(least, 9)), draw(spacings), draw(orientations(most)), draw(starts))
    return draw(st.permutations(made))


def theirs(made: list[Dataset], **options) -> tuple[float | None, list[int] | None]:
    """highdicom's spacing and place of each slice, along rows times columns."""
    return get_series_volume_positions(made, index_convention="RD", **options)


def ours(made: list[Dataset]) -> series.Series:
    (one,) = series.read(files(made)).series
    return one


def order(one: series.Series) -> list[int]:
    """The place in the list of each slice, in the order of the series."""
    return [int(each.source.removesuffix(".dcm")) for each in one.slices]


@EXAMPLES
@given(stacks())
def test_order_and_spacing_are_those_of_highdicom_in_any_orientation(made):
    spacing, places = theirs(made)
    one = ours(made)
    assert [places[number] for number in order(one)] == list(range(len(made)))
    assert abs(one.spacing[2] - spacing) < 1e-3
    assert one.readable == ("volume" if one.view.endswith("axial") else "refused")


@EXAMPLES
@given(stacks(least=5, most=25), st.data())
def test_missing_slices_are_counted_as_highdicom_counts_them(made, data):
    along = sorted(made, key=lambda each: np.dot(each.ImagePositionPatient, normal(each.ImageOrientationPatient)))
    gone = data.draw(st.sampled_from(along[1:-1]))  # at least half of the distances stay
    made = [each for each in made if each is not gone]
    assert theirs(made) == (None, None)
    spacing, places = theirs(made, allow_missing_positions=True)
    one = ours(made)
    assert one.readable == "slicewise"
    assert abs(one.spacing[2] - spacing) < 1e-3
    assert [places[number] for number in order(one)] == sorted(places)
    (gap,) = [finding.words for finding in one.findings if finding.rule is Rule.GAP]
    assert gap.startswith(f"{max(places) + 1 - len(made)} slice missing between ")


@EXAMPLES
@given(stacks(most=25), st.data())
def test_copies_and_other_slices_at_one_position_are_told_apart(made, data):
    twin = data.draw(st.sampled_from(made))
    other = ct_slice(twin.ImagePositionPatient, twin.ImageOrientationPatient, number=data.draw(st.integers(50, 60)))
    spacing, _ = theirs(made)
    assert theirs([*made, other]) == (None, None)
    copied, mixed = ours([*made, twin]), ours([*made, other])
    assert (copied.readable, len(copied.slices)) == ("volume", len(made))
    assert abs(copied.spacing[2] - spacing) < 1e-3
    assert {finding.rule for finding in copied.findings} >= {Rule.DUPLICATE}
    assert (mixed.readable, mixed.findings[0].rule) == ("refused", Rule.SAME_POSITION)


@EXAMPLES
@given(
    st.integers(3, 9),
    spacings,
    orientations(25),
    st.floats(0, 30),
    st.floats(0, 2 * math.pi),
    st.randoms(use_true_random=False),
)
def test_a_tilted_stack_is_a_volume_up_to_half_a_degree_only(count, spacing, orientation, degrees, turned, rng):
    assume(abs(degrees - 0.5) > 0.05)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    aside = math.tan(math.radians(degrees)) * spacing * (math.cos(turned) * row + math.sin(turned) * column)
    assume(degrees < 0.5 or math.tan(math.radians(degrees)) * spacing * (count - 1) > 0.03)  # more than rounding
    made = stack(count, orientation=orientation, step=normal(orientation) * spacing + aside)
    rng.shuffle(made)
    one = ours(made)
    assert one.readable == ("volume" if degrees < 0.5 else "slicewise")
    if degrees > 2.7:  # highdicom tolerates 2.56 degrees
        assert theirs(made) == (None, None)
    if one.readable == "volume":
        assert [theirs(made)[1][number] for number in order(one)] == list(range(count))


@EXAMPLES
@given(stacks(least=4, most=25), st.data(), st.floats(0.1, 0.45))
def test_a_slice_off_its_place_is_uneven(made, data, share):
    spacing, _ = theirs(made)
    moved = data.draw(st.sampled_from(made))
    across = normal(moved.ImageOrientationPatient)
    assume(share * spacing > 0.1)
    place(moved, np.array(moved.ImagePositionPatient) + share * spacing * across, moved.ImageOrientationPatient)
    assert theirs(made) == (None, None)
    one = ours(made)
    assert one.readable == "slicewise"
    assert Rule.UNEVEN in {finding.rule for finding in one.findings}


@EXAMPLES
@given(stacks(most=25), st.sampled_from(["LOCALIZER", "AXIAL\\SCOUT", "x-localizer"]), st.integers(0, 9))
def test_a_localizer_among_slices_is_set_aside(made, stated, at):
    scout = ct_slice((0, 0, 0), (1, 0, 0, 0, 0, -1), number=77)
    change(scout, ImageType=["ORIGINAL", "PRIMARY", *stated.upper().split("\\")])
    made.insert(min(at, len(made)), scout)
    assert theirs(made) == (None, None)
    contents = series.read(files(made))
    (one,) = contents.series
    assert one.readable == "volume"
    assert [each.rule for each in contents.set_aside] == [Rule.LOCALIZER]
    without = [each for each in made if each is not scout]
    assert abs(one.spacing[2] - theirs(without)[0]) < 1e-3


def test_frames_of_an_enhanced_ct_are_in_the_order_of_the_same_slices_alone():
    rng = np.random.default_rng(3)
    for count in (2, 3, 10, 40):
        slices = stack(count)
        made = [slices[number] for number in rng.permutation(count)]
        spacing, places = theirs(made)
        pixels = np.array([values(number) for number in range(count)])
        (one,) = series.read(file(enhanced([each.ImagePositionPatient for each in made], pixels))).series
        assert [places[each.frame - 1] for each in one.slices] == list(range(count))
        assert one.spacing[2] == spacing


HOSTILE = [file(each) for each in stack(3)] + [
    file(enhanced([(0, 0, number) for number in range(3)], np.array([values(number) for number in range(3)])))
]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_no_bytes_break_it(which, changes, cut):
    listed = [bytearray(content) for content in HOSTILE]
    content = listed[which]
    for place_, value in changes:
        content[132 + int(place_ * (len(content) - 133))] = value
    if cut is not None:
        del content[int(cut * len(content)) :]
    contents = series.read([bytes(each) for each in listed])
    slices = sum(len(one.slices) for one in contents.series)
    assert slices + len(contents.set_aside) >= 3
    for one in contents.series:
        for number in range(len(one.slices)):
            try:
                one.slice(number)
            except ImageRefused as refused:
                assert str(refused)
