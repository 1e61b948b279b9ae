"""API keys: what is stored of them, what they allow, and that a refused one is refused at the next transaction."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from lungkit.clinic.records import accounts, audit_trail, keys
from lungkit.clinic.records.accounts import Forbidden, SignInRefused
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.keys import KeyAccess, KeyRefused
from lungkit.clinic.records.tables import ApiKey, User, now
from lungkit.clinic.web import supervisor
from lungkit.errors import LungkitError
from tests.clinic.rows import events, everything

pytestmark = pytest.mark.usefixtures("cheap_passwords")


@pytest.fixture
def make_key(store):
    """A function: a new key of a program."""

    def make(*scopes: str, name: str = "pacs", **more) -> str:
        with store.write() as db:
            return keys.add_key(db, name, list(scopes or ("predict", "read")), **more)

    return make


def _change(store, **values) -> None:
    with store.write() as db:
        db.execute(sa.update(ApiKey).values(**values))


def test_only_a_hash_of_the_secret_is_stored(store, make_key):
    key = make_key()
    _, key_id, secret = key.split("_", 2)
    assert len(secret) == 43  # 32 random bytes
    stored = str(everything(store))
    assert key_id in stored
    assert secret not in stored


def test_each_key_of_a_program_is_another_one_of_the_same_account(store, make_key):
    assert make_key() != make_key("admin")
    with store.read() as db:
        assert db.scalars(sa.select(User.role)).all() == ["program"]
        assert [row.scopes for row in keys.list_keys(db)] == [("predict", "read"), ("admin",)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scopes": ["predict", "everything"]}, "no scope 'everything'; there are: predict, read, admin"),
        ({"scopes": []}, "a key needs a scope"),
        ({"days": 0}, "accepted are more than 0 and at most 3650"),
        ({"days": float("nan")}, "accepted are more than 0"),
        ({"per_minute": 0}, "accepted are 1 to"),
        ({"name": "no name!"}, "cannot be a user name"),
        ({"name": "anna"}, "a person's user name"),
    ],
)
def test_a_key_that_cannot_be_made_is_refused_with_what_would_be_accepted(store, changes, said):
    with store.write() as db:
        accounts.add_user(db, "anna", "Anna Test", "admin")
    before = everything(store)
    with pytest.raises(LungkitError, match=said), store.write() as db:
        keys.add_key(db, **{"name": "pacs", "scopes": ["read"]} | changes)
    assert everything(store) == before


# --- a program is no person


def test_a_program_cannot_sign_in_or_be_given_a_password_or_a_role(store, make_key):
    make_key()
    for password in ("", keys.NO_PASSWORD, "!" * 20):
        with pytest.raises(SignInRefused, match=accounts.REFUSED):
            accounts.sign_in(store, "pacs", password, "192.0.2.1")
    for change in (
        lambda db: accounts.reset_password(db, "pacs"),
        lambda db: accounts.set_role(db, "pacs", "admin"),
        lambda db: accounts.enable_user(db, "pacs"),
    ):
        with pytest.raises(LungkitError, match="no user 'pacs'"), store.write() as db:
            change(db)
    with pytest.raises(LungkitError, match="no role 'program'"), store.write() as db:
        accounts.add_user(db, "other", "Other", "program")


def test_people_do_not_see_programs_and_cannot_take_their_names(store, make_key):
    make_key()
    with store.write() as db:
        assert accounts.list_users(db) == []
        with pytest.raises(LungkitError, match="a user 'pacs' already"):
            accounts.add_user(db, "pacs", "Paula", "doctor")


def test_the_only_admin_stays_the_only_one_when_there_are_programs(store, make_key):
    make_key("admin")
    with store.write() as db:
        accounts.add_user(db, "chief", "Chief", "admin")
    with pytest.raises(LungkitError, match="only admin"), store.write() as db:
        accounts.disable_user(db, "chief")


def test_the_clinic_does_not_open_for_programs_alone(sqlite_store, monkeypatch):
    with sqlite_store.write() as db:
        keys.add_key(db, "pacs", ["admin"])
    monkeypatch.setenv("LUNGKIT_DATABASE", str(sqlite_store.url))
    with pytest.raises(LungkitError, match="no one can sign in yet"):
        supervisor._ready()


# --- each transaction asks again


def test_a_key_is_looked_up_again_in_each_transaction(store, make_key):
    access = KeyAccess(store, make_key(), "read")
    with access.reads("program") as (_, actor):
        assert (actor.name, actor.role, actor.sees_all) == ("pacs", "program", False)
    with store.write() as db:
        keys.revoke_key(db, actor.session_id)
    for transaction in (access.reads, access.writes):
        with pytest.raises(KeyRefused), transaction():
            raise AssertionError("not reached")


@pytest.mark.parametrize("values", [{"expires_at": now() - timedelta(seconds=1)}, {"revoked_at": now()}])
def test_an_expired_or_revoked_key_is_refused(store, make_key, values):
    access = KeyAccess(store, make_key(), "read")
    access.limits()
    _change(store, **values)
    with pytest.raises(KeyRefused, match="expired or revoked"):
        access.limits()


def test_a_key_that_is_wrong_in_any_part_is_refused_with_the_same_words(store, make_key):
    key = make_key()
    other = make_key(name="ris")
    wrong = ["", "lk_", key[:-1], key + "A", key.upper(), key.replace("lk_", "kl_"), "lk_" + "0" * 12 + key[15:],
             key[:15] + other[15:], key[:16] + other[16:], key + "\n"]  # fmt: skip
    for text in wrong:
        with pytest.raises(KeyRefused) as refused:
            KeyAccess(store, text, "read").limits()
        assert str(refused.value) == keys.REFUSED


def test_a_key_of_another_scope_is_refused(store, make_key):
    with pytest.raises(Forbidden, match="needs a key with the scope predict"):
        KeyAccess(store, make_key("read", "admin"), "predict").limits()


def test_a_program_cannot_do_what_only_doctors_may(store, make_key):
    records = Records(KeyAccess(store, make_key("predict", "read", "admin"), "read"))
    for action in (records.worklist, lambda: records.find_patients(""), lambda: records.review("x", "y")):
        with pytest.raises(Forbidden, match="role doctor"):
            action()


def test_the_last_use_is_noted_and_not_more_than_once_a_minute(store, make_key):
    access = KeyAccess(store, make_key(), "read")
    access.limits()
    with store.read() as db:
        (first,) = keys.list_keys(db)
    assert now() - first.last_used_at < timedelta(minutes=1)
    access.limits()
    with store.read() as db:
        assert keys.list_keys(db)[0].last_used_at == first.last_used_at


def test_making_and_revoking_are_on_the_trail_and_refusals_cannot_fill_it(store, make_key):
    key = make_key()
    for _ in range(5):
        for text in (key, "lk_nonsense", "lk_" + "0" * 12 + "_" + "A" * 43):
            with pytest.raises((KeyRefused, Forbidden)):
                KeyAccess(store, text, "admin").limits()
    key_id = key.split("_")[1]
    with store.write() as db:
        keys.revoke_key(db, key)  # the whole key, as someone who has just leaked it may paste it
        keys.revoke_key(db, key_id)
    assert [(event.action, event.object) for event in events(store)] == [
        ("key.add", f"key:{key_id}"),
        ("key.refused", f"key:{key_id}"),
        ("key.refused", "key:unknown"),
        ("key.revoke", f"key:{key_id}"),
    ]
    assert audit_trail.verify(store) == 4
    assert key.split("_", 2)[2] not in str([event.detail for event in events(store)])


def test_a_key_that_is_not_there_cannot_be_revoked(store):
    with pytest.raises(LungkitError, match="no key 'abc'; `lungkit key list`"), store.write() as db:
        keys.revoke_key(db, "abc")
