"""k patients alike: by all of their images together, coarser rather than fewer, and no one left alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungkit.clinic.learning.anonymity import ANY, LEVELS, anonymous


def row(age=45, sex="female", year=2026, view="PA", kind="X-ray") -> dict:
    return {"age": age, "sex": sex, "year": year, "view": view, "kind": kind}


def smallest(found, patients) -> int:
    """The smallest group of patients of whom the same is said."""
    said = {}
    for place, columns in found.rows:
        said.setdefault(patients[place], set()).add(tuple(sorted(columns.items())))
    return min(Counter(map(frozenset, said.values())).values(), default=0)


rows = st.builds(
    row, st.none() | st.integers(0, 105), st.sampled_from(["female", "male", "unknown"]), st.integers(2020, 2026),
    st.sampled_from(["PA", "AP", "unknown"]), st.sampled_from(["CT", "X-ray"]),
)  # fmt: skip


@given(st.lists(st.tuples(rows, st.integers(0, 12)), max_size=40), st.integers(2, 5))
def test_whatever_the_patients_are_no_one_is_alike_with_too_few(given_rows, k):
    columns, patients = [one for one, _ in given_rows], [str(patient) for _, patient in given_rows]
    found = anonymous(columns, patients, k)
    assert smallest(found, patients) == found.smallest
    assert found.smallest == 0 or found.smallest >= k
    assert found.left_out == len(set(patients)) - len({patients[place] for place, _ in found.rows})


def test_patients_who_are_alike_are_told_of_as_finely_as_can_be():
    found = anonymous([row()] * 6, list("abcdef"), 5)
    assert found.rows[0][1] == {"age": "40-49", "sex": "female", "year": "2026", "view": "PA", "kind": "X-ray"}
    assert (found.left_out, found.smallest, found.groups) == (0, 6, 1)
    assert set(found.coarser.values()) == {0}


def test_a_column_that_tells_patients_apart_is_made_coarser_and_the_others_are_not():
    found = anonymous([row(year=2017 + n) for n in range(8)], list("abcdefgh"), 4)
    assert found.left_out == 0
    assert {columns["year"] for _, columns in found.rows} == {ANY}
    assert {columns["age"] for _, columns in found.rows} == {"40-49"}


def test_the_images_of_a_patient_count_together():
    """Each image alone is one of six, but only one patient has both."""
    of_two = [row(view="PA"), row(view="AP")]
    found = anonymous(
        [row(view=view) for view in ["PA"] * 5 + ["AP"] * 5] + of_two, [*map(str, range(10)), "x", "x"], 5
    )
    assert {columns["view"] for _, columns in found.rows} == {ANY} or found.left_out == 1


def test_one_who_is_unlike_all_others_is_left_out():
    found = anonymous([row()] * 40 + [row(kind="CT")], list(map(str, range(41))), 5)
    assert found.left_out == 1
    assert 40 not in {place for place, _ in found.rows}


@pytest.mark.parametrize(("age", "bands"), [(0, "0-9"), (79, "70-79"), (80, "80+"), (104, "80+"), (None, "unknown")])
def test_the_oldest_are_one_group(age, bands):
    assert LEVELS["age"][0](age) == bands


def test_bands_of_every_level_cover_each_age_once():
    for level in LEVELS["age"][:3]:
        said = [level(age) for age in range(110)]
        changes = int((np.array(said[1:]) != np.array(said[:-1])).sum())
        assert changes + 1 == len(set(said))


def test_a_k_below_two_is_refused():
    with pytest.raises(ValueError, match="2 or more"):
        anonymous([row()], ["a"], 1)
