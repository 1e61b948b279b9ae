"""Whose image a DICOM header says it is, and when two names can be those of one person."""

import io
import struct

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungkit.data import person, phantom, series
from lungkit.data.person import Person, same_name, stated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # the files are wrong on purpose


@pytest.fixture(scope="module")
def phantom_file(tmp_path_factory):
    cut = phantom.make_patient("p", "Normal", seed=3, slices=3, size=64)[1]
    return phantom.write_dicom(cut, tmp_path_factory.mktemp("person") / "cut.dcm", compressed=False)


@pytest.fixture
def with_header(phantom_file):
    """A function: the bytes of a file whose header says this; `raw` values are written as these bytes."""

    def make(raw: dict[str, bytes] | None = None, **values) -> bytes:
        ds = pydicom.dcmread(phantom_file)
        for keyword, value in values.items():
            setattr(ds, keyword, value)
        marks = {}
        for number, (keyword, content) in enumerate((raw or {}).items()):
            marks[keyword] = f"Q{number}" * ((len(content) + 1) // 2)
            setattr(ds, keyword, marks[keyword])
        stream = io.BytesIO()
        ds.save_as(stream, enforce_file_format=True)
        written = stream.getvalue()
        for keyword, content in (raw or {}).items():
            written = written.replace(marks[keyword].encode(), content + b" " * (len(content) % 2), 1)
        return written

    return make


def test_a_header_says_number_name_birth_year_and_sex(with_header):
    said = stated(with_header(PatientName="MEIER^ANNA^MARIA^^Dr", PatientID=" P-17 ", PatientBirthDate="19610203",
                              PatientSex="F"))  # fmt: skip
    assert said == Person("P-17", ("MEIER^ANNA^MARIA^^Dr",), 1961, "female")
    assert said.name == "ANNA MARIA MEIER"


def test_what_a_header_says_is_not_in_logs(with_header):
    said = stated(with_header(PatientName="Meier^Anna", PatientID="P-17", PatientBirthDate="19610203"))
    assert "Meier" not in repr(said)
    assert "P-17" not in repr(said)
    assert "1961" not in repr(said)


@pytest.mark.parametrize(
    ("charset", "content"),
    [
        (None, "Müller^Jörg".encode()),
        (None, "Müller^Jörg".encode("latin-1")),
        ("ISO_IR 100", "Müller^Jörg".encode("latin-1")),
        ("ISO_IR 192", "Müller^Jörg".encode()),
        ("ISO_IR 192", "Müller^Jörg".encode("latin-1")),  # the header is wrong
        ("no such set", "Müller^Jörg".encode()),
    ],
)
def test_a_name_is_read_in_the_character_set_it_is_written_in(with_header, charset, content):
    values = {"SpecificCharacterSet": charset} if charset else {}
    assert stated(with_header({"PatientName": content}, **values)).names == ("Müller^Jörg",)


def test_every_script_of_a_name_counts(with_header):
    said = stated(with_header(SpecificCharacterSet="ISO_IR 192", PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう"))
    assert said.names == ("Yamada^Tarou", "山田^太郎", "やまだ^たろう")
    for typed in ("Tarou Yamada", "山田太郎", "山田 太郎"):
        assert same_name(said.names, [typed])
    assert not same_name(said.names, ["鈴木太郎"])


@pytest.mark.parametrize(
    ("date", "year"),
    [("19610203", 1961), ("1961.02.03", 1961), ("196102", 1961), ("1961", 1961), ("", None), ("19000101", None),
     ("00010101", None), ("29991231", None), ("61", None), ("XXXXXXXX", None)],
)  # fmt: skip
def test_a_birth_date_gives_its_year_also_where_it_is_partial(with_header, date, year):
    assert stated(with_header({"PatientBirthDate": date.encode()})).birth_year == year


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("", ""),
        ("ANONYMOUS", "ANONYMOUS"),
        ("ANON^CHEST01", "C-1"),
        ("Anonymized^^", "12345"),
        ("De-Identified", "7"),
        ("Patient 17", "17"),
        ("SYNTHETIC^PHANTOM", "demo"),
        ("XXXX^XXX", "XX"),
        ("LIDC-IDRI-0001", "LIDC-IDRI-0001"),
        ("", "9f86d081884c7d659a2feaa0c55ad015"),
        ("", "1.2.826.0.1.3680043.8.498"),
        ("c0ffee00-1111-2222-3333-444455556666", "5"),
        ("Anonymous^CT of the chest", "1"),
        ("anon0007", "2"),
        ("Anon^", "3"),
        ("PSEUDO_3F9A 12", "4"),
        ("", "ANON-0042"),
        ("", "pseudonym of 7"),
    ],
)
def test_a_pseudonym_or_a_placeholder_states_no_one(with_header, name, number):
    assert stated(with_header(PatientName=name, PatientID=number)) == Person()


@pytest.mark.parametrize(
    ("name", "number"), [("Anonuevo^Maria", "445566"), ("Pseudoglou^Anna", "77"), ("Anon^Somchai", "ANONUEVO-7")]
)
def test_a_name_that_begins_like_a_pseudonym_is_compared(with_header, name, number):
    said = stated(with_header(PatientName=name, PatientID=number))
    assert (said.names, said.number) == ((name,), number)


def test_a_long_text_that_is_nearly_a_pseudonym_is_read_at_once():
    for text in ("anon" + "7" * 50_000 + "!x", "anon" + "-7" * 50_000 + "-x", "pseudo " + "a" * 50_000):
        assert not person._PSEUDONYM.fullmatch(text)


def test_a_file_without_identity_states_at_most_the_sex(with_header):
    said = stated(with_header(PatientName="Swan^Grey", PatientID="77", PatientBirthDate="19500101", PatientSex="M",
                              PatientIdentityRemoved="YES"))  # fmt: skip
    assert said == Person(sex="male")


def test_a_number_without_a_name_counts(with_header):
    assert stated(with_header(PatientName="", PatientID="445566")).number == "445566"


@given(st.binary(max_size=400))
def test_no_bytes_fail(content):
    assert stated(content) == Person()


@given(name=st.binary(max_size=64), number=st.binary(max_size=64), terms=st.sampled_from(
    ["", "ISO_IR 100", "ISO_IR 192", "ISO 2022 IR 87", "GB18030", "ISO 2022 IR 149"]))  # fmt: skip
def test_no_value_of_a_header_fails(name, number, terms):
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.SpecificCharacterSet = terms
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    for element, kind, content in ((0x0010, b"PN", name), (0x0020, b"LO", number)):  # as no program would write them
        even = content + b" " * (len(content) % 2)
        stream.write(struct.pack("<HH2sH", 0x0010, element, kind, len(even)) + even)
    said = stated(stream.getvalue())
    assert all(name.isprintable() for name in (said.number, said.name, *said.names))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("MEIER^ANNA", "Anna Meier"),
        ("Meier^Anna^Maria", "Meier, Anna"),
        ("Meier^A", "Anna Maria Meier"),
        ("Meier^Anna^^Dr^Jr", "Prof. Dr. Anna Meier"),
        ("MUELLER^JUERGEN", "Jürgen Müller"),
        ("MULLER^JURGEN", "Jürgen Müller"),
        ("Garcia Lopez^José", "Jose Garcia"),
        ("O'BRIEN^PAT", "Pat O’Brien"),
        ("Łukasik^Zoë", "zoe lukasik"),
        ("ＭＥＩＥＲ^Ａｎｎａ", "Anna Meier"),
        ("Meier^Anna", "Meier"),
    ],
)
def test_ways_to_write_a_name_are_no_difference(one, other):
    assert same_name([one], [other])
    assert same_name([other], [one])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Meier^Anna", "Anna Schmidt"),
        ("Meier^Anna", "Eva Meier"),
        ("Meier^A", "Anna Schmidt"),
        ("Meier^Anna", "Anna"),
        ("Meier^Anna^Maria", "Anna Luise Meier"),
        ("A B", "A C"),
    ],
)
def test_another_family_name_or_given_name_is_a_difference(one, other):
    assert not same_name([one], [other])
    assert not same_name([other], [one])


@given(st.text(max_size=40), st.text(max_size=40))
def test_names_are_compared_both_ways_alike(one, other):
    assert same_name([one], [other]) == same_name([other], [one])


@pytest.fixture
def folder_of(tmp_path):
    """A function: a series of the phantom, each slice with these values in its header."""

    def make(*headers: dict) -> series.Series:
        cuts = phantom.make_patient("p", "Normal", seed=3, slices=len(headers), size=64)
        for cut, values in zip(cuts, headers, strict=True):
            path = phantom.write_dicom(cut, tmp_path / f"{cut.index}.dcm", compressed=False, original=True)
            ds = pydicom.dcmread(path)
            for keyword, value in values.items():
                setattr(ds, keyword, value)
            ds.save_as(path)
        (only,) = series.read(tmp_path).series
        return only

    return make


def test_a_series_says_who_all_its_slices_say(folder_of):
    same = {"PatientName": "Meier^Anna", "PatientID": "P-1"}
    said = person.stated_in(folder_of(same, same | {"PatientName": "MEIER^ANNA"}, {"PatientSex": "F"}))
    assert (said.number, said.name.title(), said.sex, said.mixed) == ("P-1", "Anna Meier", "female", False)


def test_a_series_of_two_people_says_so(folder_of):
    one, other = ({"PatientName": name, "PatientID": "P-1"} for name in ("Meier^Anna", "Schmidt^Bert"))
    assert person.stated_in(folder_of(one, one, other)).mixed
