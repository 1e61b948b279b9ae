"""People and sessions: who gets in, who is slowed down, and who may act, asked again at each action."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import argon2
import pytest
import sqlalchemy as sa

from lungkit.clinic.records import accounts, audit_trail
from lungkit.clinic.records.accounts import Access, Forbidden, SignedOut, SignInRefused
from lungkit.clinic.records.tables import AuditEvent, SignIn, SignInFailure, User, now
from lungkit.errors import LungkitError

pytestmark = pytest.mark.usefixtures("cheap_passwords")

HERE, ELSEWHERE = "192.0.2.7", "198.51.100.9"
PASSWORD = "quiet river 41"


@pytest.fixture
def anna(store):
    """A doctor with a known password."""
    with store.write() as db:
        accounts.add_user(db, "anna", "Anna Test", "doctor", PASSWORD)
        accounts.add_user(db, "chief", "Chief Test", "admin", PASSWORD)
    return "anna"


@pytest.fixture
def token(store, anna) -> str:
    return accounts.sign_in(store, anna, PASSWORD, HERE)


def _fail(store, times: int, name: str = "anna", address: str = ELSEWHERE, known: str = "") -> list[SignInRefused]:
    refused = []
    for _ in range(times):
        with pytest.raises(SignInRefused) as caught:
            accounts.sign_in(store, name, "wrong password 1", address, known)
        refused.append(caught.value)
    return refused


def _earlier(store, table, column: str, by: timedelta) -> None:
    """As if all rows of the table had been written that much earlier."""
    with store.write() as db:
        for row in db.scalars(sa.select(table)):
            setattr(row, column, getattr(row, column) - by)


def _events(store, *, action: str = "") -> list[AuditEvent]:
    with store.read() as db:
        rows = db.scalars(sa.select(AuditEvent).order_by(AuditEvent.number)).all()
    return [row for row in rows if row.action.startswith(action)]


# --- signing in


def test_the_right_password_signs_in(store, anna):
    actor = accounts.whoami(store, accounts.sign_in(store, "  ANNA ", PASSWORD, HERE))
    assert (actor.name, actor.full_name, actor.role) == ("anna", "Anna Test", "doctor")


def test_a_password_may_be_typed_with_composed_or_separate_accents(store, anna):
    with store.write() as db:
        accounts.reset_password(db, "anna", "prüfung früh um 7")
    assert accounts.sign_in(store, "anna", "prüfung früh um 7", HERE)


def test_only_hashes_of_token_and_password_are_stored(store, token):
    with store.read() as db:
        session, user = db.scalar(sa.select(SignIn)), db.scalar(sa.select(User).where(User.name == "anna"))
        kept = str([vars(row) for row in (session, user, *db.scalars(sa.select(AuditEvent)))])
    assert token not in kept
    assert PASSWORD not in kept
    assert user.password_hash.startswith("$argon2id$")
    assert len(token) >= 43  # 32 random bytes


def test_unknown_name_wrong_password_and_disabled_account_are_refused_in_the_same_words(store, anna):
    with store.write() as db:
        accounts.add_user(db, "gone", "Gone Test", "doctor", PASSWORD)
        accounts.disable_user(db, "gone")
    answers = set()
    for name, password in (("nobody", PASSWORD), ("anna", "wrong password 1"), ("gone", PASSWORD), ("", "")):
        with pytest.raises(SignInRefused) as caught:
            accounts.sign_in(store, name, password, HERE)
        answers.add((str(caught.value), caught.value.wait_seconds))
    assert answers == {(accounts.REFUSED, 0)}


def test_an_unknown_name_costs_the_same_work_as_a_wrong_password(store, anna, monkeypatch):
    looked_at = []
    hasher = accounts._hasher

    class Counting:
        hash, check_needs_rehash = hasher.hash, hasher.check_needs_rehash

        def verify(self, hashed, password):
            looked_at.append(argon2.extract_parameters(hashed))
            return hasher.verify(hashed, password)

    monkeypatch.setattr(accounts, "_hasher", Counting())
    accounts._no_ones_hash.cache_clear()
    for name in ("anna", "nobody"):
        _fail(store, 1, name)
    accounts._no_ones_hash.cache_clear()
    assert len(looked_at) == 2
    assert looked_at[0] == looked_at[1]


def test_no_transaction_is_open_while_a_password_is_checked(store, anna, monkeypatch):
    hasher = accounts._hasher
    seen = []

    class Slow:
        hash, check_needs_rehash = hasher.hash, hasher.check_needs_rehash

        def verify(self, hashed, password):
            with store.write() as db:  # would wait for the sign-in's own transaction, and fail
                seen.append(db.scalar(sa.select(sa.func.count()).select_from(User)))
            return hasher.verify(hashed, password)

    monkeypatch.setattr(accounts, "_hasher", Slow())
    assert accounts.sign_in(store, "anna", PASSWORD, HERE)
    assert seen == [2]


def test_an_account_disabled_while_its_password_is_checked_is_refused(store, anna, monkeypatch):
    right = accounts._matches

    def matches(user, password):
        with store.write() as db:
            accounts.disable_user(db, "anna")
        return right(user, password)

    monkeypatch.setattr(accounts, "_matches", matches)
    with pytest.raises(SignInRefused):
        accounts.sign_in(store, "anna", PASSWORD, HERE)


def test_a_hash_with_old_parameters_is_renewed_at_the_next_sign_in(store, anna, monkeypatch):
    stronger = argon2.PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    monkeypatch.setattr(accounts, "_hasher", stronger)
    accounts.sign_in(store, "anna", PASSWORD, HERE)
    with store.read() as db:
        assert not stronger.check_needs_rehash(db.scalar(sa.select(User.password_hash).where(User.name == "anna")))
    assert accounts.sign_in(store, "anna", PASSWORD, HERE)


def test_passwords_are_hashed_with_the_libraries_defaults(monkeypatch):
    monkeypatch.undo()
    assert accounts._hasher.memory_cost >= 46 * 1024  # KiB: what OWASP asks of argon2id with one pass
    assert accounts._hasher.type is argon2.Type.ID


# --- slowing down who guesses


def test_the_sixth_guess_for_a_name_has_to_wait_and_the_wait_doubles(store, anna):
    assert [refused.wait_seconds for refused in _fail(store, 5)] == [0] * 5
    (sixth,) = _fail(store, 1)
    assert 13 <= sixth.wait_seconds <= 15
    assert re.fullmatch(r"Too many failed attempts. Try again in 1[345] seconds.", str(sixth))
    _earlier(store, SignInFailure, "at", timedelta(seconds=16))
    assert [refused.wait_seconds for refused in _fail(store, 1)] == [0]
    assert 28 <= _fail(store, 1)[0].wait_seconds <= 30


def test_even_the_right_password_has_to_wait(store, anna):
    _fail(store, 5)
    with pytest.raises(SignInRefused) as caught:
        accounts.sign_in(store, "anna", PASSWORD, ELSEWHERE)
    assert caught.value.wait_seconds > 0


def test_no_wait_is_longer_than_15_minutes_and_waiting_attempts_do_not_make_it_longer(store, anna):
    with store.write() as db:
        db.add_all(SignInFailure(name="anna", address=ELSEWHERE) for _ in range(400))
    waits = [refused.wait_seconds for refused in _fail(store, 30)]
    assert max(waits) <= 900
    assert waits == sorted(waits, reverse=True)
    _earlier(store, SignInFailure, "at", timedelta(minutes=15))
    assert accounts.sign_in(store, "anna", PASSWORD, ELSEWHERE)
    with store.read() as db:
        assert db.scalars(sa.select(SignInFailure)).all() == []  # what is old is not kept


def test_guesses_from_elsewhere_do_not_lock_a_person_out_where_she_signed_in_before(store, token):
    _fail(store, 6, address=ELSEWHERE)
    assert accounts.sign_in(store, "anna", PASSWORD, HERE)
    with pytest.raises(SignInRefused):
        accounts.sign_in(store, "anna", PASSWORD, "203.0.113.1")  # never seen: may be the one who guesses


def test_an_unknown_name_is_slowed_down_like_a_known_one(store, anna):
    assert [r.wait_seconds > 0 for r in _fail(store, 7, "nobody")] == [r.wait_seconds > 0 for r in _fail(store, 7)]


def test_failures_for_other_names_at_a_shared_address_never_delay_a_right_password(store, anna):
    with store.write() as db:
        db.add_all(SignInFailure(name=f"user{number}", address=ELSEWHERE) for number in range(400))
    assert accounts.sign_in(store, "anna", PASSWORD, ELSEWHERE)  # her first sign-in, and from this address
    assert accounts.sign_in(store, "chief", PASSWORD, ELSEWHERE)


def test_own_typing_errors_cost_no_more_at_an_address_where_others_fail(store, anna):
    with store.write() as db:
        db.add_all(SignInFailure(name=f"user{number}", address=ELSEWHERE) for number in range(400))
    assert [refused.wait_seconds for refused in _fail(store, 5)] == [0] * 5
    assert 13 <= _fail(store, 1)[0].wait_seconds <= 15


def test_no_one_at_the_same_address_locks_a_person_out_of_a_browser_that_knows_her(store, token):
    with store.write() as db:
        db.add_all(SignInFailure(name="anna", address=HERE) for _ in range(400))
    known = accounts.known_value(token)
    for address in (HERE, "203.0.113.1"):
        assert accounts.sign_in(store, "anna", PASSWORD, address, known)
    with pytest.raises(SignInRefused, match="15 minutes"):
        accounts.sign_in(store, "anna", PASSWORD, HERE)
    with pytest.raises(SignInRefused, match="15 minutes"):  # a browser that knows someone else
        accounts.sign_in(store, "anna", PASSWORD, HERE, accounts.known_value("made up"))


def test_a_copied_cookie_gives_no_more_guesses_from_many_addresses(store, token):
    known = accounts.known_value(token)
    guesses = [_fail(store, 1, "anna", f"198.51.100.{number}", known)[0].wait_seconds for number in range(8)]
    assert [wait > 0 for wait in guesses] == [False] * 5 + [True] * 3
    assert accounts.sign_in(store, "anna", PASSWORD, HERE)


def test_more_addresses_give_no_more_guesses(store, token):
    guesses = [_fail(store, 1, "anna", f"198.51.100.{number}")[0].wait_seconds for number in range(8)]
    assert [wait > 0 for wait in guesses] == [False] * 5 + [True] * 3


def test_a_right_password_frees_no_one_else_of_failures(store, anna):
    _fail(store, 5, address=HERE)
    _earlier(store, SignInFailure, "at", timedelta(seconds=16))
    accounts.sign_in(store, "anna", PASSWORD, HERE)
    _fail(store, 1, address=HERE)  # someone at her address goes on
    assert _fail(store, 1, address=HERE)[0].wait_seconds > 15


def test_a_browser_and_an_address_are_remembered_for_180_days(store, token):
    _fail(store, 6, address=ELSEWHERE)
    known = accounts.known_value(token)
    _earlier(store, SignIn, "created_at", timedelta(days=181))
    for address, shown in ((HERE, ""), (ELSEWHERE, known)):
        with pytest.raises(SignInRefused):
            accounts.sign_in(store, "anna", PASSWORD, address, shown)
    _earlier(store, SignIn, "created_at", timedelta(days=-2))
    for address, shown in ((HERE, ""), (ELSEWHERE, known)):
        assert accounts.sign_in(store, "anna", PASSWORD, address, shown)


def test_all_addresses_of_an_ipv6_line_are_one(store, anna):
    accounts.sign_in(store, "anna", PASSWORD, "2001:db8:1:2::7")
    _fail(store, 6, address=ELSEWHERE)
    _fail(store, 3, address="2001:db8:1:2::a")
    assert accounts.sign_in(store, "anna", PASSWORD, "2001:db8:1:2:ffff::1")
    with pytest.raises(SignInRefused):
        accounts.sign_in(store, "anna", PASSWORD, "2001:db8:1:3::7")
    queues = [accounts.queue(store, "new", address)[1] for address in ("fe80::1%eth0", "fe80::2", "::ffff:192.0.2.7")]
    assert queues == ["fe80::/64", "fe80::/64", HERE]
    assert accounts.queue(store, "new", "unix:" + "x" * 100)[1] == "unix:" + "x" * 59


def test_people_wait_in_a_queue_of_their_own_where_they_signed_in_before_and_strangers_together(store, token):
    known = accounts.known_value(token)
    assert accounts.queue(store, "Anna ", ELSEWHERE, known) == (False, known)
    assert accounts.queue(store, "anna", HERE) == (False, f"{HERE} anna")
    for name, shown in (("anna", ""), ("chief", known), ("not-a-user", known), ("", "made up")):
        assert accounts.queue(store, name, ELSEWHERE, shown) == (True, ELSEWHERE)


def test_names_without_an_account_come_on_the_trail_once_a_minute_and_all_are_counted(store, anna):
    for number in range(30):
        _fail(store, 1, f"made up {number}", HERE if number % 3 else ELSEWHERE)
    assert [event.detail for event in _events(store, action="session.refused")] == [
        {"address": ELSEWHERE, "addresses": 1, "attempts": 1}
    ]
    later = now() + timedelta(minutes=20)  # the failures are old by then
    with pytest.MonkeyPatch.context() as patched:
        for module in (accounts, audit_trail):
            patched.setattr(module, "now", lambda: later)
        accounts.sign_in(store, "anna", PASSWORD, HERE)
    (_, rest) = _events(store, action="session.refused")
    assert rest.object == "user:unknown"
    assert rest.detail == {"address": HERE, "addresses": 2, "attempts": 29}
    _fail(store, 2)
    assert len(_events(store, action="session.refused")) == 4  # each failure of an account


def test_what_can_be_guessed_at_a_name_in_an_hour(store, anna, monkeypatch):
    """The numbers that docs/security.md names."""
    assert _guesses_by_hour(store, monkeypatch, "anna", 3) == [38, 32, 32]


def _guesses_by_hour(store, monkeypatch, name: str, hours: int) -> list[int]:
    """How many passwords are checked when each is tried as soon as it would be."""
    start, checked = now(), []  # the times of the guesses
    with store.write() as db:
        at = start
        while at < start + timedelta(hours=hours):
            monkeypatch.setattr(accounts, "now", lambda at=at: at)
            wait = timedelta(seconds=accounts._wait(db, name, "", ""))
            if not wait:
                db.add(SignInFailure(name=name, address=ELSEWHERE, at=at))
                db.flush()
                checked.append(at)
            else:
                forgotten = [guess + accounts.LONGEST_WAIT for guess in checked]
                at = min([at + wait, *(when for when in forgotten if when > at)])
    monkeypatch.undo()
    return [sum((guess - start) // timedelta(hours=1) == hour for guess in checked) for hour in range(hours)]


def test_a_browser_in_which_she_signed_in_before_is_let_through_from_a_new_address(store, token):
    _fail(store, 6, address=ELSEWHERE)
    known, new = accounts.known_value(token), "203.0.113.1"
    with pytest.raises(SignInRefused):
        accounts.sign_in(store, "anna", PASSWORD, new)
    with pytest.raises(SignInRefused):
        accounts.sign_in(store, "chief", "wrong password 1", new, known)  # a wrong password stays wrong
    assert accounts.sign_in(store, "anna", PASSWORD, new, known)
    with pytest.raises(SignedOut):
        accounts.whoami(store, known)  # what the browser keeps opens nothing


def test_in_the_same_browser_the_right_password_forgives_the_typing_errors_before_it(store, anna):
    known = ""
    for _ in range(3):
        _fail(store, 4, address=HERE, known=known)
        known = accounts.known_value(accounts.sign_in(store, "anna", PASSWORD, HERE, known))


def test_guesses_at_the_same_moment_are_counted_like_guesses_in_a_row(store, anna, monkeypatch):
    together = threading.Barrier(5, timeout=20)
    looked_at = []

    def matches(user, password):
        looked_at.append(password)
        together.wait()  # all that get this far are checked together
        return False

    monkeypatch.setattr(accounts, "_matches", matches)

    def guess(number):
        with pytest.raises(SignInRefused) as caught:
            accounts.sign_in(store, "anna", f"guess number {number}", ELSEWHERE)
        return caught.value.wait_seconds

    with ThreadPoolExecutor(12) as people:
        waits = list(people.map(guess, range(12)))
    assert len(looked_at) == 5
    assert sum(wait > 0 for wait in waits) == 7


def test_a_very_long_name_or_password_is_refused_like_any_other(store, anna):
    with pytest.raises(SignInRefused, match="is not right"):
        accounts.sign_in(store, "x" * 100_000, "y" * 1_000_000, "z" * 1000)


# --- sessions


def test_an_unknown_token_is_refused(store, anna):
    for token in ("", "made up", "ü" * 40):
        with pytest.raises(SignedOut, match="not signed in"):
            accounts.whoami(store, token)


def test_signing_out_ends_only_that_session(store, token):
    second = accounts.sign_in(store, "anna", PASSWORD, HERE)
    accounts.sign_out(store, token)
    with pytest.raises(SignedOut, match="signed out"):
        accounts.whoami(store, token)
    assert accounts.whoami(store, second).name == "anna"
    accounts.sign_out(store, token)
    accounts.sign_out(store, "made up")
    assert len(_events(store, action="session.end")) == 1


def test_signing_out_without_a_session_waits_for_no_one_who_writes(store, token):
    accounts.sign_out(store, token)
    with store.write() as db:
        db.execute(sa.select(User))
        for ended in (token, "made up", ""):
            accounts.sign_out(store, ended)


@pytest.mark.parametrize(
    ("column", "by", "message"),
    [
        ("seen_at", timedelta(minutes=30), "after 30 minutes without an action"),
        ("created_at", timedelta(hours=12), "after 12 hours"),
    ],
)
def test_a_session_ends_when_idle_and_after_a_day_of_work(store, token, column, by, message):
    _earlier(store, SignIn, column, by - timedelta(minutes=1))
    assert accounts.whoami(store, token)
    _earlier(store, SignIn, column, timedelta(minutes=1))
    with pytest.raises(SignedOut, match=message):
        accounts.whoami(store, token)


def test_a_session_tells_how_long_it_lasts_without_counting_that_as_an_action(store, token):
    _earlier(store, SignIn, "seen_at", timedelta(minutes=29))
    left = [accounts.time_left(store, token) for _ in range(2)]
    assert all(30 < each.seconds <= 60 and each.extendable for each in left)
    _earlier(store, SignIn, "created_at", timedelta(hours=11, minutes=59, seconds=30))
    last = accounts.time_left(store, token)
    assert last.seconds <= 30
    assert not last.extendable


def test_someone_who_is_there_extends_an_idle_session_but_none_that_ended_or_is_too_old(store, token):
    _earlier(store, SignIn, "seen_at", timedelta(minutes=29))
    assert accounts.renew(store, token).seconds > 29 * 60
    with store.read() as db:
        seen = db.scalar(sa.select(SignIn.seen_at))
    accounts.renew(store, token)  # at once again: nothing is written
    with store.read() as db:
        assert db.scalar(sa.select(SignIn.seen_at)) == seen
    _earlier(store, SignIn, "created_at", timedelta(hours=11, minutes=59, seconds=30))
    assert accounts.renew(store, token).seconds <= 30
    _earlier(store, SignIn, "seen_at", timedelta(minutes=30))
    with pytest.raises(SignedOut, match="30 minutes"):
        accounts.renew(store, token)


def test_how_long_sessions_hold_can_be_set(store, token, monkeypatch):
    monkeypatch.setenv("LUNGKIT_IDLE_MINUTES", "5")
    _earlier(store, SignIn, "seen_at", timedelta(minutes=6))
    with pytest.raises(SignedOut, match="after 5 minutes"):
        accounts.whoami(store, token)


def test_actions_keep_a_session_alive_and_whoami_does_not(store, token):
    access = Access(store, token)
    for act in (access.reads, access.writes):
        _earlier(store, SignIn, "seen_at", timedelta(minutes=29))
        with act():
            pass
        with store.read() as db:
            assert now() - db.scalar(sa.select(SignIn.seen_at)) < timedelta(minutes=1)
    _earlier(store, SignIn, "seen_at", timedelta(minutes=29))
    accounts.whoami(store, token)
    with store.read() as db:
        assert now() - db.scalar(sa.select(SignIn.seen_at)) > timedelta(minutes=28)


def test_actions_do_not_keep_a_session_alive_longer_than_its_last_hour(store, token):
    _earlier(store, SignIn, "created_at", timedelta(hours=12))
    with pytest.raises(SignedOut), Access(store, token).writes():
        pass


def test_ended_sessions_are_distinguished_from_open_ones(store, token):
    held = accounts.whoami(store, token).session_id
    second = accounts.sign_in(store, "anna", PASSWORD, HERE)
    gone = accounts.whoami(store, second).session_id
    accounts.sign_out(store, second)
    assert accounts.ended(store, {held, gone, "unknown"}) == {gone, "unknown"}
    assert accounts.ended(store, set()) == set()


# --- rights, at each action


@pytest.mark.parametrize("way", ["reads", "writes"])
def test_a_role_may_do_what_names_it_and_nothing_else(store, token, way):
    act = getattr(Access(store, token), way)
    for roles in ((), ("doctor",), ("admin", "doctor")):
        with act(*roles) as (db, actor):
            assert actor.name == "anna"
            assert db.scalar(sa.select(sa.func.count()).select_from(User)) == 2
    with pytest.raises(Forbidden, match="needs the role admin; you are signed in as doctor"), act("admin"):
        pytest.fail("the action ran")


def test_a_refused_action_is_on_the_audit_trail(store, token):
    with pytest.raises(Forbidden), Access(store, token).writes("admin"):
        pass
    (event,) = _events(store, action="access.refused")
    assert event.user_id == accounts.whoami(store, token).user_id


@pytest.mark.parametrize("way", ["reads", "writes"])
def test_a_revoked_session_is_refused_on_the_next_action(store, token, way):
    access = Access(store, token)
    with getattr(access, way)("doctor"):
        pass
    with store.write() as db:
        accounts.reset_password(db, "anna")
    with pytest.raises(SignedOut), getattr(access, way)("doctor"):
        pytest.fail("the action ran")


def test_a_changed_role_applies_to_the_next_action_of_an_open_session(store, token):
    access = Access(store, token)
    with store.write() as db:
        accounts.set_role(db, "anna", "admin")
    with access.writes("admin") as (_, actor):
        assert actor.role == "admin"
    with pytest.raises(Forbidden), access.reads("doctor"):
        pass


def test_an_action_that_fails_leaves_nothing_behind(store, token):
    with pytest.raises(ZeroDivisionError), Access(store, token).writes("doctor") as (db, actor):
        db.get(User, actor.user_id).full_name = "Changed"
        audit_trail.append(db, actor.user_id, "test.done", "test:1")
        _ = 1 / 0
    with store.read() as db:
        assert db.scalar(sa.select(User.full_name).where(User.name == "anna")) == "Anna Test"
    assert _events(store, action="test.done") == []


# --- accounts


def test_a_new_account_gets_a_random_password_that_signs_in(store):
    with store.write() as db:
        first = accounts.add_user(db, "Bert", "Bert   Test", "doctor")
        second = accounts.add_user(db, "carl", "Carl Test", "admin")
    assert first != second
    assert re.fullmatch(r"([a-z2-9]{4}-){3}[a-z2-9]{4}", first)
    assert not set("lo01i") & set(first)
    actor = accounts.whoami(store, accounts.sign_in(store, "bert", first, HERE))
    assert (actor.name, actor.full_name, actor.role) == ("bert", "Bert Test", "doctor")


@pytest.mark.parametrize("name", ["", "a", "anna b", "-anna", "ann\x00a", "<script>", "a" * 65, "änna"])
def test_what_cannot_be_a_user_name_is_refused(sqlite_store, name):
    with pytest.raises(LungkitError, match="cannot be a user name; accepted"), sqlite_store.write() as db:
        accounts.add_user(db, name, "A Person", "doctor")


@pytest.mark.parametrize(
    ("full_name", "role", "password", "message"),
    [
        ("", "doctor", PASSWORD, "full name"),
        ("x" * 201, "doctor", PASSWORD, "full name"),
        ("A\x07 Person", "doctor", PASSWORD, "full name"),
        ("A Person", "nurse", PASSWORD, "no role 'nurse'; there are: doctor, admin"),
        ("A Person", "doctor", "elevenchars", "at least 12 characters"),
        ("A Person", "doctor", "x" * 1025, "at most 1024"),
        ("A Person", "doctor", "Annabelle2026", "more than the user name"),
        ("A Person", "doctor", "abababababab", "5 different characters"),
    ],
)
def test_an_account_with_a_weak_password_or_without_a_name_is_refused(sqlite_store, full_name, role, password, message):
    with pytest.raises(LungkitError, match=message), sqlite_store.write() as db:
        accounts.add_user(db, "annabelle", full_name, role, password)
    with sqlite_store.read() as db:
        assert accounts.list_users(db) == []


def test_a_user_name_is_given_once(store, anna):
    with pytest.raises(LungkitError, match="there is a user 'anna' already"), store.write() as db:
        accounts.add_user(db, "Anna", "Another", "doctor")


def test_an_unknown_account_is_reported(store):
    for change in (accounts.disable_user, accounts.enable_user, accounts.reset_password):
        with pytest.raises(LungkitError, match="no user 'nobody'"), store.write() as db:
            change(db, "nobody")


def test_a_disabled_account_is_signed_out_everywhere_and_can_be_enabled_again(store, token):
    with store.write() as db:
        accounts.disable_user(db, "anna")
    with pytest.raises(SignedOut):
        accounts.whoami(store, token)
    with store.write() as db:
        accounts.enable_user(db, "anna")
    with pytest.raises(SignedOut):  # the old session stays ended
        accounts.whoami(store, token)
    assert accounts.sign_in(store, "anna", PASSWORD, HERE)


def test_a_reset_password_replaces_the_old_one_and_ends_the_sessions(store, token):
    with store.write() as db:
        password = accounts.reset_password(db, "anna")
    with pytest.raises(SignedOut):
        accounts.whoami(store, token)
    with pytest.raises(SignInRefused):
        accounts.sign_in(store, "anna", PASSWORD, HERE)
    assert accounts.sign_in(store, "anna", password, HERE)


@pytest.mark.parametrize("change", ["disable", "role"])
def test_the_last_admin_stays(store, anna, change):
    def take_away(name):
        with store.write() as db:
            accounts.disable_user(db, name) if change == "disable" else accounts.set_role(db, name, "doctor")

    with pytest.raises(LungkitError, match="'chief' is the only admin"):
        take_away("chief")
    with store.write() as db:
        accounts.add_user(db, "second", "Second Test", "admin")
    take_away("chief")
    with pytest.raises(LungkitError, match="'second' is the only admin"):
        take_away("second")


def test_accounts_are_listed_by_name_with_their_last_sign_in(store, token):
    with store.read() as db:
        listed = accounts.list_users(db)
    assert [(user.name, user.role, user.active, user.last_sign_in is not None) for user in listed] == [
        ("anna", "doctor", True, True),
        ("chief", "admin", True, False),
    ]


def test_the_trail_has_events_of_accounts_and_sessions_without_names(store, anna):
    token = accounts.sign_in(store, "anna", PASSWORD, HERE)
    _fail(store, 1)
    _fail(store, 1, "a password typed into the wrong field")
    accounts.sign_out(store, token)
    with store.write() as db:
        accounts.set_role(db, "anna", "admin", by=2)
        accounts.disable_user(db, "anna", by=2)
        accounts.disable_user(db, "anna", by=2)  # changes nothing, so tells nothing
        accounts.enable_user(db, "anna", by=2)
        accounts.reset_password(db, "anna", by=2)
    events = _events(store)
    assert [event.action for event in events] == [
        "user.add", "user.add", "session.start", "session.refused", "session.refused", "session.end",
        "user.role", "user.disable", "user.enable", "user.password",
    ]  # fmt: skip
    assert [event.user_id for event in events[6:]] == [2] * 4
    assert [event.object for event in events[3:5]] == ["user:1", "user:unknown"]
    written = str([vars(event) for event in events])
    for private in ("anna", "Anna", PASSWORD, "wrong field"):
        assert private not in written
    assert audit_trail.verify(store) == len(events)
