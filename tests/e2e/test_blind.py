"""Blind reading in a browser: an administrator sets it, a doctor uploads, and no answer comes before the label."""

import re

import pytest

from lungkit.data import phantom

# Keeps what the kernel sends, as text.
KEEP_ANSWERS = """
window.received = [];
window.WebSocket = class extends WebSocket {
  constructor(...of) {
    super(...of);
    this.addEventListener("message", async ({ data }) => {
      window.received.push(typeof data === "string" ? data : await new Response(data).text());
    });
  }
};
"""
ANSWER = re.compile(r"Finding of the model|Review needed|Nearest class|> 99 %|(?<!\d)\d\d? %|Image checks")


@pytest.fixture
def slice_of_pneumonia(tmp_path):
    cuts = phantom.make_patient("blind", "Pneumonia", seed=46, slices=3, size=256)
    return phantom.write_dicom(cuts[1], tmp_path / "slice.dcm")


def test_the_page_holds_no_answer_before_the_label_and_then_it_does(visit, slice_of_pneumonia):
    eve = visit("eve")
    eve.go("Settings")
    eve.page.get_by_label("Uploads read blind, in %").fill("100")
    eve.page.get_by_role("button", name="Save", exact=True).click()
    eve.sees("100 % of uploads are read blind")

    ada = visit()
    ada.context.add_init_script(KEEP_ANSWERS)
    ada.sign_in("ada")
    page = ada.page
    ada.new_patient("B-1", "Blind Patient")
    before = page.evaluate("window.received.length")
    ada.upload(slice_of_pneumonia)
    page.locator(".viewer-canvas").wait_for()
    ada.sees("Read this image first.")
    assert page.locator(".choices input:checked").count() == 0
    messages = page.evaluate("window.received")[before:]
    assert any("Read this image first" in message for message in messages)  # they are those that made the form
    assert [found for source in (page.content(), *messages) for found in ANSWER.findall(source)] == []
    assert ada.usable() == []

    page.get_by_label("Normal").check()
    page.get_by_role("button", name="Save label and show the answer").click()
    ada.sees("You labelled Normal. The model says Pneumonia: you differ.", "Finding of the model", "> 99 %")
    after = page.evaluate("window.received")[before + len(messages) :]
    assert any(ANSWER.search(message) for message in after)
    assert ada.usable() == []
