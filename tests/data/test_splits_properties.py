"""What holds for any cohort: whole groups, every image placed, every class everywhere, no matter the order of rows."""

import numpy as np
import pandas as pd
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lungkit.data import splits

CLASSES = ("Covid", "Normal", "Pneumonia")


@st.composite
def cohorts(draw, least=3, most=25, size=8, twins=True):
    """Patients of one class each, with 1 to `size` images; some images are byte-identical between patients."""
    rows = []
    for label in CLASSES[: draw(st.integers(2, 3))]:
        for patient, count in enumerate(draw(st.lists(st.integers(1, size), min_size=least, max_size=most))):
            rows += [(f"{label}/{patient}/{image}.png", label, f"{label}{patient}") for image in range(count)]
    table = pd.DataFrame(rows, columns=["file", "label", "patient_id"]).assign(split="", note="", source="")
    table["sha256"] = table["file"]
    if twins:
        place = st.integers(0, len(table) - 1)
        for a, b in draw(st.lists(st.tuples(place, place), max_size=3)):
            table.loc[a, "sha256"] = table.loc[b, "sha256"]
    return table


def enough_groups(table):
    group = splits.groups(table)
    owners = pd.Series(group).groupby(table["label"].to_numpy()).nunique()
    mixed = pd.Series(table["label"].to_numpy()).groupby(group).nunique().gt(1).sum()
    return owners.min() - mixed >= 3


@settings(max_examples=60, deadline=None)
@given(cohorts(), st.integers(0, 1000))
def test_every_image_is_placed_groups_stay_whole_and_every_part_has_every_class(table, seed):
    assume(enough_groups(table))
    done = splits.assign(table, seed=seed)
    assert set(done["split"]) == set(splits.PARTS)
    assert done["split"].groupby(splits.groups(table)).nunique().max() == 1
    assert done["split"].groupby(done["patient_id"]).nunique().max() == 1
    assert (done.groupby("label")["split"].nunique() == 3).all()
    splits.refuse_leaks(done)


@settings(max_examples=60, deadline=None)
@given(cohorts(), st.randoms(use_true_random=False), st.integers(0, 1000))
def test_the_order_of_rows_changes_nothing(table, random, seed):
    assume(enough_groups(table))
    order = random.sample(range(len(table)), len(table))
    shuffled = table.iloc[order].reset_index(drop=True)
    first = splits.assign(table, seed=seed).set_index("file")["split"]
    second = splits.assign(shuffled, seed=seed).set_index("file")["split"]
    assert second[first.index].tolist() == first.tolist()


@settings(max_examples=40, deadline=None)
@given(cohorts(least=40, most=80, size=6, twins=False), st.integers(0, 1000))
def test_with_many_patients_each_class_comes_near_70_15_15(table, seed):
    done = splits.assign(table, seed=seed)
    share = done.groupby("label")["split"].value_counts(normalize=True).unstack()[list(splits.PARTS)]
    assert np.abs(share.to_numpy() - (0.7, 0.15, 0.15)).max() < 0.04


@settings(max_examples=60, deadline=None)
@given(cohorts(least=6), st.data())
def test_any_published_split_can_be_cleaned_by_setting_aside(table, data):
    parts = data.draw(st.lists(st.sampled_from(splits.PARTS), min_size=len(table), max_size=len(table)))
    table["split"] = parts
    sides = table["split"].groupby(splits.groups(table)).agg(set)
    assume({"train"} in sides.tolist())  # without such a patient nothing is left to train on
    assume("test" in parts and any("val" in side and "test" not in side for side in sides))
    done = splits.assign(table, seed=7, overlap="set_aside")
    splits.refuse_leaks(done)
    published = table["split"]
    assert (done["split"][published == "test"] == "test").all()
    moved = done["split"] != published
    assert (done["split"][moved] == splits.SET_ASIDE).all() and (done["note"][moved] != "").all()
    group = splits.groups(table)
    kept_elsewhere = set(group[~moved])
    assert set(group[moved]) <= kept_elsewhere
