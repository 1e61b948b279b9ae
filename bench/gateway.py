"""The gateway's doors for DICOM: what they bear, and what they answer to bad requests, next to Orthanc.

python -m bench.gateway ports [NUMBER]    opens and closes the DICOM port so often; threads and descriptors after it
python -m bench.gateway memory [NUMBER]   sends so many CT slices by C-STORE; memory of the gateway as they come
python -m bench.gateway series FOLDER     from storing a CT series to its reading, in seconds
python -m bench.gateway stow              ten bad requests to lungkit and to Orthanc, as a table

A real gateway on this machine, on throw-away records. It needs DCMTK and, for the table, Orthanc with DICOMweb.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pydicom
import requests
from pydicom.uid import generate_uid

from bench.machine import machine
from lungkit.clinic.records import jobs, keys, maintenance, received, routing
from lungkit.clinic.records.routing import Rule
from lungkit.clinic.records.store import Store
from lungkit.data import phantom
from tests.shipped import export

LUNGKIT = [sys.executable, "-c", "from lungkit import cli; cli.main()"]
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
BOUNDARY = "bench"
RELATED = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@dataclass
class Gateway:
    """A gateway that answers."""

    url: str
    port: int  # of DICOM
    key: str
    store: Store
    process: psutil.Process

    def send(self, folder: Path) -> float:
        """Send a folder by C-STORE; the seconds that it took."""
        began = time.perf_counter()
        called = ["-aet", "BENCH", "-aec", "LUNGKIT", "127.0.0.1", str(self.port)]
        subprocess.run(["dcmsend", *called, "+sd", str(folder)], check=True)
        return time.perf_counter() - began


@contextmanager
def gateway(model: str = "ct-infection", quiet: float = 3600) -> Iterator[Gateway]:
    """A gateway on throw-away records, which takes what BENCH sends; a rule reads CT with the model."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.environ |= {"LUNGKIT_DATA": f"{folder}/data", "LUNGKIT_ARTIFACTS": str(export(Path(folder, "models")))}
        store = Store()
        maintenance.upgrade(store)
        with store.write() as db:
            routing.add_caller(db, "BENCH")
            row = routing.add_route(db, Rule(name="CT", model=model, modality="CT"))
            routing.note_trial(db, row.id)
            routing.set_route(db, row.id, True)
            key = keys.add_key(db, "bench", ["predict", "read"], per_minute=100_000)
        log = Path(folder, "log")
        command = [*LUNGKIT, "gateway", "--port", "0", "--dicom-port", "0", "--quiet", str(quiet)]
        with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
            try:
                while not (found := re.search(r"dicom://\S+:(\d+)[\s\S]*(http://\S+)/", log.read_text())):
                    if process.poll() is not None:
                        raise SystemExit(log.read_text())
                    time.sleep(0.1)
                yield Gateway(found[2], int(found[1]), key, store, psutil.Process(process.pid))
            finally:
                process.terminate()


def ports(number: int) -> None:
    """Open and close the port."""
    with gateway() as running:
        for opened in (0, 100, number):
            began = time.perf_counter()
            for turn in range(opened):
                with socket.create_connection(("127.0.0.1", running.port)) as connection:
                    connection.sendall((b"", b"\x01\0\0", b"GET / HTTP/1.1\r\n\r\n")[turn % 3])
            seconds = time.perf_counter() - began
            time.sleep(12)  # the longest that a connection without a request may last
            process = running.process
            print(
                f"{opened:6,} opened and closed in {seconds:5.1f} s: {process.num_threads()} threads, "
                f"{process.num_fds()} descriptors, {process.memory_info().rss >> 20} MiB"
            )
        subprocess.run(["echoscu", "-aet", "BENCH", "-aec", "LUNGKIT", "127.0.0.1", str(running.port)], check=True)
        print("C-ECHO is answered")


def memory(number: int, each: int = 500) -> None:
    """Send slices, `each` at a time."""
    with gateway() as running, tempfile.TemporaryDirectory() as folder:
        cut = next(iter(phantom.make_patient("M", "Normal", 1, 1, 512)))
        phantom.write_dicom(cut, Path(folder, "one.dcm"), original=True)
        one = pydicom.dcmread(Path(folder, "one.dcm"))
        one.decompress()
        one.save_as(Path(folder, "one.dcm"))
        for sent in range(0, number + 1, each):
            seconds = 0.0
            if sent:
                with tempfile.TemporaryDirectory() as batch:
                    one.SeriesInstanceUID = generate_uid()
                    for turn in range(each):
                        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                        one.save_as(Path(batch, f"{turn}.dcm"))
                    seconds = running.send(Path(batch))
            process = running.process
            rate = f"{each / seconds:.0f} a second" if seconds else ""
            print(f"{sent:6,} slices: {process.memory_info().rss >> 20} MiB, {process.num_fds()} descriptors {rate}")


def series(folder: Path) -> None:
    """Store a series, and wait for its reading."""
    with gateway("ct-covid", quiet=1) as running, tempfile.TemporaryDirectory() as copy:
        for path in sorted(folder.glob("*.dcm")):
            one = pydicom.dcmread(path)
            one.PatientName = "Bench^Series"
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            one.save_as(Path(copy, path.name))
        began = time.perf_counter()
        print(f"stored in {running.send(Path(copy)):.1f} s", flush=True)
        while not (counts := jobs.counts(running.store)):
            time.sleep(0.05)
        print(f"complete and queued after {time.perf_counter() - began:.1f} s", flush=True)
        while not {"done", "failed"} & set(counts := jobs.counts(running.store)):
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        with running.store.read() as db:
            print(received.latest(db)[0].outcome)
        auth = {"Authorization": f"Bearer {running.key}"}
        print(f"{counts} after {seconds:.1f} s; {running.process.memory_info().rss >> 20} MiB")
        assert requests.get(f"{running.url}/health/live", headers=auth, timeout=10).ok


# --- bad requests


def related(*parts: bytes, kind: str = "application/dicom", end: str = f"--{BOUNDARY}--\r\n") -> bytes:
    """A body of these parts."""
    head = f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + end.encode()


def bad_requests(good: bytes) -> list[tuple[str, str, bytes, str]]:
    """What is wrong, the Content-Type, the body, and what follows /studies."""
    return [
        ("an empty body", RELATED, b"", ""),
        ("an empty body that is to be one file", "application/dicom", b"", ""),
        ("JSON", "application/json", b"{}", ""),
        ("a form", f"multipart/form-data; boundary={BOUNDARY}", related(good), ""),
        ("another boundary than is said", RELATED.replace("=bench", "=other"), related(good), ""),
        ("no part at all", RELATED, f"--{BOUNDARY}--\r\n".encode(), ""),
        ("cut off before the last boundary", RELATED, related(good[: len(good) // 2], end="")[:-2], ""),
        ("a part that is no DICOM", RELATED, related(b"no DICOM at all" * 20), ""),
        ("one good part and one that is cut off", RELATED, related(good, good[:400]), ""),
        ("a file of another study than the address", RELATED, related(good), "/1.2.3.4"),
    ]


@contextmanager
def orthanc() -> Iterator[str]:
    """The address of an Orthanc."""
    with tempfile.TemporaryDirectory(prefix="orthanc-") as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        settings = {
            "HttpPort": port, "DicomServerEnabled": False, "StorageDirectory": folder, "IndexDirectory": folder,
            "AuthenticationEnabled": False, "RemoteAccessAllowed": False, "Plugins": [str(PLUGIN)],
        }  # fmt: skip
        Path(folder, "orthanc.json").write_text(json.dumps(settings))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(["Orthanc", f"{folder}/orthanc.json"], **quiet) as process:
            url = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    requests.get(f"{url}/system", timeout=5)
                    break
                except requests.ConnectionError:
                    time.sleep(0.1)
            try:
                yield url
            finally:
                process.terminate()


def answer(url: str, path: str, kind: str, body: bytes, key: str = "") -> str:
    """The status of an answer, and what it says of the files."""
    headers = {"Content-Type": kind, "Accept": "application/dicom+json"} | (
        {"Authorization": f"Bearer {key}"} if key else {}
    )
    said = requests.post(f"{url}{path}", data=body, headers=headers, timeout=60)
    try:
        found = said.json()
    except ValueError:
        found = {}
    number = {
        name: len(found.get(tag, {}).get("Value", [])) for name, tag in (("stored", "00081199"), ("failed", "00081198"))
    }
    return f"{said.status_code}" + "".join(f", {count} {name}" for name, count in number.items() if count)


def stow() -> None:
    """The table."""
    with gateway() as running, orthanc() as other, tempfile.TemporaryDirectory() as folder:
        phantom.write_dicom(
            next(iter(phantom.make_patient("S", "Normal", 1, 1, 128))), Path(folder, "one.dcm"), original=True
        )
        one = pydicom.dcmread(Path(folder, "one.dcm"))
        print("| request | lungkit | files kept | Orthanc | files kept |\n|---|---|--:|---|--:|")
        stored = [0, 0]
        for turn in range(10):
            one.StudyInstanceUID, one.SOPInstanceUID = generate_uid(), generate_uid()
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            one.save_as(Path(folder, "one.dcm"))
            what, kind, body, rest = bad_requests(Path(folder, "one.dcm").read_bytes())[turn]
            ours = answer(f"{running.url}/api/v1/dicom-web", f"/studies{rest}", kind, body, running.key)
            theirs = answer(f"{other}/dicom-web", f"/studies{rest}", kind, body)
            with running.store.read() as db:
                now = [
                    sum(row.files for row in received.latest(db)),
                    len(requests.get(f"{other}/instances", timeout=9).json()),
                ]
            print(f"| {what} | {ours} | {now[0] - stored[0]} | {theirs} | {now[1] - stored[1]} |")
            stored = now


def main() -> None:
    """Measure what the command line names."""
    what, *more = sys.argv[1:] or ["stow"]
    print(machine("pynetdicom", "pydicom"))
    if what == "series":
        series(Path(more[0]))
    elif what == "stow":
        stow()
    else:
        {"ports": ports, "memory": memory}[what](int(more[0]) if more else 10_000)


if __name__ == "__main__":
    main()
