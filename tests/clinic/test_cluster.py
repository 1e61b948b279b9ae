"""Workers of a real dask scheduler read what the command alone would have read, whoever dies in the middle."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lungkit
from lungkit import cli
from lungkit.clinic import batch, cluster
from lungkit.clinic.cluster import ClusterError
from lungkit.errors import LungkitError
from lungkit.models import registry

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

CAT = Path(__file__).with_name("cat.jpg")
# Processes import this lungkit, whatever their current folder is.
CHECKOUT = {"PYTHONPATH": str(Path(lungkit.__file__).parents[1])}

# Runs in each worker when it starts. It notes what is read, and stands for a decoder in C that a file makes write where
# it must not.
PRELOAD = """
import os
import time
from lungkit.clinic import decode

whole = getattr(decode, "whole", decode.decode)  # dask may run this twice
decode.whole = whole

def decode_or_crash(files, spec, home):
    with open({log!r}, "a") as log:
        log.writelines(file.name + chr(10) for file in files)
    if any(file.name == "crash.dcm" for file in files):
        time.sleep(1)  # dask starts no other worker for one that dies before it knows that it has started
        os._exit(1)
    return whole(files, spec, home)

decode.decode = decode_or_crash
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """What the workers see: a registry, and a note of every file that they read."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def workers(trained, shared):
    """A scheduler with two workers of one thread, on loopback; a file may end two of them before it is given up."""
    shutil.copytree(trained, shared / "artifacts")
    preload = shared / "preload.py"
    preload.write_text(PRELOAD.format(log=str(shared / "read.txt")))
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        running = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", preload=str(preload),
            env={"LUNGKIT_ARTIFACTS": str(shared / "artifacts"), **CHECKOUT},
        )  # fmt: skip
    ports = [int(place.rpartition(":")[2]) for place in (running.scheduler_address, *_addresses(running))]
    yield running
    running.close()
    assert [port for port in ports if _is_taken(port)] == []


def _addresses(running) -> list[str]:
    return [nanny.worker_address for nanny in running.workers.values()]


def _is_taken(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def address(workers) -> str:
    return workers.scheduler_address


@pytest.fixture
def version(shared, workers, monkeypatch, tmp_path) -> registry.Version:
    """The version that the workers have, a current folder, and small chunks, as if a few files were many."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(shared / "artifacts"))
    monkeypatch.setattr(cluster, "CHUNK", 4)
    return registry.find("tiny-cnn")


@pytest.fixture
def job(version) -> cluster.Job:
    return cluster.job(version, registry.fingerprint(version), None)


@pytest.fixture
def read_now(shared):
    """A function: the names of the files that workers have read since the test began."""
    log = shared / "read.txt"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    return lambda: log.read_text().splitlines()[before:]


@pytest.fixture
def archive(version, tmp_path, slice_files) -> Path:
    """A folder "in" of the current one: 40 slices in it and below, a broken image and other files."""
    for number in range(40):
        file = tmp_path / "in" / str(number % 3) / f"{number:02}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(slice_files[number % len(slice_files)], file)
    (tmp_path / "in" / "1" / "cut.jpg").write_bytes(CAT.read_bytes()[:2000])
    (tmp_path / "in" / "README.txt").write_text("notes")
    return Path("in")


def _predict(*arguments) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `lungkit predict`."""
    ran = CliRunner().invoke(cli.app, ["predict", *map(str, arguments)])
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran.exit_code, ran.stdout, ran.stderr


def _records(out: str) -> list[dict]:
    """The objects of JSON lines, without the time that each took."""
    return [{key: value for key, value in json.loads(line).items() if key != "ms"} for line in out.splitlines()]


# --- the same lines


def test_the_lines_are_those_of_the_command_alone_in_the_same_order(version, address, archive):
    asked = [archive, "gone.png", "nothing/*.png", archive / "0" / "00.dcm"]
    code, out, _ = _predict(*asked)
    spread_code, spread_out, _ = _predict(*asked, "--scheduler", address)
    note, *lines = out.splitlines()
    assert spread_out.splitlines() == [*lines, note], "what a folder contains besides is known at its end"
    assert code == spread_code == 1
    assert [line for line in lines if "no such file" in line or "truncated" in line or "no image file" in line] == [
        "nothing/*.png: no image file there",
        next(line for line in lines if line.startswith("in/1/cut.jpg: truncated")),
        "gone.png: no such file. Check the path.",
    ]
    assert len(lines) == 43


def test_a_worker_writes_the_heat_maps_and_sends_only_where_they_are(version, address, archive):
    files = [archive / "0", "--json", "--heatmaps"]
    _, out, _ = _predict(*files, "heat")
    _, spread_out, _ = _predict(*files, "spread", "--scheduler", address)
    records = _records(spread_out.replace("spread/", "heat/"))
    assert [{**record, "probabilities": 0, "checks": 0} for record in records] == [
        {**record, "probabilities": 0, "checks": 0} for record in _records(out)
    ]
    for record in records:
        assert Path(record["heatmap"]).read_bytes() == Path("spread", Path(record["heatmap"]).name).read_bytes()


def test_files_are_found_no_further_ahead_than_a_few_chunks(version, job, address, slice_files):
    taken = []
    records = cluster.read_files(address, job, (taken.append(file) or file for file in slice_files * 100))
    next(records)
    records.close()
    assert len(taken) <= 24, "three chunks of four for each of two workers"


# --- whoever dies


def test_a_worker_that_dies_takes_no_file_with_it(workers, job, address, archive):
    files = batch.find([str(archive)]).files
    records = cluster.read_files(address, job, files)
    first = next(records)
    for nanny in workers.workers.values():
        os.kill(nanny.pid, signal.SIGKILL)
    told = [first, *records]
    assert [record["file"] for record in told] == [str(file) for file in files]
    assert [record["file"] for record in told if "error" in record] == ["in/1/cut.jpg"]


def test_a_file_that_kills_its_workers_is_named_and_the_rest_is_read(version, job, address, archive, read_now):
    (archive / "0" / "crash.dcm").write_bytes(b"")
    files = batch.find([str(archive)]).files
    told = list(cluster.read_files(address, job, files))
    assert [record["file"] for record in told] == [str(file) for file in files]
    assert [record["error"] for record in told if "error" in record] == [
        "in/0/crash.dcm: damaged: its decoder crashed. Export the image again, or convert it to PNG.",
        next(record["error"] for record in told if record["file"] == "in/1/cut.jpg"),
    ]
    assert read_now().count("crash.dcm") == 4, "two workers with its chunk, and two alone"


def test_an_answer_that_dies_with_its_worker_is_waited_for_and_people_hear_why(monkeypatch, capsys):
    class Lost:
        """A task that is done, whose answer is gone until another worker makes it once more."""

        asked = 0

        def done(self) -> bool:
            return self.asked != 1

        def result(self, timeout: float) -> list[dict]:
            self.asked += 1
            if self.asked == 1:
                raise TimeoutError
            return [{"file": "a.png"}]

    class Nobody:
        def ncores(self) -> dict:
            return {}

    def wait(future, timeout: float) -> None:
        future.asked += 1
        raise TimeoutError

    monkeypatch.setattr(cluster.distributed, "wait", wait)
    assert cluster._Queue(Nobody(), "tcp://here:1", None)._answer(Lost()) == [{"file": "a.png"}]
    assert "no worker has joined tcp://here:1" in capsys.readouterr().err


@pytest.fixture
def another_process():
    """A function: `lungkit predict` in a process of its own, with chunks of two files."""
    code = "from lungkit.clinic import cluster; cluster.CHUNK = 2; from lungkit import cli; cli.main()"
    started = []

    def start(*arguments) -> subprocess.Popen:
        command = [sys.executable, "-c", code, "predict", *map(str, arguments)]
        environment = os.environ | CHECKOUT
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _wait_for_lines(path: Path, count: int) -> None:
    for _ in range(1200):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} has fewer than {count} lines")


def test_a_command_that_is_interrupted_and_then_killed_continues_from_its_checkpoint(
    version, address, archive, another_process, read_now
):
    kept = Path("checkpoint.jsonl")
    asked = [archive, "--json", "--scheduler", address, "--checkpoint", kept]
    interrupted = another_process(*asked)
    _wait_for_lines(kept, 3)
    interrupted.send_signal(signal.SIGINT)
    _, told = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert told.endswith(
        "interrupted; files without a line were not read; with --checkpoint, the same command continues\n"
    )
    assert "Traceback" not in told
    once = kept.read_bytes()

    killed = another_process(*asked)
    _wait_for_lines(kept, once.count(b"\n") + 2)
    killed.kill()
    killed.communicate()
    twice = kept.read_bytes()
    assert twice.startswith(once)

    answered = twice.count(b"\n") - 1
    assert answered < 41
    done = read_now()
    code, out, _ = _predict(*asked)
    assert code == 1
    assert kept.read_bytes().startswith(twice)
    lines = kept.read_text().splitlines()
    assert [json.loads(line) for line in out.splitlines()] == [json.loads(line) for line in lines[1:]]
    assert [json.loads(line)["file"] for line in lines[1:]] == [str(file) for file in batch.find([str(archive)]).files]
    before = {Path(json.loads(line)["file"]).name for line in lines[1 : 1 + answered]}
    assert before.isdisjoint(read_now()[len(done) :]), "nothing that was answered is read again"


def test_without_a_scheduler_a_command_continues_from_the_same_checkpoint(version, address, archive, read_now):
    kept = Path("checkpoint.jsonl")
    _, whole, _ = _predict(archive, "--json", "--checkpoint", kept)
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:11]) + lines[11][:20])  # as a power failure leaves it
    _, out, _ = _predict(archive, "--json", "--checkpoint", kept, "--scheduler", address)
    assert out.splitlines()[:10] == whole.splitlines()[:10], "to the millisecond"
    assert [record["file"] for record in _records(out)] == [record["file"] for record in _records(whole)]
    assert len(read_now()) == 31
    assert _predict(archive, "--checkpoint", kept)[1].splitlines()[:-1] == _predict(archive)[1].splitlines()[1:]
    with pytest.raises(LungkitError, match=r"another command: files was in, is in/0\. Give"):
        _predict(archive / "0", "--checkpoint", kept)


SCHEDULER = """
import distributed, time
if __name__ == "__main__":
    running = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, host="127.0.0.1", protocol="tcp://",
        dashboard_address="127.0.0.1:0",
    )
    print(running.scheduler_address, flush=True)
    time.sleep(600)
"""


def test_a_scheduler_that_goes_away_ends_the_command_with_one_message_and_a_whole_checkpoint(
    version, archive, monkeypatch
):
    monkeypatch.setattr(cluster, "_CONNECT", "2s")
    environment = os.environ | CHECKOUT
    running = subprocess.Popen([sys.executable, "-c", SCHEDULER], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        address = running.stdout.readline().strip()
        asked = cluster.job(version, registry.fingerprint(version), None)
        records = cluster.read_files(address, asked, batch.find([str(archive)]).files)
        first = next(records)
        running.kill()
        with pytest.raises(ClusterError, match=f"^the scheduler at {address} went away. With --checkpoint, the same"):
            list(records)
        assert "error" not in first
        with pytest.raises(ClusterError, match=f"^no scheduler answers at {address} "):
            next(cluster.read_files(address, asked, [CAT]))
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


# --- who may take part


def test_a_worker_with_another_version_of_that_name_refuses(version, address, tmp_path, monkeypatch):
    def write(folder: Path) -> None:
        for file in version.card.files:
            shutil.copy(version.folder / file, folder / file)
        (folder / "notes.txt").write_text("trained again")

    monkeypatch.setenv("LUNGKIT_ARTIFACTS", str(tmp_path / "other"))
    registry.add("tiny-cnn", version.card, write)
    refusal = r"^the worker tcp://\S+ cannot take part: its tiny-cnn@v1 is another version of that name: the hashes of"
    with pytest.raises(ClusterError, match=refusal):
        _predict(CAT, "--model", "tiny-cnn@v1", "--scheduler", address)


def test_a_worker_without_the_version_refuses(version, job, address):
    other = cluster.Job("tiny-cnn@v9", job.fingerprint, job.lungkit, job.home, None)
    with pytest.raises(ClusterError, match=r"^the worker tcp://\S+ cannot take part: tiny-cnn has no version 'v9'"):
        list(cluster.read_files(address, other, [CAT]))


def test_a_worker_of_another_lungkit_refuses(version, address, monkeypatch):
    monkeypatch.setattr(lungkit, "__version__", "9.9")
    refusal = r"^the worker tcp://\S+ cannot take part: it has lungkit \d\S+, and 9\.9 was asked for; install the same"
    with pytest.raises(ClusterError, match=refusal):
        _predict(CAT, "--scheduler", address)


def test_a_worker_checks_the_hashes_of_the_files_it_loads(version, job, address, shared):
    """Heat maps, which no test before this one asked this version for in this way, make it load again."""
    file = version.folder / "graph.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    asked = cluster.Job(job.model, hashlib.sha256(b"").hexdigest(), job.lungkit, job.home, None)
    try:
        with pytest.raises(ClusterError, match=r"tiny-cnn@v1: graph\.bin was changed after it was registered"):
            list(cluster.read_files(address, asked, [CAT]))
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("address", ["tls://127.0.0.1:1", "carrier-pigeon://home"])
def test_an_address_that_cannot_be_used_is_named(version, job, address):
    with pytest.raises(ClusterError, match=f"^no scheduler answers at {address} "):
        next(cluster.read_files(address, job, [CAT]))


@pytest.fixture
def certificate(tmp_path) -> dict[str, str]:
    """dask's settings for TLS, with one certificate for everyone."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert]
    subprocess.run([*made, "-days", "1", "-subj", "/CN=localhost"], check=True, capture_output=True)
    of_each = {f"distributed.comm.tls.{who}.{what}": file for who in ("scheduler", "worker", "client")
               for what, file in (("cert", cert), ("key", key))}  # fmt: skip
    return {"distributed.comm.tls.ca-file": cert, **of_each}


def test_tls_takes_the_certificates_of_dasks_own_settings(version, archive, certificate):
    asked = cluster.job(version, registry.fingerprint(version), None)
    files = batch.find([str(archive / "0")]).files
    with (
        dask.config.set(certificate),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, host="127.0.0.1", protocol="tls://",
            security=distributed.Security(), dashboard_address="127.0.0.1:0",
        ) as running,
    ):  # fmt: skip
        address = running.scheduler_address
        assert address.startswith("tls://")
        records = list(cluster.read_files(address, asked, files))
    assert [record["file"] for record in records if record["label"]] == [str(file) for file in files]


def test_processes_of_this_machine_and_a_scheduler_are_not_asked_for_at_once(version):
    with pytest.raises(LungkitError, match="leave it out with --scheduler"):
        _predict(CAT, "--scheduler", "tcp://127.0.0.1:1", "--workers", "2")


def test_without_a_scheduler_dask_is_not_loaded_and_with_one_its_extra_is_named(version):
    script = (
        "import sys\nfrom lungkit import cli\n"
        f"try:\n    sys.argv[1:] = ['predict', {str(CAT)!r}]\n    cli.main()\n"
        "except SystemExit:\n    print({'dask', 'distributed'} & set(sys.modules))\n"
        "sys.modules['distributed'] = None\n"
        f"sys.argv[1:] = ['predict', {str(CAT)!r}, '--scheduler', 'tcp://127.0.0.1:1']\ncli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=os.environ | CHECKOUT
    )
    assert done.stdout.splitlines()[-1] == "set()"
    assert done.stderr.splitlines()[-1] == (
        "error: this needs lungkit[cluster] (distributed is not installed): pip install 'lungkit[cluster]'"
    )
