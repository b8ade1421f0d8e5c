"""Downloads from a local HTTP server with simulated failures."""

import contextlib
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading

import pytest

from support import download

CONTENT = bytes(range(256)) * 300
FILES = {"file.bin": (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())}


@contextlib.contextmanager
def server(behaviour):
    """Runs a local server where `behaviour(handler, request number)` answers each GET; yields the folder's URL."""
    count = [0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            count[0] += 1
            behaviour(self, count[0])

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield "http://127.0.0.1:%d/" % httpd.server_address[1]
    finally:
        httpd.shutdown()
        httpd.server_close()


def answer(handler, content, status=200, length=None):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def good(handler, _):
    answer(handler, CONTENT)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


def files_in(folder):
    return sorted(os.listdir(str(folder)))


def test_a_good_mirror(tmp_path):
    with server(good) as url:
        download.fetch_all(FILES, [url], str(tmp_path / "made" / "on the way"))
    assert (tmp_path / "made" / "on the way" / "file.bin").read_bytes() == CONTENT
    assert files_in(tmp_path / "made" / "on the way") == ["file.bin"]


def test_a_file_may_be_verified_by_its_md5(tmp_path):
    right, wrong = hashlib.md5(CONTENT).hexdigest(), hashlib.md5(b"other").hexdigest()
    with server(good) as url:
        download.fetch_all({"file.bin": (len(CONTENT), "md5:" + right)}, [url], str(tmp_path / "right"))
        with pytest.raises(download.Unavailable, match="md5 differs"):
            download.fetch_all({"file.bin": (len(CONTENT), "md5:" + wrong)}, [url], str(tmp_path / "wrong"))
    assert (tmp_path / "right" / "file.bin").read_bytes() == CONTENT and files_in(tmp_path / "wrong") == []


def busy_twice(handler, number):
    answer(handler, b"busy", 503) if number < 3 else good(handler, number)


def too_fast_and_too_slow(handler, number):
    answer(handler, b"wait", {1: 429, 2: 408}[number]) if number < 3 else good(handler, number)


def short_once(handler, number):
    answer(handler, CONTENT[:1000], length=len(CONTENT)) if number < 2 else good(handler, number)


def reset(handler, content=b""):
    """Sends part of the file, then a TCP reset instead of the rest."""
    answer(handler, content, length=len(CONTENT))
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def reset_once(handler, number):
    reset(handler, CONTENT[:5000]) if number < 2 else good(handler, number)


@pytest.mark.parametrize("behaviour", [busy_twice, too_fast_and_too_slow, short_once, reset_once])
def test_a_temporary_failure_is_retried(tmp_path, behaviour):
    with server(behaviour) as url:
        download.fetch_all(FILES, [url], str(tmp_path))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def redirect(handler, number):
    handler.send_response(302)
    handler.send_header("Location", "/again/%d" % number)
    handler.end_headers()


def without_length(handler, content):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content)


BAD = {
    "not found": (lambda handler, _: answer(handler, b"", 404), "HTTP status 404"),
    "always busy": (lambda handler, _: answer(handler, b"", 503), "no complete answer"),
    "wrong bytes": (lambda handler, _: answer(handler, CONTENT[::-1]), "sha256 differs"),
    "login page": (lambda handler, _: answer(handler, b"<html>log in</html>"), "sends 19 bytes instead of"),
    "reset": (lambda handler, _: reset(handler), "no complete answer"),
    "redirect loop": (redirect, "no complete answer (TooManyRedirects)"),
    "short": (lambda handler, _: answer(handler, CONTENT[:-1], length=len(CONTENT)), "no complete answer"),
    "short without a length": (lambda handler, _: without_length(handler, CONTENT[:-1]), "no complete answer"),
    "longer without a length": (lambda handler, _: without_length(handler, CONTENT * 2), "sends more than"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_mirror_leaves_nothing_and_is_named(tmp_path, name):
    behaviour, complaint = BAD[name]
    with server(behaviour) as url:
        with pytest.raises(download.Unavailable) as caught:
            download.fetch_all(FILES, [url], str(tmp_path))
    assert complaint in str(caught.value) and "127.0.0.1" in str(caught.value) and "\n" not in str(caught.value)
    assert files_in(tmp_path) == []


def test_the_next_mirror_is_tried_after_a_bad_one(tmp_path):
    with server(BAD["wrong bytes"][0]) as bad, server(good) as url:
        download.fetch_all(FILES, [bad, url], str(tmp_path))
    assert files_in(tmp_path) == ["file.bin"]


def test_a_host_that_never_answers_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    with socket.socket() as silent:  # accepts connections, never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        with pytest.raises(download.Unavailable, match="no answer"):
            download.fetch_all(FILES, ["http://127.0.0.1:%d/" % silent.getsockname()[1]], str(tmp_path))


def test_a_stalled_download_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "READ_SECONDS", 0.2)
    over, waited_for_nothing = threading.Event(), threading.Event()

    def stall(handler, _):
        answer(handler, CONTENT[:1000], length=len(CONTENT))
        handler.wfile.flush()
        if not over.wait(60):
            waited_for_nothing.set()

    with server(stall) as url:
        with pytest.raises(download.Unavailable, match="no complete answer"):
            download.fetch_all(FILES, [url], str(tmp_path))
        over.set()
    assert files_in(tmp_path) == [] and not waited_for_nothing.is_set()


DOWNLOAD = "import sys; from support import download; download.fetch_all(eval(sys.argv[1]), [sys.argv[2]], sys.argv[3])"


def downloading(url, folder):
    return subprocess.Popen([sys.executable, "-c", DOWNLOAD, repr(FILES), url, str(folder)],
                            cwd=os.path.dirname(os.path.dirname(os.path.abspath(download.__file__))))


def test_a_killed_download_and_two_parallel_ones_leave_one_good_file(tmp_path):
    """An incomplete file never has the final name, and the final file is correct."""
    half_way, go_on = threading.Event(), threading.Event()

    def slow(handler, _):
        answer(handler, CONTENT[:5000], length=len(CONTENT))
        handler.wfile.flush()
        half_way.set()
        go_on.wait(60)
        with contextlib.suppress(OSError):  # the killed client has closed its connection
            handler.wfile.write(CONTENT[5000:])

    with server(slow) as url:
        killed = downloading(url, tmp_path)
        assert half_way.wait(60)
        killed.kill()
        killed.wait()
        assert "file.bin" not in files_in(tmp_path)
        both = [downloading(url, tmp_path) for _ in range(2)]
        go_on.set()
        assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_closed_port(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = "http://127.0.0.1:%d/" % closed.getsockname()[1]
    with pytest.raises(download.Unavailable, match="cannot be reached"):
        download.fetch_all(FILES, [url], str(tmp_path))


def test_a_folder_that_cannot_be_created_gives_an_error(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(download.Unavailable, match="cannot create the folder"):
        with server(good) as url:
            download.fetch_all(FILES, [url], str(tmp_path / "data" / "mnist"))


def test_without_a_mirror_no_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_unreachable", lambda mirrors: dict.fromkeys(mirrors, "no network"))
    with pytest.raises(download.Unavailable, match="no network"):
        download.fetch_all(FILES, ["http://localhost:1/"], str(tmp_path / "mnist"))
    assert not (tmp_path / "mnist").exists()
