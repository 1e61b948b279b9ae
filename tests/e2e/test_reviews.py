"""Reviews in two browsers on one case: the second doctor is told of the first, and why no class fits is kept."""

import hashlib

import pytest
from playwright.sync_api import expect

from lungkit.clinic.predictor import ModelPool
from lungkit.clinic.records.accounts import Access
from lungkit.clinic.records.cases import Records
from lungkit.clinic.records.corrections import SAME_IMAGE
from lungkit.clinic.records.patients import NewPatient
from lungkit.data import images


@pytest.fixture
def saved(clinic, slices, monkeypatch):
    """A function: a new patient's number with one reading of the first doctor, as a kernel saves it."""
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(clinic.artifacts))

    def save(number: str) -> str:
        file = slices["COVID-19"]
        image = images.read(file.read_bytes(), file.name)
        answer = ModelPool().get("ct-infection").read(image)
        doctor = Records(Access(clinic.store, clinic.token("ada")))
        sha256 = hashlib.sha256(file.read_bytes() + number.encode()).hexdigest()
        new = NewPatient(number, f"Name {number}")
        return doctor.save_case(new, image, sha256, answer, confirmed=[SAME_IMAGE]).reading_id

    return save


def opens(visitor, number: str) -> None:
    visitor.go("Worklist")
    visitor.page.locator("tbody tr", has_text=number).click()
    visitor.page.get_by_role("button", name="Open case").click()
    visitor.page.locator(".review").wait_for()


def test_the_second_doctor_is_told_of_the_first_before_saving(visit, clinic, saved):
    reading_id = saved("R-1")
    ada, ben = visit("ada"), visit("ben")
    for doctor in (ada, ben):
        opens(doctor, "R-1")
    ada.page.get_by_role("button", name="Agree: COVID-19").click()
    ada.sees("Your review is saved: COVID-19.")
    agree = ben.page.get_by_role("button", name="Agree: COVID-19")
    agree.dblclick()
    ben.sees("While you were reading, Demo Doctor reviewed this (agreed: COVID-19, ", "Save yours (COVID-19) too?")
    assert ben.usable() == []
    expect(ben.page.locator(".review li")).to_have_count(1)
    ben.page.get_by_role("button", name="Save mine too").click()
    ben.sees("Your review is saved: COVID-19.")
    expect(ben.page.locator(".review li")).to_have_count(2)
    expect(ben.page.get_by_role("button", name="Save mine too")).to_be_hidden()
    opens(ada, "R-1")
    ada.sees("Second Doctor reviewed this on")
    reviews = Records(Access(clinic.store, clinic.token("ada"))).case(reading_id).reviews
    assert [review.reviewer for review in reviews] == ["Demo Doctor", "Second Doctor"]


def test_why_no_class_fits_is_chosen_with_the_keyboard_and_a_double_click_saves_once(visit, saved):
    saved("R-2")
    ada = visit("ada")
    opens(ada, "R-2")
    page = ada.page
    finding = page.get_by_label("Which finding?")
    expect(finding).to_be_hidden()
    page.get_by_label("Not assessable: the image is too poor to judge").focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_label("Another finding")).to_be_checked()
    expect(finding).to_be_visible()
    assert ada.usable() == []
    page.keyboard.press("Tab")
    expect(finding).to_be_focused()
    page.keyboard.type("a <i>broken</i> rib")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Save without a class").dblclick()
    ada.sees("Your review is saved: another finding.", "another finding: a <i>broken</i> rib")
    expect(page.locator(".review li")).to_have_count(1)
    expect(finding).to_be_hidden()
    expect(page.locator(".no-class input:checked")).to_have_count(0)
    ada.go("Worklist")
    row = page.locator("tbody tr", has_text="R-2")
    expect(row).to_contain_text("Another finding (Demo Doctor)")
    expect(row).not_to_contain_text("rib")
