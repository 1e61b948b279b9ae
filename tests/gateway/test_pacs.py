"""A PACS, Orthanc, sends to the gateway as the page for its administrators says."""

import json
import shutil
import socket
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
import requests

from lungkit.clinic.records import received
from lungkit.gateway.dicom import Settings

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
pytestmark = [
    pytest.mark.usefixtures("rules"),
    pytest.mark.skipif(
        shutil.which("Orthanc") is None or not PLUGIN.exists(),
        reason="Orthanc with DICOMweb is not there (Debian: orthanc orthanc-dicomweb)",
    ),
]


@pytest.fixture
def door(start_gateway, sqlite_store):
    return start_gateway(sqlite_store, quiet=timedelta(hours=1), dicom=Settings(port=0))


@pytest.fixture
def orthanc(door, tmp_path) -> str:
    """The address of an Orthanc that knows the gateway as "lungkit"."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = {"Url": f"{door.url}/api/v1/dicom-web/", "HttpHeaders": {"Authorization": f"Bearer {door.key}"}}
    settings = {
        "HttpPort": port, "DicomServerEnabled": False, "DicomAet": "SCANNER1", "StorageDirectory": str(tmp_path),
        "IndexDirectory": str(tmp_path), "AuthenticationEnabled": False, "Plugins": [str(PLUGIN)],
        "DicomModalities": {"lungkit": {"AET": "LUNGKIT", "Host": "127.0.0.1", "Port": door.dicom_port}},
        "DicomWeb": {"Servers": {"lungkit": server}},
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(["Orthanc", tmp_path / "orthanc.json"], **silent)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                requests.get(f"http://127.0.0.1:{port}/system", timeout=5)
                break
            except requests.RequestException:
                assert time.monotonic() < until
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()  # it may wait for a transfer that will not end; nothing of it is kept
        process.wait()


@pytest.mark.parametrize(
    ("path", "body", "caller"),
    [
        ("modalities/lungkit/store", lambda study: study, "SCANNER1"),
        ("dicom-web/servers/lungkit/stow", lambda study: json.dumps({"Resources": [study]}), ""),
    ],
    ids=["C-STORE", "STOW-RS"],
)
def test_a_study_from_orthanc_arrives_whole(orthanc, door, chest, path, body, caller):
    for file in chest.iterdir():
        study = requests.post(f"{orthanc}/instances", data=file.read_bytes(), timeout=30).json()["ParentStudy"]
    answer = requests.post(f"{orthanc}/{path}", data=body(study), timeout=60)
    assert answer.status_code == 200, answer.text
    with door.store.read() as db:
        (row,) = received.latest(db)
    assert (row.caller, row.files) == (caller, 12)
