"""More people than there is memory for: they wait, see their place, and get in; no one loses a page."""

import re

import pytest
from playwright import sync_api

from lungkit.clinic.records import accounts
from tests.e2e.conftest import Visitor

PAGE_MB = 270  # of LUNGKIT_PAGE_MB
PATIENCE = 120_000  # ms: no process waits ahead, and a start takes long on a busy machine


@pytest.fixture(scope="module")
def clinic(start_clinic):
    """A clinic with memory for two pages: its server, what stays free, and 2.5 times what a page may need."""
    limit = 128 + 128 + 60 + 2.5 * PAGE_MB
    return start_clinic(pool=0, LUNGKIT_CLINIC_MB=str(limit), LUNGKIT_PAGE_MB=str(PAGE_MB))


def _waits(visitor: Visitor, name: str, fragment: str = "") -> None:
    """Come to the full clinic."""
    token = visitor.clinic.token(name)
    visitor.context.add_cookies([{"name": accounts.COOKIE, "value": token, "url": visitor.clinic.url}])
    visitor.page.goto(visitor.clinic.url + fragment)
    visitor.page.get_by_role("heading", name="Please wait for your page").wait_for()


def test_who_does_not_fit_waits_in_order_gets_in_when_a_colleague_leaves_and_no_one_loses_a_page(clinic, visit):
    ada, ben, eve, third = (visit() for _ in range(4))
    for visitor in (ada, ben, eve, third):
        visitor.context.set_default_timeout(PATIENCE)
    ada.sign_in("ada")
    ben.sign_in("ben")
    ada.new_patient("C-1", "Typed Patient")  # is not saved anywhere yet
    _waits(eve, "eve", "#/people")
    _waits(third, "ben", "#/patients")  # ben at another computer, after eve
    eve.sees("You are next. The clinic is full", "opens when a colleague closes one")
    third.sees("You are number 2 in the queue. The clinic is full")
    answer = eve.context.request.get(clinic.url)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert len(clinic.kernels()) == 2
    assert eve.usable() == []
    with eve.page.expect_request("**/clinic/turn") as asked:
        pass
    assert asked.value.method == "POST"  # the page can be seen: she stays signed in

    ben.page.get_by_role("button", name="Sign out").click()
    ben.page.get_by_label("Password").wait_for()
    eve.page.locator(".clinic-nav").wait_for()
    assert eve.page.url.endswith("#/people")
    third.sees("You are next. The clinic is full")
    ada.sees("Typed Patient")  # a page that was open all the time is as it was
    ada.page.get_by_role("button", name="Choose another patient").click()
    ada.page.get_by_role("button", name="+ New patient").wait_for()  # her process answers
    accounts.sign_out(clinic.store, third.cookie())
    sync_api.expect(third.page).to_have_url(re.compile("/login#/patients$"))
    assert len(clinic.kernels()) == 2
    assert "Traceback" not in clinic.log_text()
    assert not re.search("503|could not be started", clinic.log_text())
