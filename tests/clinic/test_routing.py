"""Who may send as DICOM, which model reads what came, and where results go."""

import pytest

from lungkit.clinic.records import routing
from lungkit.clinic.records.routing import CallerRefused, Facts, Rule
from lungkit.errors import LungkitError
from tests.clinic.rows import events

CT = Facts("SCANNER1", "CT", "CHEST", ("CT Thorax native", "Lung 1.0"))


@pytest.fixture
def db(store):
    with store.write() as db:
        yield db


@pytest.mark.parametrize(
    ("conditions", "fits"),
    [
        ({}, True),
        ({"caller": "scanner1", "modality": "ct", "body_part": "Chest", "description": "thorax"}, True),
        ({"description": "NATIVE lung"}, True),
        ({"caller": "SCANNER2"}, False),
        ({"modality": "DX"}, False),
        ({"body_part": "CHESTABDPELVIS"}, False),
        ({"description": "abdomen"}, False),
    ],
)
def test_a_rule_fits_a_series_that_fulfils_all_its_conditions(conditions, fits):
    assert Rule(name="r", model="m", **conditions).fits(CT) is fits


def test_the_first_active_rule_that_fits_counts(db):
    for name, rank in (("late", 20), ("early", 10), ("first but off", 1)):
        row = routing.add_route(db, Rule(name=name, model="lung", rank=rank))
        if name != "first but off":
            routing.note_trial(db, row.id)
            routing.set_route(db, row.id, True)
    assert routing.route_for(routing.list_routes(db), CT).rule.name == "early"


def test_a_rule_is_tried_before_it_is_switched_on_and_again_after_each_change(db):
    row = routing.add_route(db, Rule(name="chest", model="lung"))
    with pytest.raises(LungkitError, match="try the rule 'chest'"):
        routing.set_route(db, row.id, True)
    routing.note_trial(db, row.id)
    routing.set_route(db, row.id, True)
    changed = routing.change_route(db, row.id, Rule(name="chest", model="other"))
    assert (changed.active, changed.tried_at) == (False, None)
    with pytest.raises(LungkitError, match="try the rule"):
        routing.set_route(db, row.id, True)


@pytest.mark.parametrize(
    "wrong",
    [{"name": ""}, {"model": " "}, {"priority": "page"}, {"rank": -1}, {"caller": "A" * 17}, {"description": "a\x00b"}],
)
def test_a_rule_that_cannot_be_is_refused(wrong):
    with pytest.raises(LungkitError):
        Rule(**{"name": "r", "model": "m"} | wrong)


def test_a_rule_names_only_destinations_that_there_are(db):
    with pytest.raises(LungkitError, match="no destination 7"):
        routing.add_route(db, Rule(name="r", model="m", destinations=(7,)))


def test_only_systems_that_were_entered_may_send(db):
    entered = routing.add_caller(db, "SCANNER1", ["10.1.2.3/16"])
    assert entered.networks == ("10.1.0.0/16",)
    _, title = routing.admitted(db, "SCANNER1 ", "10.1.9.9")
    assert title == "SCANNER1"
    assert routing.admitted(db, "SCANNER1", "::ffff:10.1.9.9")[1] == "SCANNER1"
    for title, address in (
        ("scanner1", "10.1.9.9"),
        ("OTHER", "10.1.9.9"),
        ("SCANNER1", "10.2.0.1"),
        ("SCANNER1", "?"),
    ):
        with pytest.raises(CallerRefused):
            routing.admitted(db, title, address)
    routing.set_caller(db, entered.id, active=False)
    with pytest.raises(CallerRefused):
        routing.admitted(db, "SCANNER1", "10.1.9.9")


def test_titles_that_differ_in_signs_only_are_systems_of_their_own(db):
    for title in ("CT_1", "CT-1", "CT 1", "ct-1"):
        routing.add_caller(db, title)
    accounts = {routing.admitted(db, row.ae_title, "127.0.0.1")[0] for row in routing.list_callers(db)}
    assert len(accounts) == 4


@pytest.mark.parametrize("title", ["", "   ", "A" * 17, "BACK\\SLASH", "new\nline", "ÄÖ"])
def test_an_ae_title_that_dicom_does_not_allow_is_refused(db, title):
    with pytest.raises(LungkitError, match="AE title"):
        routing.add_caller(db, title)


@pytest.mark.parametrize(
    ("kind", "address", "objects", "words"),
    [
        ("dicom", {"host": "pacs"}, (), "needs port, ae_title"),
        ("dicom", {"host": "pacs", "port": 0, "ae_title": "PACS"}, (), "port 0"),
        ("dicom", {"host": "pacs", "port": 104, "ae_title": "PACS", "password": "x"}, (), "no 'password'"),
        ("stow", {"url": "file:///etc/passwd"}, (), "no address of a web server"),
        ("stow", {"url": "https://user:secret@pacs/"}, (), "no address of a web server"),
        ("fhir", {"url": "https://fhir/"}, ("report",), "cannot get 'report'"),
        ("mail", {}, (), "kind 'mail'"),
    ],
)
def test_a_destination_that_cannot_be_is_refused(db, kind, address, objects, words):
    with pytest.raises(LungkitError, match=words):
        routing.add_destination(db, "there", kind, address, objects)


def test_a_destination_in_use_stays_and_changes_are_on_the_trail(store):
    with store.write() as db:
        pacs = routing.add_destination(db, "PACS", "dicom", {"host": "h", "port": 104, "ae_title": "PACS"})
        assert pacs.objects == ("report", "capture")
        rule = routing.add_route(db, Rule(name="r", model="m", destinations=(pacs.id,)))
        with pytest.raises(LungkitError, match="used by the rule 'r'"):
            routing.remove_destination(db, pacs.id)
        routing.remove_route(db, rule.id)
        routing.remove_destination(db, pacs.id)
        assert routing.list_destinations(db) == []
    actions = [event.action for event in events(store)]
    assert actions[-4:] == ["destination.add", "route.add", "route.remove", "destination.remove"]
