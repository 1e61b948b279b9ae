"""Every reading of test images is counted, by the images' content and by nothing that can be renamed."""

from lungkit import config
from lungkit.training import looks


def _count(images, model="m@v1", data="set"):
    looks.count(images, model, data, "lungkit evaluate")


def test_images_that_were_never_read_have_no_look():
    assert looks.of(["a", "b"]) == []


def test_a_look_says_when_by_what_and_with_which_model():
    _count(["a", "b"])
    (look,) = looks.of(["a", "b"])
    assert (look.model, look.data, look.images, look.by, look.counts) == ("m@v1", "set", 2, "lungkit evaluate", True)
    assert look.at.endswith("+00:00")


def test_another_model_another_name_of_the_set_and_another_order_begin_no_new_count():
    _count(["a", "b"])
    _count(["b", "a"], model="other@v7", data="renamed")
    assert [look.model for look in looks.of(["a", "b"])] == ["m@v1", "other@v7"]
    assert len(list(config.looks_dir().glob("*.jsonl"))) == 1


def test_a_test_part_that_shares_an_image_shares_its_looks_and_another_does_not():
    _count(["a", "b"])
    assert len(looks.of(["b", "c", "d"])) == 1
    assert looks.of(["c", "d"]) == []


def test_lines_are_only_added():
    _count(["a"])
    (ledger,) = config.looks_dir().glob("*.jsonl")
    before = ledger.read_bytes()
    _count(["a"])
    assert ledger.read_bytes().startswith(before)
    assert len(ledger.read_bytes()) > len(before)


def test_a_line_that_a_killed_process_left_half_counts_as_a_look_and_spoils_no_other():
    _count(["a"])
    (ledger,) = config.looks_dir().glob("*.jsonl")
    with ledger.open("a") as file:
        file.write('{"at": "2026-')
    _count(["a"], model="later@v1")
    found = looks.of(["a"])
    assert [look.counts for look in found] == [True, True, True]
    assert [look.model for look in found if look.at] == ["m@v1", "later@v1"]


def test_reading_no_image_counts_nothing():
    _count([])
    assert not config.looks_dir().exists()
