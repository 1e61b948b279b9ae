"""A reading as an HL7 v2 message: names stay in their fields, a resend is the same, and only an answer to it counts."""

import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lungkit.clinic.records.patients import PatientRow
from lungkit.clinic.records.tables import OTHER_FINDING
from lungkit.gateway import hl7
from lungkit.gateway.reported import plain
from tests.gateway.test_fhir import AGREES, PATIENT, REVIEW, radiograph, refused_reported, reported, source_of
from tests.gateway.test_objects import ADULT, REFUSED

ESCAPE = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\"}  # HL7 v2.5.1, chapter 2, 2.7.1


def parsed(message: bytes) -> dict[str, list[list[str]]]:
    """The segments by name: fields by number, still escaped; fails where the message is not in the form of HL7 v2."""
    text = message.decode(_charset(message))
    assert text.endswith("\r")
    segments: dict[str, list[list[str]]] = {}
    for line in text[:-1].split("\r"):
        fields = line.split("|")
        assert re.fullmatch(r"MSH|PID|OBR|OBX", fields[0])
        segments.setdefault(fields[0], []).append([fields[0], "|", *fields[1:]] if fields[0] == "MSH" else fields)
    assert [len(segments[name]) for name in ("MSH", "PID", "OBR")] == [1, 1, 1]
    assert [one[1] for one in segments["OBX"]] == [str(n) for n in range(1, len(segments["OBX"]) + 1)]
    assert not re.search(r"[\0-\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]", text)
    return segments


def _charset(message: bytes) -> str:
    """Of MSH-18, which comes before anything that is not ASCII."""
    declared = message.split(b"\r")[0].split(b"|")[17].decode()
    return {"ASCII": "ascii", "UNICODE UTF-8": "utf-8"}[declared]  # table 0211


def unescaped(field: str) -> str:
    return re.sub(r"\\(.)\\", lambda found: ESCAPE[found[1]], field)


def parts(field: str) -> list[str]:
    return [unescaped(part) for part in field.split("^")]


# --- the message


def test_a_reading_is_a_message_with_its_caution_decision_and_findings():
    message = parsed(hl7.oru_r01(reported(source=source_of(radiograph("DX", TimezoneOffsetFromUTC="+0100")))))
    (head,), (pid,), (obr,), rows = message["MSH"], message["PID"], message["OBR"], message["OBX"]
    assert head[1:10] == ["|", "^~\\&", "lungkit", "", "", "", "20260309140500+0000", "", "ORU^R01^ORU_R01"]
    assert head[11:] == ["P", "2.5.1", "", "", "", "", "", "ASCII"]
    assert 0 < len(head[10]) <= 20
    assert (parts(pid[3])[0], parts(pid[3])[4], parts(pid[5])[0]) == ("T-1", "PI", "Anna Invented")
    assert pid[7:9] == ["1956", "F"]
    assert parts(obr[3]) == ["r-17", "lungkit"]
    assert parts(obr[4]) == ["43468-8", "XR unspecified body region", "LN"]
    assert (obr[7], obr[18], obr[22]) == ("20260309140000+0100", "X-99", "20260309140500+0000")
    assert (obr[24], obr[25]) == ("RAD", "P")
    assert len(obr) == 26  # no interpreter
    assert (rows[0][2], parts(rows[0][3])[0]) == ("TX", "USE")
    assert rows[0][5].startswith("Research use only. Not a medical device")
    assert rows[1][5] == "The model answers: Pneumonia. Probability 0.600."
    assert parts(rows[2][3]) == ["233604007", "Pneumonia", "SCT"]
    assert (rows[2][2], rows[2][4], parts(rows[2][5])) == ("CE", "1", ["52101004", "Present", "SCT"])
    assert parts(rows[3][3]) == ["122157", "Probability", "DCM"]
    assert (rows[3][2], rows[3][4], rows[3][5]) == ("NM", "1", "0.600000")
    assert parts(rows[3][6]) == ["1", "no units", "UCUM"]
    assert all(row[11] == "P" and row[18] == "ct-infection@v2^lungkit" for row in rows)


def test_a_refused_reading_is_a_message_with_its_reason_and_without_a_finding():
    rows = parsed(hl7.oru_r01(refused_reported()))["OBX"]
    assert {row[2] for row in rows} == {"TX"}, "no code of a finding (CE) and no probability (NM)"
    assert [unescaped(row[5]) for row in rows][1:] == [f"{REFUSED}.", f"T{ADULT.words[1:]}."]


@pytest.mark.parametrize(
    ("reviews", "status"), [((), "P"), ((AGREES,), "F"), ((REVIEW,), "C"), ((REVIEW, AGREES), "C")]
)
def test_the_status_is_preliminary_final_or_corrected(reviews, status):
    message = parsed(hl7.oru_r01(reported(reviews=reviews)))
    assert {message["OBR"][0][25], *(row[11] for row in message["OBX"])} == {status}
    assert message["OBR"][0][32:] == (["&Dr Anna Weber"] if reviews else [])


def test_of_what_was_withdrawn_each_observation_is_marked_as_sent_wrongly():
    at = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
    message = parsed(hl7.oru_r01(replace(reported(reviews=(AGREES,)), withdrawn_at=at)))
    assert message["OBR"][0][25] == "C" and {row[11] for row in message["OBX"]} == {"W"}
    assert message["OBX"][1][5] == "A clinician has withdrawn this image. Do not use this result."


def test_a_result_is_taken_back_from_the_patient_before_under_the_same_number():
    at = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)
    now = reported(patient=PatientRow("id-2", "T-2", "Other Person", 1931, "male"), reviews=(REVIEW,))
    message, after = (parsed(hl7.oru_r01(one)) for one in (now.taken_back(PATIENT, at, ("Normal",)), now))
    assert parts(message["PID"][0][3])[0] == PATIENT.number and message["OBR"][0][3] == after["OBR"][0][3]
    assert message["OBR"][0][25] == "C" and {row[11] for row in message["OBX"]} == {"W"}
    assert message["OBX"][1][5] == "A clinician has moved this image to another patient. Do not use this result."
    assert {row[2] for row in message["OBX"]} == {"TX", "CE"}, "no probability"
    assert len(message["OBR"][0]) <= 32, "no reviewer"


def test_a_review_without_a_class_is_a_correction_that_says_why():
    review = replace(REVIEW, agrees=None, label="", kind=OTHER_FINDING, finding="a|broken\nrib")
    message = parsed(hl7.oru_r01(reported(reviews=(review,))))
    rows = message["OBX"]
    assert message["OBR"][0][25] == "C"
    assert {parts(row[5])[0] for row in rows if row[2] == "CE"} == {"42425007"}
    assert "another finding: a|broken rib." in unescaped(rows[2][5])


def test_what_is_left_to_a_person_is_equivocal_with_the_reason():
    rows = parsed(hl7.oru_r01(reported(uncertain=True, reason="Within the band.")))["OBX"]
    assert "Within the band." in [row[5] for row in rows]
    assert {parts(row[5])[0] for row in rows if row[2] == "CE"} == {"42425007"}


def test_the_day_of_a_study_without_a_zone_and_the_time_of_the_reading_without_a_study():
    source = source_of(radiograph("DX"))
    assert parsed(hl7.oru_r01(reported(source=source)))["OBR"][0][7] == "20260309"
    message = parsed(hl7.oru_r01(reported()))
    assert (message["OBR"][0][7], message["OBX"][0][14]) == ("20260309140500+0000", "")


def test_the_parties_and_the_authority_of_numbers_are_named():
    message = parsed(hl7.oru_r01(reported(), ("lung|kit", "A"), ("ris", "B"), "HOSP"))
    assert [unescaped(name) for name in message["MSH"][0][3:7]] == ["lung|kit", "A", "ris", "B"]
    assert parts(message["PID"][0][3]) == ["T-1", "", "", "HOSP", "PI"]


def test_a_resend_is_the_same_message_and_a_changed_one_has_another_control_id():
    same = [hl7.oru_r01(reported()) for _ in range(2)]
    assert same[0] == same[1]
    later = replace(AGREES, at=AGREES.at + timedelta(seconds=1))
    changed = [reported(), reported(reading="r-18"), *(reported(reviews=(one,)) for one in (AGREES, later, REVIEW))]
    assert len({parsed(hl7.oru_r01(one))["MSH"][0][10] for one in changed}) == len(changed)


ANY = st.text(st.characters(exclude_categories=()) | st.sampled_from("|^~\\&\r\n\x0b\x1c\u2028"), max_size=40)


@settings(max_examples=100, deadline=None, database=None)
@given(name=ANY, reviewer=ANY, comment=ANY, sender=ANY)
def test_hostile_names_stay_in_their_fields(name, reviewer, comment, sender):
    review = replace(REVIEW, reviewer=f"Dr {reviewer}", comment=comment)
    about = reported(patient=replace(PATIENT, name=name), reviews=(review,))
    made = hl7.oru_r01(about, (sender, ""))
    message = parsed(made)
    assert unescaped(message["PID"][0][5].split("^")[0]) == plain(name)
    assert unescaped(message["OBR"][0][32].partition("&")[2]) == plain(f"Dr {reviewer}")
    assert unescaped(message["MSH"][0][3]) == plain(sender)
    assert plain(comment) in plain(" ".join(unescaped(row[5]) for row in message["OBX"]))
    assert not {b"\x0b", b"\x1c", b"\n"} & {made[n : n + 1] for n in range(len(made))}


def test_a_name_beyond_ascii_is_declared():
    message = hl7.oru_r01(reported(patient=PatientRow("id", "T-1", "Ayşe 漢", None, "unknown")))
    assert b"|UNICODE UTF-8\r" in message
    assert parts(parsed(message)["PID"][0][5])[0] == "Ayşe 漢"


# --- sending


def serve(answer, tls: ssl.SSLContext | None = None):
    """A receiver on loopback for one message; returns its port, and what it got, once it is at an end."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(20)
    got: list[bytes] = []

    def run() -> None:
        with listening:
            line = listening.accept()[0]
        line.settimeout(20)
        try:
            line = tls.wrap_socket(line, server_side=True) if tls else line
            data = b""
            while not data.endswith(b"\x1c\r") and (part := line.recv(65536)):
                data += part
            got.append(data)
            answer(line, data)
        except OSError:  # the sender has gone, as it should
            pass
        line.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return listening.getsockname()[1], got, thread


def control(message: bytes) -> str:
    return message.split(b"|")[9].decode()


def says(code: str, text: str = "", of: str | None = None, frame=(b"\x0b", b"\x1c\r"), mark: str = "|"):
    def answer(line: socket.socket, data: bytes) -> None:
        fields = mark.join(["MSA", code, of or control(data), text])
        line.sendall(frame[0] + f"MSH{mark}^~\\&{mark}RIS\r{fields}\rERR{mark}\r".encode() + frame[1])

    return answer


MESSAGE = hl7.oru_r01(reported())


@pytest.mark.parametrize(("code", "accepted"), [("AA", True), ("AE", False), ("AR", False)])
def test_the_receiver_says_whether_it_has_the_message(code, accepted):
    port, got, thread = serve(says(code, "because\x1b[31m " + "x" * 5000))
    said = hl7.mllp_send("127.0.0.1", port, MESSAGE, 10)
    thread.join(20)
    assert (said.code, said.accepted, said.text[:12], len(said.text)) == (code, accepted, "because [31m", 200)
    assert got == [b"\x0b" + MESSAGE + b"\x1c\r"]


def test_an_answer_in_pieces_and_with_its_own_delimiter_is_read():
    def answer(line: socket.socket, data: bytes) -> None:
        for byte in b"\x0bMSH#^~\\&\r\nMSA#AA#" + control(data).encode() + b"\r\n\x1c\r":
            line.sendall(bytes([byte]))

    port, _, thread = serve(answer)
    assert hl7.mllp_send("127.0.0.1", port, MESSAGE, 10) == hl7.Acknowledgement("AA", "")
    thread.join(20)


def _garbage(line: socket.socket, _: bytes) -> None:
    line.sendall(b"\x0b" + bytes(range(32, 256)) + b"\x1c\r")


def _too_much(line: socket.socket, _: bytes) -> None:
    line.sendall(b"\x0b" + b"x" * 2**22)
    time.sleep(5)


def _http(line: socket.socket, _: bytes) -> None:
    line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\x1c\r")


def _closes(line: socket.socket, _: bytes) -> None:
    line.sendall(b"\x0bMSH|^~\\&|\rMSA|AA|")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_garbage, "no acknowledgement"),
        (_too_much, "more than 65536 bytes"),
        (_http, "does not begin"),
        (_closes, "closed"),
        (lambda *_: None, "closed"),
        (says("AA", of="another"), "another message"),
        (says("AA", of=" "), "another message"),
        (says("CA"), "'CA'"),
        (says("AA", frame=(b"\x0b\x0b", b"\x1c\r")), "no acknowledgement"),
        (says("AA", mark="\r"), "no acknowledgement"),
    ],
)
def test_any_other_answer_is_none(answer, words):
    port, _, thread = serve(answer)
    with pytest.raises(hl7.NotAcknowledged, match=words):
        hl7.mllp_send("127.0.0.1", port, MESSAGE, 10)
    thread.join(20)


def test_silence_and_an_answer_that_trickles_end_with_the_time():
    def trickles(line: socket.socket, _: bytes) -> None:
        for _ in range(100):
            line.sendall(b"\x0b")
            time.sleep(0.1)

    for answer in (trickles, lambda *_: time.sleep(2)):
        port, _, thread = serve(answer)
        began = time.monotonic()
        with pytest.raises(hl7.NotAcknowledged, match="timed out"):
            hl7.mllp_send("127.0.0.1", port, MESSAGE, 0.7)
        assert time.monotonic() - began < 1.9
        thread.join(20)


def test_a_receiver_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(hl7.NotAcknowledged, match=f"127.0.0.1:{port}"):
        hl7.mllp_send("127.0.0.1", port, MESSAGE, 5)


def test_tls_needs_a_certificate_that_is_trusted(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", *files],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    port, _, thread = serve(says("AA"), server)
    trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    assert hl7.mllp_send("127.0.0.1", port, MESSAGE, 10, trusting).accepted
    thread.join(20)
    port, got, thread = serve(says("AA"), server)
    with pytest.raises(hl7.NotAcknowledged, match="certificate"):
        hl7.mllp_send("127.0.0.1", port, MESSAGE, 10, ssl.create_default_context())
    thread.join(20)
    assert not got
