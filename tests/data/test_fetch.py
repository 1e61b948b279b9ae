"""Downloading, from a server on this machine that breaks off, lies or fails."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pooch
import pytest

from lungkit import config
from lungkit.data import fetch

CONTENT = bytes(range(256)) * 2000
NAME = "pneumoniamnist"


class Server:
    """Serves `content`. cut: drops the first connections after this many bytes; answers: status codes to give first."""

    def __init__(self):
        self.content, self.cut, self.answers, self.requests = CONTENT, [], [], 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests += 1
                if server.answers:
                    self.send_error(server.answers.pop(0))
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(server.content)))
                self.end_headers()
                self.wfile.write(server.content[: server.cut.pop(0) if server.cut else None])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/pneumoniamnist.npz"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setitem(fetch.PUBLISHED, NAME, (made.url, hashlib.md5(CONTENT).hexdigest()))
    yield made
    made.http.shutdown()
    made.http.server_close()


def path():
    return config.data_dir() / NAME / f"{NAME}.npz"


def test_a_file_is_downloaded_whole_with_a_progress_bar(server, capfd):
    assert fetch.fetch(NAME) == path()
    assert path().read_bytes() == CONTENT
    assert [file.name for file in path().parent.iterdir()] == [path().name]
    shown = capfd.readouterr()
    assert "fetching pneumoniamnist.npz" in shown.err
    assert "Downloading" not in shown.err


def test_a_file_that_is_there_is_not_downloaded_again(server):
    for _ in range(2):
        fetch.fetch(NAME)
    assert server.requests == 1


@pytest.mark.parametrize("trouble", [{"cut": [200_000, 0]}, {"answers": [503, 500]}])
def test_a_download_that_fails_is_tried_again(server, trouble):
    vars(server).update(trouble)
    fetch.fetch(NAME)
    assert path().read_bytes() == CONTENT
    assert server.requests == 3


def test_a_file_with_another_checksum_is_not_kept(server):
    server.content = b"<html>please log in</html>"
    with pytest.raises(fetch.FetchError, match="hash"):
        fetch.fetch(NAME)
    assert list(path().parent.iterdir()) == []
    server.content = CONTENT
    assert fetch.fetch(NAME).read_bytes() == CONTENT


def test_another_file_under_the_name_is_refused_and_left_alone(server):
    path().parent.mkdir(parents=True)
    path().write_bytes(b"mine")
    with pytest.raises(fetch.FetchError, match="move it away and fetch again, or give its path"):
        fetch.fetch(NAME)
    assert path().read_bytes() == b"mine"
    assert server.requests == 0


def test_a_server_that_does_not_have_the_file_is_an_error_with_its_answer(server):
    server.answers = [404] * 9
    with pytest.raises(fetch.FetchError, match="Not Found"):
        fetch.fetch(NAME)
    assert server.requests <= fetch.RETRIES + 1


def test_without_a_connection_it_says_what_to_download_where_to_put_it_and_how_to_check_it(monkeypatch):
    md5 = fetch.PUBLISHED[NAME][1]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/pneumoniamnist.npz"
        monkeypatch.setitem(fetch.PUBLISHED, NAME, (url, md5))
        with pytest.raises(fetch.FetchError) as caught:
            fetch.fetch(NAME)
    for fact in (url, str(path()), md5):
        assert fact in str(caught.value)


def test_an_unknown_name_lists_what_can_be_fetched():
    with pytest.raises(fetch.FetchError, match="there are: pneumoniamnist"):
        fetch.fetch("chestmnist")
