"""Settings of the clinic: checked when set and when read, changed by administrators alone, and on the trail."""

import pytest
import sqlalchemy as sa

from lungkit.clinic.records import settings
from lungkit.clinic.records.administration import Administration
from lungkit.clinic.records.settings import BLIND_SHARE, SettingRefused
from lungkit.clinic.records.tables import Setting, User
from tests.clinic.rows import count, events


@pytest.fixture
def admin(signed_in) -> Administration:
    return Administration(signed_in("admin", "chief"))


def test_nothing_is_read_blind_until_an_administrator_says_so(store, admin):
    assert admin.setting(BLIND_SHARE) == 0
    admin.set_setting(BLIND_SHARE, 0.2)
    admin.set_setting(BLIND_SHARE, 1)
    assert admin.setting(BLIND_SHARE) == 1
    assert count(store, Setting) == 1


def test_a_change_says_who_made_it_and_what_was_set_before(store, admin):
    admin.set_setting(BLIND_SHARE, 0.2)
    admin.set_setting(BLIND_SHARE, 0.5)
    with store.read() as db:
        chief = db.scalar(sa.select(User.id))
        assert db.scalar(sa.select(Setting.changed_by)) == chief
    changes = [(event.user_id, event.object, event.detail) for event in events(store, "setting.change")]
    assert changes == [
        (chief, "setting:blind_share", {"value": 0.2, "before": 0.0}),
        (chief, "setting:blind_share", {"value": 0.5, "before": 0.2}),
    ]


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), True, "0.5", None, [0.5]])
def test_what_is_no_share_is_refused_and_nothing_changes(store, admin, value):
    with pytest.raises(SettingRefused, match="accepted is a share of 0 to 1"):
        admin.set_setting(BLIND_SHARE, value)
    assert count(store, Setting) == 0
    assert events(store, "setting.change") == []


def test_a_value_that_another_program_wrote_is_not_used(store, admin):
    with store.write() as db:
        db.add(Setting(name=BLIND_SHARE, value=20))
    with pytest.raises(SettingRefused, match="blind_share is '20'"):
        admin.setting(BLIND_SHARE)
    admin.set_setting(BLIND_SHARE, 0.2)
    assert admin.setting(BLIND_SHARE) == 0.2


def test_every_default_is_a_value_that_is_accepted():
    assert all(kind.check(kind.default) for kind in settings.KINDS.values())
