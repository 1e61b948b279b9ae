"""Splits by patient: what is dealt, what is kept as published, and what is refused by name."""

import pandas as pd
import pytest

from lungkit.data import splits


def manifest(*rows):
    """Rows (file, label, patient_id, split[, sha256]); the content is its own unless given."""
    table = pd.DataFrame([(*row, row[0])[:5] if len(row) == 4 else row for row in rows])
    table.columns = ["file", "label", "patient_id", "split", "sha256"]
    return table.assign(note="", source="")


def cohort(patients_per_class=20, images_per_patient=3, classes=("Normal", "Pneumonia"), split=""):
    return manifest(
        *(
            (f"{label}-{patient}-{image}.png", label, f"{label}-{patient}", split)
            for label in classes
            for patient in range(patients_per_class)
            for image in range(images_per_patient)
        )
    )


def test_patients_are_split_70_15_15_within_each_class():
    done = splits.assign(cohort(20), seed=7)
    counts = done.groupby(["label", "split"])["patient_id"].nunique().unstack()
    assert counts.loc["Normal"].to_dict() == {"train": 14, "val": 3, "test": 3}
    assert counts.loc["Pneumonia"].to_dict() == {"train": 14, "val": 3, "test": 3}
    splits.refuse_leaks(done)


def test_another_seed_gives_another_split():
    first, second = (splits.assign(cohort(), seed=seed)["split"] for seed in (1, 2))
    assert (first != second).any()


def test_a_patient_with_very_many_images_does_not_leave_training_empty():
    rows = [(f"a{i}.png", "Normal", "giant", "") for i in range(100)]
    rows += [(f"{p}.png", "Normal", p, "") for p in ("b", "c")] + [(f"{p}.png", "Sick", p, "") for p in ("d", "e", "f")]
    done = splits.assign(manifest(*rows), seed=7)
    assert set(done.loc[done["patient_id"] == "giant", "split"]) == {"train"}
    assert done.groupby("label")["split"].nunique().to_dict() == {"Normal": 3, "Sick": 3}


def test_a_class_with_too_few_patients_is_named():
    rows = cohort(5)
    rows = rows[~rows["patient_id"].isin(["Pneumonia-2", "Pneumonia-3", "Pneumonia-4"])]
    with pytest.raises(splits.SplitError, match="class 'Pneumonia' has images of 2 patient"):
        splits.assign(rows, seed=7)


def test_refused_images_keep_their_mark_and_are_in_no_part():
    rows = cohort()
    rows.loc[0, ["split", "note"]] = [splits.REFUSED, "truncated"]
    done = splits.assign(rows, seed=7)
    assert done.loc[0, ["split", "note"]].tolist() == [splits.REFUSED, "truncated"]
    assert set(done.loc[1:, "split"]) == set(splits.PARTS)


@pytest.mark.parametrize(
    "names", [("official_train", "official_val", "published_test"), ("Training", "valid", "Testing")]
)
def test_a_published_split_is_kept(names):
    rows = pd.concat([cohort(3, split=name).assign(patient_id=lambda t, n=name: t.patient_id + n) for name in names])
    rows["sha256"] = rows["file"] = rows["file"] + rows["split"]
    rows = rows.reset_index(drop=True)
    done = splits.assign(rows, seed=7)
    assert done["split"].tolist() == rows["split"].map(dict(zip(names, splits.PARTS, strict=True))).tolist()


def test_validation_patients_are_taken_from_published_training_only():
    train = cohort(20, split="official_train")
    test = cohort(5, split="official_test").assign(patient_id=lambda t: "t" + t.patient_id)
    test["sha256"] = test["file"] = "t" + test["file"]
    done = splits.assign(pd.concat([train, test], ignore_index=True), seed=7)
    assert (done.loc[len(train) :, "split"] == "test").all()
    taken = done[: len(train)].groupby(["label", "split"])["patient_id"].nunique().unstack()
    assert taken["val"].tolist() == [4, 4]  # 0.15 / 0.85 of 20, per class
    splits.refuse_leaks(done)


def leaking():
    rows = [
        (f"{split}-{label}-{p}.png", label, f"{split}-{p}-{label}", split)
        for split in ("train", "val", "test")
        for label in ("Normal", "Sick")
        for p in range(4)
    ]
    for split in ("train", "val", "test"):
        rows.append((f"{split}-twice.png", "Sick", "person7", split))
    rows += [("train-v.png", "Sick", "person8", "train"), ("val-v.png", "Sick", "person8", "val")]
    return manifest(*rows)


def test_a_patient_on_two_published_sides_is_refused_by_name():
    with pytest.raises(splits.SplitLeak) as caught:
        splits.assign(leaking(), seed=7)
    message = str(caught.value)
    assert "2 patients" in message and "person7 (test: test-twice.png; train: train-twice.png" in message
    assert "person8" in message and "set_aside" in message


def test_set_aside_keeps_test_whole_then_validation():
    done = splits.assign(leaking(), seed=7, overlap="set_aside").set_index("file")
    assert done.loc[["test-twice.png", "val-v.png"], "split"].tolist() == ["test", "val"]
    aside = done[done["split"] == splits.SET_ASIDE]
    assert sorted(aside.index) == ["train-twice.png", "train-v.png", "val-twice.png"]
    assert aside.loc["train-v.png", "note"] == "was train; its patient, or an identical image, is also in val"
    splits.refuse_leaks(done.reset_index())


def test_only_ten_patients_are_spelled_out_and_the_rest_counted():
    rows = manifest(*((f"{s}{p}.png", "ab"[p % 2], f"p{p:02d}", s) for p in range(13) for s in ("train", "test")))
    with pytest.raises(splits.SplitLeak, match=r"13 patients.* and 3 more"):
        splits.assign(rows, seed=7)


def test_byte_identical_files_join_their_patients_transitively():
    rows = manifest(
        ("a.png", "Normal", "p1", "", "x"),
        ("b.png", "Normal", "p2", "", "x"),
        ("c.png", "Normal", "p2", "", "y"),
        ("d.png", "Normal", "p3", "", "y"),
        ("e.png", "Normal", "p4", "", "z"),
    )
    first, *others, alone = splits.groups(rows)
    assert set(others) == {first} and alone != first


def test_identical_files_of_two_patients_on_two_sides_are_a_leak():
    rows = manifest(("a.png", "Normal", "p1", "train", "x"), ("b.png", "Normal", "p2", "test", "x"))
    with pytest.raises(splits.SplitLeak, match=r"p1 = p2 \(test: b.png; train: a.png\)"):
        splits.refuse_leaks(rows)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        (["train", "train", "val"], "no test images"),
        (["test", "test", "val"], "no train images"),
        (["train", "", "test"], "1 of 3 images have no split, b.png"),
        (["train", "fold 2", "test"], "unknown split 'fold 2'"),
    ],
)
def test_an_incomplete_published_split_is_refused(published, message):
    rows = manifest(*((f"{f}.png", "Normal", f, split) for f, split in zip("abc", published, strict=True)))
    with pytest.raises(splits.SplitError, match=message):
        splits.assign(rows, seed=7)


def test_an_unknown_way_with_overlap_is_refused():
    with pytest.raises(splits.SplitError, match="accepted: 'refuse', 'set_aside'"):
        splits.assign(cohort(), seed=7, overlap="ignore")


def test_a_published_split_without_a_patient_of_its_own_to_train_on_is_refused():
    shared = manifest(
        *((f"{label}{side}.png", label, label, side) for label in ("Normal", "Pneumonia") for side in ("train", "test"))
    )
    with pytest.raises(splits.SplitError, match="leaves none to train on"):
        splits.assign(shared, seed=7, overlap="set_aside")


def test_if_setting_aside_empties_validation_it_is_taken_from_training():
    table = cohort(10, 2, split="train")
    tested = manifest(
        *(
            (f"{label}{side}.png", label, f"{label}-t", side)
            for label in ("Normal", "Pneumonia")
            for side in ("val", "test")
        )
    )
    done = splits.assign(pd.concat([table, tested], ignore_index=True), seed=7, overlap="set_aside")
    assert set(done["split"][: len(table)]) == {"train", "val"}
    assert done["split"][len(table) :].tolist() == [splits.SET_ASIDE, "test"] * 2
    splits.refuse_leaks(done)


# --- folds


def test_four_folds_test_every_patient_once_and_each_has_all_three_parts():
    tested = []
    for number in range(1, 5):
        done = splits.assign(cohort(20), seed=7, fold=f"{number}/4")
        splits.refuse_leaks(done)
        assert set(done["split"]) == {"train", "val", "test"}
        tested += sorted(set(done.loc[done["split"] == "test", "patient_id"]))
    assert sorted(tested) == sorted(set(cohort(20)["patient_id"]))


def test_a_fold_has_priority_over_a_published_split():
    done = splits.assign(cohort(20, split="official_train"), seed=7, fold="1/4")
    assert done["split"].value_counts()["test"] == 30


def test_a_split_by_image_puts_a_patient_on_both_sides_and_the_check_finds_it():
    done = splits.assign(cohort(20), seed=7, by="image")
    assert done.groupby("patient_id")["split"].nunique().max() > 1
    with pytest.raises(splits.SplitLeak):
        splits.refuse_leaks(done)


@pytest.mark.parametrize("fold", ["5/4", "0/4", "1/1", "1/21", "first", "1/4/2", "-1/4"])
def test_a_wrong_fold_is_refused_with_what_is_accepted(fold):
    with pytest.raises(splits.SplitError, match="'1/4' for the first of four"):
        splits.assign(cohort(), seed=7, fold=fold)


def test_images_are_split_by_patient_or_by_image_and_nothing_else():
    with pytest.raises(splits.SplitError, match="accepted: patient, image"):
        splits.assign(cohort(), seed=7, by="slice")


# --- several sources


def of_sources(**patients):
    """A manifest of patients with an image each; patients: of each source, (how many normal, how many sick)."""
    tables = []
    for source, (normal, sick) in patients.items():
        rows = [(f"{source}-n{i}.png", "Normal", f"{source}-n{i}", "") for i in range(normal)]
        rows += [(f"{source}-s{i}.png", "Sick", f"{source}-s{i}", "") for i in range(sick)]
        tables.append(manifest(*rows).assign(source=source))
    return pd.concat(tables, ignore_index=True)


def test_each_class_of_each_source_is_in_every_part_in_the_same_shares():
    rows = splits.assign(of_sources(big=(200, 40), small=(20, 60)), seed=7)
    counts = rows.groupby(["source", "label", "split"]).size()
    assert len(counts) == 2 * 2 * 3
    shares = counts / counts.groupby(["source", "label"]).transform("sum")
    for part, share in zip(splits.PARTS, splits.SHARES, strict=True):
        assert shares.xs(part, level="split").to_numpy() == pytest.approx(share, abs=0.05)


def test_a_source_with_one_patient_of_a_class_is_split_if_other_sources_have_enough():
    rows = splits.assign(of_sources(big=(20, 20), small=(1, 20)), seed=7)
    lone = rows[(rows["source"] == "small") & (rows["label"] == "Normal")]
    assert lone["split"].tolist() == ["train"]
    with pytest.raises(splits.SplitError, match="class 'Normal' cannot be in each of train, val, test"):
        splits.assign(of_sources(a=(1, 20), b=(1, 20)), seed=7)


def test_an_image_in_two_sources_is_on_one_side():
    rows = of_sources(a=(20, 20), b=(20, 20))
    rows.loc[rows["file"].isin(["a-n3.png", "b-n7.png"]), "sha256"] = "the same"
    dealt = splits.assign(rows, seed=7)
    assert dealt.loc[dealt["sha256"] == "the same", "split"].nunique() == 1
    splits.refuse_leaks(dealt)


def hospitals(number=3, shared=""):
    """Rows of so many hospitals, each with six patients of both classes; a patient `shared` is in the first two."""
    rows = cohort(6 * number).assign(
        source=[f"hospital {int(name.split('-')[1]) % number}" for name in cohort(6 * number)["patient_id"]]
    )
    if shared:
        first = [rows.index[rows["source"] == f"hospital {of}"][0] for of in (0, 1)]
        rows.loc[first, "patient_id"] = shared
    return rows


def test_folds_by_source_test_each_hospital_whole_and_choose_on_patients_of_the_others():
    rows, tested = hospitals(), []
    for fold in ("1/3", "2/3", "3/3"):
        done = splits.assign(rows, seed=7, fold=fold, by="source")
        sides = done.groupby("split")["source"].agg(set)
        assert len(sides["test"]) == 1 and not sides["test"] & (sides["train"] | sides["val"])
        assert sides["val"] <= sides["train"], "validation patients are of hospitals that are learned from"
        splits.refuse_leaks(done)
        tested += sides["test"]
    assert sorted(tested) == sorted(set(rows["source"]))


def test_hospitals_that_share_a_patient_are_in_one_fold():
    done = splits.assign(hospitals(4, shared="both"), seed=7, fold="1/2", by="source")
    of = done.groupby("source")["split"].agg(lambda sides: (sides == "test").all())
    assert of["hospital 0"] == of["hospital 1"]
    splits.refuse_leaks(done)


def test_a_split_by_source_without_a_fold_or_with_too_few_sources_is_refused():
    with pytest.raises(splits.SplitError, match="needs a fold such as '1/2'"):
        splits.assign(hospitals(), seed=7, by="source")
    with pytest.raises(
        splits.SplitError, match=r"images of 3 source\(s\) only; to be in each of 1, 2, 3, 4 it needs 4"
    ):
        splits.assign(hospitals(), seed=7, fold="1/4", by="source")
