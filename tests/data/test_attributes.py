"""What is stated of images besides their class: where it comes from, what is left out, and how it becomes groups."""

import numpy as np
import pandas as pd
import PIL.Image
import pydicom
import pytest

from lungkit.data import attributes, dataset, phantom
from lungkit.data.attributes import NO_LESION, NOT_STATED, OTHER
from lungkit.data.notes import DatasetError

PIXELS = np.random.default_rng(7)


@pytest.fixture
def ward(tmp_path):
    """Write labels.csv of 24 patients, one picture each, with further columns; returns the folder."""
    root = tmp_path / "ward"
    root.mkdir()
    names = [f"{number:02d}.png" for number in range(24)]
    for name in names:
        PIL.Image.fromarray(PIXELS.integers(0, 256, (32, 32), np.uint8)).save(root / name)

    def write(**columns):
        table = pd.DataFrame(
            {"file": names, "label": ["ill", "Normal"] * 12, "patient_id": [f"p{n}" for n in range(24)]}
        )
        table.assign(**columns).to_csv(root / "labels.csv", index=False)
        return root

    return write


def stated(root):
    return attributes.of(dataset.as_given(root))


def cut(values, name="x", patients=None):
    values = pd.Series(values, dtype=str)
    found = attributes.grouped(pd.DataFrame({name: values}), np.arange(len(values)) if patients is None else patients)
    return found.table[name], found.how[name]


def counts(values, **options):
    groups, _ = cut(values, **options)
    return {str(name): int(count) for name, count in groups.value_counts(sort=False).items()}


# --- where they come from


def test_further_columns_are_attributes_in_the_manifests_order_and_change_no_fingerprint(ward):
    bare = dataset.as_given(ward()).fingerprint
    sex = ["F", "M", "M"] * 8
    root = ward(sex=sex)
    data = dataset.as_given(root)
    shuffled = data.manifest.sample(frac=1, random_state=1)
    found = attributes.of(data, shuffled)
    assert data.fingerprint == bare
    assert found.table.index.equals(shuffled.index)
    assert found.table["sex"].tolist() == [sex[int(file[:2])] for file in shuffled["file"]]


def test_the_label_itself_is_no_attribute_and_the_usual_label_is_one_where_another_column_is_the_class(ward):
    root = ward(grade=["a", "b", "c"] * 8)
    assert "label" not in stated(root).table
    assert {*attributes.of(dataset.as_given(root, label_column="grade")).table} == {"label"}


def _dicom(root, changes):
    """Phantom slices of four patients, one each, whose headers state something."""
    root.mkdir()
    for number, change in enumerate(changes):
        (cut,) = phantom.make_patient(f"P{number}", "Normal", 7, slices=1, size=64)
        path = phantom.write_dicom(cut, root / f"{number}.dcm", compressed=False)
        header = pydicom.dcmread(path)
        for keyword, value in change.items():
            setattr(header, keyword, value)
        header.save_as(path)
    rows = "\n".join(f"{number}.dcm,{'ab'[number % 2]},P{number}" for number in range(len(changes)))
    (root / "labels.csv").write_text(f"file,label,patient_id\n{rows}\n")
    return root


def test_tags_of_dicom_files_are_attributes_and_none_that_names_a_person(tmp_path):
    changes = [
        {"PatientSex": "F", "PatientAge": "047Y", "ConvolutionKernel": "B70f", "PatientName": "Doe^Ann"},
        {"PatientSex": "M", "PatientAge": "031Y", "ConvolutionKernel": "B30f", "PatientBirthDate": "19500101"},
    ]
    table = stated(_dicom(tmp_path / "scans", changes)).table
    assert table["sex"].tolist() == ["F", "M"]
    assert table["age"].tolist() == ["047Y", "031Y"]
    assert table["convolution kernel"].tolist() == ["B70f", "B30f"]
    text = table.to_string()
    assert "Doe" not in text and "1950" not in text and "P0" not in text


def test_a_column_of_labels_csv_is_believed_before_a_tag(tmp_path):
    root = _dicom(tmp_path / "scans", [{"PatientSex": "F"}, {"PatientSex": "M"}])
    (root / "labels.csv").write_text("file,label,Sex\n0.dcm,a,M\n1.dcm,b,F\n")
    table = stated(root).table
    assert table["Sex"].tolist() == ["M", "F"] and "sex" not in table


def test_the_share_of_the_lesion_is_an_attribute_where_there_are_masks(ward):
    root = ward(mask=["m.png", ""] * 12)
    mask = np.zeros((32, 32), np.uint8)
    mask[:8, :16] = 255
    PIL.Image.fromarray(mask).save(root / "m.png")
    table = stated(root).table
    assert table[attributes.LESION].tolist() == ["0.125000", NO_LESION] * 12


def test_rows_of_one_file_that_contradict_each_other_count_as_not_stated(ward):
    root = ward(sex="M", side=["left", "right"] * 12)
    with (root / "labels.csv").open("a") as file:
        file.write("03.png,Normal,p3,F,right\n")
    found = stated(root)
    assert found.table["sex"].tolist() == ["M"] * 3 + [""] + ["M"] * 20
    assert found.table["side"][3] == "right"
    (doubt,) = [note for note in found.notes if note.severity == "warning"]
    assert doubt.count == 1 and "03.png: sex" in str(doubt)


# --- what is left out


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("patient_name", ["Ann", "Bob"] * 12),
        ("Birth Date", ["1950", "1960"] * 12),
        ("study_id", ["1", "2"] * 12),
        ("seen", ["2020-03-01", "2020-04-02"] * 12),
        ("remark", [f"said {number}" for number in range(24)]),
        ("case", [str(100 + number) for number in range(24)]),
    ],
)
def test_what_could_identify_a_person_forms_no_group_and_a_note_says_so(ward, name, values):
    found = stated(ward(**{name: values}))
    assert name not in found.table
    assert any(
        note.finding == "columns that could identify a person or a file" and name in str(note) for note in found.notes
    )


def test_what_only_sounds_like_a_name_is_kept(ward):
    kept = {"patient_age": [str(20 + n % 9) for n in range(24)], "severity": ["CT-1", "CT-2"] * 12}
    assert {*kept} <= {*stated(ward(**kept)).table}


def test_a_column_with_one_value_is_named_and_left_out(ward):
    found = stated(ward(country="Norway"))
    assert "country" not in found.table
    assert any(
        note.finding == "columns with one value for all images" and "country" in str(note) for note in found.notes
    )


# --- how they are cut


def test_many_different_numbers_become_thirds_and_a_few_stay_as_they_are():
    values = [f"{number}" for number in range(30)]
    assert list(counts(values).values()) == [10, 10, 10]
    assert cut(values)[1] == "thirds of the images by its values"
    assert counts(["1", "2", "3"] * 10) == {"1": 10, "2": 10, "3": 10}


def test_numbers_with_many_equal_ones_have_no_empty_third():
    groups = counts(["0"] * 20 + [f"{number}" for number in range(1, 11)])
    assert groups == {"0": 20, "over 0": 10}


def test_ages_become_decades_whose_ends_hold_ten_patients():
    ages = [
        f"{age:03d}Y" for age in (3, 15, 18, *range(20, 30), *range(40, 50), *range(60, 64), 71, 72, 73, 80, 85, 97)
    ]
    assert counts(ages, name="patient_age") == {"under 30": 13, "40–49": 10, "60 and over": 10}
    twice = [*ages, *ages]
    owners = [*range(len(ages))] * 2
    assert [*counts(twice, name="age", patients=owners)] == ["under 30", "40–49", "60 and over"]  # patients, not images


def test_an_age_that_nobody_reaches_is_not_stated():
    groups = counts([*[str(30 + n % 10) for n in range(20)], *[str(50 + n % 10) for n in range(20)], "413"], name="age")
    assert groups == {"under 40": 20, "50 and over": 20, "413": 1} or groups[NOT_STATED] == 1


def test_rare_values_are_joined_and_counted_and_missing_ones_are_a_group():
    values = ["PA"] * 20 + ["AP"] * 10 + ["LL", "RL", "XTABLE"] + [""] * 7
    groups, how = cut(values)
    assert groups.value_counts(sort=False).to_dict() == {"AP": 10, "PA": 20, OTHER: 3, NOT_STATED: 7}
    assert how == "values as stated; 3 rare values joined as other"


def test_a_single_rare_value_keeps_its_name():
    assert counts(["CT-10"] * 8 + ["CT-2"] * 9 + ["CT-4"] * 2) == {"CT-2": 9, "CT-4": 2, "CT-10": 8}


def test_what_is_rare_is_counted_in_patients_and_not_in_images():
    values, patients = ["a"] * 10 + ["b"] * 40 + ["c"] * 40, [*range(10), *[10] * 40, *[11] * 40]
    assert counts(values, patients=patients) == {"a": 10, OTHER: 80}


def test_values_that_differ_in_case_and_blanks_are_one():
    assert counts(["Supine"] * 9 + ["supine "] * 6 + ["prone"] * 8) == {"prone": 8, "Supine": 15}


def test_chosen_attributes_are_found_whatever_their_case_and_an_unknown_one_names_those_there_are():
    table = pd.DataFrame({"slice thickness": ["1", "5"] * 5, "sex": ["F", "M"] * 5})
    groups = attributes.grouped(table, np.arange(10))
    assert [*groups.chosen(["Slice_Thickness"]).table] == ["slice thickness"]
    assert groups.chosen(["sex", "all"]) is groups
    with pytest.raises(DatasetError, match="no attribute 'colour'; there are: all, slice thickness, sex"):
        groups.chosen(["sex", "colour"])
