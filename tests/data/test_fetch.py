"""Downloading, against a server on this machine that breaks off, ignores ranges, lies or fails."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lungkit import config
from lungkit.data import fetch

CONTENT = bytes(range(256)) * 2000


class Server:
    """Serves CONTENT. cut: bytes after which a connection is dropped; answers: status codes instead, one a request."""

    def __init__(self):
        self.content, self.cut, self.ranges, self.answers, self.asked = CONTENT, None, True, [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                server.asked.append(asked)
                if server.answers:
                    self.send_error(server.answers.pop(0))
                    return
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
                if start >= len(server.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(server.content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                rest = server.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest if server.cut is None else rest[: server.cut])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/pneumoniamnist.npz"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    published = fetch._Published("https://example.org/files/pneumoniamnist.npz", hashlib.md5(CONTENT).hexdigest())
    monkeypatch.setitem(fetch.PUBLISHED, "pneumoniamnist", published)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def part():
    """The beginning that a broken download leaves."""
    path = config.data_dir() / "pneumoniamnist" / "pneumoniamnist.npz.part"
    path.parent.mkdir(parents=True)
    return path


def test_a_file_is_downloaded_whole_with_a_progress_bar(server, capfd):
    path = fetch.fetch("pneumoniamnist", url=server.url)
    assert path == config.data_dir() / "pneumoniamnist" / "pneumoniamnist.npz" and path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert "fetching pneumoniamnist.npz" in capfd.readouterr().err


def test_a_file_that_is_there_is_not_asked_for_again(server, tmp_path):
    for _ in range(2):
        path = fetch.fetch("pneumoniamnist", folder=tmp_path / "mine", url=server.url)
    assert path.parent == tmp_path / "mine" and server.asked == [None]


def test_a_dropped_connection_is_taken_up_where_it_broke(server):
    server.cut = 200_000
    assert fetch.fetch("pneumoniamnist", url=server.url).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=200000-", "bytes=400000-"]


def test_the_beginning_of_an_earlier_run_is_used(server, part):
    part.write_bytes(CONTENT[:300_000])
    assert fetch.fetch("pneumoniamnist", url=server.url).read_bytes() == CONTENT
    assert server.asked == ["bytes=300000-"] and not part.exists()


def test_a_server_that_ignores_ranges_sends_the_whole_and_nothing_is_doubled(server, part):
    part.write_bytes(CONTENT[:300_000])
    server.ranges = False
    assert fetch.fetch("pneumoniamnist", url=server.url).read_bytes() == CONTENT


def test_a_beginning_that_is_already_the_whole_is_accepted(server, part):
    part.write_bytes(CONTENT)
    assert fetch.fetch("pneumoniamnist", url=server.url).read_bytes() == CONTENT


def test_a_beginning_longer_than_the_file_is_begun_again(server, part):
    part.write_bytes(CONTENT + b"more")
    assert fetch.fetch("pneumoniamnist", url=server.url).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_wrong_checksum_is_named_and_the_part_deleted(server, part):
    server.content = b"<html>please log in</html>"
    with pytest.raises(
        fetch.FetchError, match=r"pneumoniamnist\.npz\.part is not the published file: its md5 is"
    ) as caught:
        fetch.fetch("pneumoniamnist", url=server.url)
    assert "it was deleted" in str(caught.value) and not list(part.parent.iterdir())
    server.content = CONTENT
    assert fetch.fetch("pneumoniamnist", url=server.url).read_bytes() == CONTENT


def test_another_file_under_the_name_is_refused_and_left_alone(server, part):
    path = part.with_suffix("")
    path.write_bytes(b"mine")
    with pytest.raises(fetch.FetchError, match="move it away and fetch again, or give its path"):
        fetch.fetch("pneumoniamnist", url=server.url)
    assert path.read_bytes() == b"mine" and server.asked == []


def test_a_passing_fault_of_the_server_is_tried_again(server):
    server.answers = [503, 500]
    assert fetch.fetch("pneumoniamnist", url=server.url).read_bytes() == CONTENT


def test_a_file_the_server_does_not_have_is_asked_for_once(server):
    server.answers = [404] * 9
    with pytest.raises(fetch.FetchError, match="Not Found"):
        fetch.fetch("pneumoniamnist", url=server.url)
    assert len(server.asked) == 1


def test_a_server_that_never_sends_a_byte_is_given_up(server):
    server.cut = 0
    with pytest.raises(fetch.FetchError, match="closed early"):
        fetch.fetch("pneumoniamnist", url=server.url)
    assert len(server.asked) == fetch.ATTEMPTS


def test_offline_it_says_what_to_download_where_to_put_it_and_how_to_check_it(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/pneumoniamnist.npz"
        with pytest.raises(fetch.FetchError) as caught:
            fetch.fetch("pneumoniamnist", url=url)
    message = str(caught.value)
    assert "https://zenodo.org/records/10519652/files/pneumoniamnist.npz" in message
    assert str(config.data_dir() / "pneumoniamnist" / "pneumoniamnist.npz") in message
    assert "28209eda62fecd6e6a2d98b1501bb15f" in message


def test_an_unknown_name_lists_what_can_be_fetched():
    with pytest.raises(fetch.FetchError, match="there are: pneumoniamnist"):
        fetch.fetch("chestmnist")
