"""labels.csv as spreadsheets and other systems write it: what is read, what is refused by line, what is only odd."""

import csv
import io
import unicodedata

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungkit.data import dataset, labels
from lungkit.data.dataset import DatasetError

PIXELS = np.random.default_rng(7)
FILES = [f"img/{number}.png" for number in range(6)]
ROWS = [(file, ("Normal", "Sick")[number % 2], f"p{number}") for number, file in enumerate(FILES)]


@pytest.fixture
def root(tmp_path):
    """A folder with six pictures below img/, and no table yet."""
    for file in FILES:
        path = tmp_path / "set" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(PIXELS.integers(0, 256, (32, 32), np.uint8)).save(path)
    return tmp_path / "set"


def table(rows=ROWS, header=("file", "label", "patient_id"), separator=",", end="\n", quoting=csv.QUOTE_MINIMAL) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerows([header, *rows])
    return text.getvalue()


def load(root, text: str | bytes):
    (root / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return dataset.load(root)


def found(data) -> dict:
    return {note.finding: note for note in data.notes}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_usual_separator_encoding_and_line_end_gives_the_same_table(root, separator, encoding, end):
    rows = [(*row, "12,5" if separator != "," else "12.5", "mühsam") for row in ROWS]
    text = table(rows, ("file", "label", "patient_id", "age", "remark"), separator, end)
    read, notes = labels.read(_written(root, text.encode(encoding)))
    assert read["file"].tolist() == FILES
    assert set(read["age"]) == {rows[0][3]} and set(read["remark"]) == {"mühsam"}
    assert read.index.tolist() == [2, 3, 4, 5, 6, 7]
    assert notes == []


def _written(root, content: bytes):
    path = root / "labels.csv"
    path.write_bytes(content)
    return path


def test_excels_own_first_line_names_the_separator(root):
    data = load(root, "sep=;\r\n" + table(separator=";", end="\r\n"))
    assert data.classes == ("Normal", "Sick")
    with pytest.raises(DatasetError, match="no label in line 4"):
        load(root, "sep=;\n" + table([ROWS[0], (FILES[1], "", "p1")], separator=";"))


@pytest.mark.parametrize(
    "header",
    [("file", " label", " patient_id "), ("File", "LABEL", "Patient_ID"), ("\ufefffile", "label\xa0", "patient_id")],
)
def test_names_of_columns_may_differ_in_case_and_blanks(root, header):
    assert load(root, table(header=header)).manifest["patient_id"].tolist() == ["p0", "p1", "p2", "p3", "p4", "p5"]


def test_a_table_in_another_encoding_is_refused_with_the_line_and_the_remedy(root):
    text = table([*ROWS[:2], (FILES[2], "Entzündung", "p2")]).encode("cp1252")
    with pytest.raises(DatasetError, match=r"not a CSV table in UTF-8 \(line 4 .*Save As, 'CSV UTF-8'"):
        load(root, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; it needs a first line that names the columns file and label"),
        ("\n\n  \n", "is empty"),
        ("file,label\n", "has no rows"),
        ("file,label\n\n\n", "has no rows"),
        ("image,class\na.png,b\n", "has no column 'file'; it has: image, class"),
        ("file;label\nimg/0.png\n", "no label in line 2"),
        (
            'file,label\nimg/0.png,"Normal\nimg/1.png,Sick\n',
            "a quotation mark is open or out of place in the row of line 2",
        ),
        ("file,label\nimg/0.png,Normal\nimg/1.png,Sick,left\n", "has 3 values in line 3, but names 2 columns"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(root, text, message):
    with pytest.raises(DatasetError, match=r"labels\.csv") as refused:
        load(root, text)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_lines_are_counted_as_an_editor_counts_them(root):
    rows = table([(FILES[0], "Normal", "two\nlines"), ROWS[1]])
    with pytest.raises(DatasetError, match="no file in line 5, 8"):
        load(root, rows + ",,\n\n\n,,\n")
    with pytest.raises(DatasetError, match=r"that is not there in line 5: img/gone\.png"):
        load(root, "\n" + table([(FILES[0], "Normal", "a\nb"), ("img/gone.png", "Sick", "p")])[:-1])


def test_separators_after_the_last_column_are_no_values(root):
    assert len(load(root, "file,label,,\n" + "".join(f"{file},{label},,\n" for file, label, _ in ROWS)).manifest) == 6


def test_paths_of_windows_are_taken(root):
    rows = [(file.replace("/", "\\"), *rest) for file, *rest in ROWS]
    assert load(root, table(rows)).manifest["file"].tolist() == FILES


def test_a_backslash_in_a_name_is_a_backslash(root):
    (root / "a\\b.png").write_bytes((root / FILES[0]).read_bytes())
    assert "a\\b.png" in load(root, table([*ROWS, ("a\\b.png", "Sick", "p")])).manifest["file"].tolist()


@pytest.mark.parametrize(
    "file", ["C:\\scans\\a.png", "\\\\server\\a.png", "..\\a.png", "img/../../a.png", "/etc/passwd"]
)
def test_paths_out_of_the_folder_are_refused_for_any_system(root, file):
    with pytest.raises(DatasetError, match="outside the data set's folder in line 8: ") as refused:
        load(root, table([*ROWS, (file, "Sick", "p")]))
    assert file in str(refused.value)


@pytest.mark.parametrize(("on_disk", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_in_another_unicode_form_is_the_same_file(root, on_disk, written):
    name = "img/Röntgen é.png"
    (root / FILES[0]).rename(root / unicodedata.normalize(on_disk, name))
    data = load(root, table([(unicodedata.normalize(written, name), "Normal", "p0"), *ROWS[1:]]))
    assert data.manifest["width"].tolist() == [32] * 6


def test_missing_files_are_named_with_the_place_where_they_are(root):
    with pytest.raises(DatasetError) as refused:
        load(root, table([(f"gone{number}.png", "Sick", "p") for number in range(5)]))
    assert "that is not there in line 2, 3, 4, 5, 6: gone0.png, gone1.png, gone2.png and 2 more" in str(refused.value)
    with pytest.raises(DatasetError, match=r"There is img/0\.png: give each path as it is below the folder"):
        load(root, table([("0.PNG", "Sick", "p"), *ROWS[1:]]))
    with pytest.raises(DatasetError, match=r"line 2: a\\x00b\.png"):
        load(root, table([("a\0b.png", "Sick", "p"), *ROWS[1:]]))


def test_images_that_the_table_does_not_name_are_noted_and_masks_are_named(root):
    (root / "masks").mkdir()
    (root / "masks" / "0.png").write_bytes((root / FILES[0]).read_bytes())
    (root / "rest.zip").write_bytes(b"PK\x03\x04")
    rows = [(*ROWS[0], "masks/0.png"), *((*row, "") for row in ROWS[1:4])]
    data = load(root, table(rows, ("file", "label", "patient_id", "overlay")))
    note = found(data)["images that labels.csv does not name"]
    assert (note.severity, note.count, note.examples) == ("info", 2, ("img/4.png", "img/5.png"))
    assert found(data)["archives"].examples == ("rest.zip",)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (["7", "007", "7.0", "8", "9", "10"], "'007' and '7' and '7.0'"),
        (["7,0", "7", "8", "9", "10", "11"], "'7' and '7,0'"),
        (["Ann", "ann ", "b", "c", "d", "e"], "'Ann' and 'ann'"),
        (["a b", "a  b", "b", "c", "d", "e"], "'a  b' and 'a b'"),
        (["é", "e\u0301", "b", "c", "d", "f"], "'e\u0301' and 'é'"),
    ],
)
def test_ids_in_two_spellings_are_noted(root, ids, told):
    data = load(root, table([(file, label, name) for (file, label, _), name in zip(ROWS, ids, strict=True)]))
    note = found(data)["patient ids in two spellings"]
    assert (note.severity, note.examples) == ("warning", (told,))


def test_ids_that_are_only_like_numbers_or_distinct_are_not_noted(root):
    ids = ["1", "10", "100", "1.5", "p1", "P10"]
    assert not load(root, table([(f, c, name) for (f, c, _), name in zip(ROWS, ids, strict=True)])).notes


def test_ids_that_a_spreadsheet_rounded_are_noted(root):
    data = load(root, table([(*row[:2], "1.23457E+11") for row in ROWS]))
    assert found(data)["patient ids that a spreadsheet rounded"].examples == ("1.23457E+11",)


@pytest.mark.parametrize("odd", ["two\nlines", "nul\0", "tab\tbed", "\u2028"])
def test_line_breaks_and_control_characters_in_an_id_are_noted_with_the_line(root, odd):
    data = load(root, table([(*ROWS[0][:2], f"a{odd}b"), *ROWS[1:]]))
    note = found(data)["cells with a line break or a control character"]
    assert note.severity == "warning" and "line 2" in note.examples[0]
    assert str(note).isprintable()


def test_columns_of_one_name_are_noted_and_contradictory_ones_prevent_training(root):
    header = ("file", "label", "patient_id", "Label ")
    data = load(root, table([(*row, row[1]) for row in ROWS], header))
    assert found(data)["columns of one name"].severity == "warning"
    data = load(root, table([(*ROWS[0], "Sick"), *((*row, row[1]) for row in ROWS[1:])], header))
    assert found(data)["columns of one name that differ"].examples == ("'label' in line 2",)
    assert data.manifest["label"][0] == "Normal"
    with pytest.raises(DatasetError, match="columns of one name that differ"):
        dataset.load_split(root)


@pytest.mark.parametrize("other", ["normal", "Normal\u200b", "Nor mal", "Ｎormal"])
def test_classes_in_two_spellings_are_named_before_anything_is_trained(root, other):
    data = load(root, table([(FILES[0], other, "p"), *ROWS[1:]]))
    note = found(data)["classes in two spellings"]
    assert note.severity == "error" and "'Normal'" in note.examples[0]
    with pytest.raises(DatasetError, match=r"classes in two spellings: 1 .*'Normal'"):
        dataset.load_split(root)


def test_rows_that_name_a_file_again_are_noted_and_count_once(root):
    data = load(root, table([*ROWS, *ROWS[:2], ROWS[0]]))
    assert len(data.manifest) == 6
    assert found(data)["rows that name a file again"].examples == ("img/0.png", "img/1.png")


def test_a_table_is_found_with_its_name_in_any_case(root):
    (root / "Labels.CSV").write_text(table())
    assert len(dataset.load(root).manifest) == 6


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(
    st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=8),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_csv_writer_wrote_is_read_back_as_it_was(tmp_path_factory, rows, separator, end):
    path = tmp_path_factory.getbasetemp() / "labels.csv"
    path.write_bytes(table(rows, separator=separator, end=end, quoting=csv.QUOTE_ALL).encode())
    read, _ = labels.read(path)
    assert list(read.itertuples(index=False, name=None)) == [tuple(cell.strip() for cell in row) for row in rows]


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"file,label\n" + content)
    try:
        read, _ = labels.read(path)
    except DatasetError as refused:
        assert str(refused).count("\n") == 0
    else:
        assert len(read)
