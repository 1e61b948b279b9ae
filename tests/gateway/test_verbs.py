"""`lungkit caller` and `lungkit route`: who may send, and a rule is tried before it is switched on."""

import pytest
from typer.testing import CliRunner

from lungkit import cli
from lungkit.clinic.records import maintenance, routing
from lungkit.clinic.records.store import Store
from lungkit.errors import LungkitError
from lungkit.gateway import inbox
from lungkit.gateway.inbox import Incoming
from tests.gateway.conftest import MODEL


@pytest.fixture
def records() -> Store:
    """The records of the test's own data folder."""
    store = Store()
    maintenance.upgrade(store)
    yield store
    store.close()


def lungkit(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, arguments)
    if isinstance(done.exception, LungkitError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def received(records, chest):
    """A study of SCANNER1."""
    lungkit("caller", "add", "SCANNER1")
    with records.read() as db:
        user_id, title = routing.admitted(db, "SCANNER1", "127.0.0.1")
    for path in sorted(chest.iterdir())[:2]:
        file = Incoming()
        file.write(path.read_bytes())
        inbox.take(records, user_id, title, file)


def test_systems_are_entered_switched_off_and_on(records):
    assert "from 10.1.0.0/16" in lungkit("caller", "add", "SCANNER1", "--network", "10.1.2.3/16")
    lungkit("caller", "off", "SCANNER1")
    assert "off" in lungkit("caller", "list")
    lungkit("caller", "on", "SCANNER1")
    assert " on " in lungkit("caller", "list")
    with pytest.raises(LungkitError, match="no AE title 'OTHER'"):
        lungkit("caller", "off", "OTHER")


def test_a_rule_is_tried_on_a_study_that_was_received_and_then_switched_on(received):
    lungkit("route", "add", "chest CT", "--model", MODEL, "--modality", "CT")
    with pytest.raises(LungkitError, match="try the rule"):
        lungkit("route", "on", "chest CT")
    tried = lungkit("route", "try", "chest CT")
    assert f"this rule: {MODEL}" in tried
    assert "it takes 1 of 1 series" in tried
    lungkit("route", "on", "chest CT")
    assert "modality CT" in lungkit("route", "list")
    lungkit("route", "off", "chest CT")
    lungkit("route", "remove", "chest CT")
    with pytest.raises(LungkitError, match="no rule 'chest CT'"):
        lungkit("route", "on", "chest CT")


def test_a_trial_counts_only_where_the_rule_takes_a_series(received):
    for name, rank, modality in (("first", "1", "CT"), ("late", "2", "CT"), ("other", "1", "DX")):
        lungkit("route", "add", name, "--model", MODEL, "--modality", modality, "--rank", rank)
    lungkit("route", "try", "first")
    lungkit("route", "on", "first")
    for name in ("late", "other"):
        with pytest.raises(LungkitError, match="takes no series"):
            lungkit("route", "try", name)


def test_a_rule_needs_a_model_that_there_is_and_a_trial_a_study(records):
    with pytest.raises(LungkitError):
        lungkit("route", "add", "x", "--model", "no-such-model")
    lungkit("route", "add", "x", "--model", MODEL)
    with pytest.raises(LungkitError, match="no study has been received"):
        lungkit("route", "try", "x")


def test_the_files_of_dicoms_tls_need_its_port(records):
    with pytest.raises(LungkitError, match="need --dicom-port"):
        lungkit("gateway", "--dicom-tls-ca", "ca.pem")
