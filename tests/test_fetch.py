"""Images over HTTP: redirects stay within what is allowed, and no more than the limit is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from job_pairs import encoded, pair

from jobs.access import AccessRules
from jobs.fetch import Reader, fetch_pair
from jobs.store import Store

SRC, DST = (encoded(pixels) for pixels in pair(0))


class Handler(BaseHTTPRequestHandler):
    """Serves two images, and redirects to a path, to another host, to itself, and to a local file."""

    targets: ClassVar = {
        "/to-src": "/src.png",
        "/away": "http://localhost:1/src.png",
        "/loop": "/loop",
        "/file": "file:///etc/passwd",
    }

    def do_GET(self) -> None:
        target = self.targets.get(self.path)
        body = {"/src.png": SRC, "/dst.png": DST}.get(self.path, b"")
        self.send_response(302 if target else 200 if body else 404)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def reader(server: str, **limits: int) -> Reader:
    return Reader(store=Store(), rules=AccessRules("file:///m", (f"{server}/",)), **limits)


def error_of(server: str, path: str, **limits: int) -> tuple[str, str]:
    error = fetch_pair({"src": f"{server}{path}", "dst": f"{server}/dst.png"}, reader(server, **limits)).error
    assert error is not None
    return error.status.value, str(error)


@pytest.mark.parametrize("path", ["/src.png", "/to-src"])
def test_an_image_is_read_also_behind_an_allowed_redirect(server, path):
    fetched = fetch_pair({"src": f"{server}{path}", "dst": f"{server}/dst.png"}, reader(server))
    assert fetched.error is None
    assert fetched.src_size == (96, 128)
    assert fetched.bytes_read == len(SRC) + len(DST)


@pytest.mark.parametrize(("path", "target"), [("/away", "http://localhost:1/src.png"), ("/file", "file:///etc/passwd")])
def test_a_redirect_may_not_leave_what_is_allowed_nor_the_web(server, path, target):
    status, detail = error_of(server, path)
    assert status == "not_allowed"
    assert target in detail


def test_redirects_end(server):
    assert error_of(server, "/loop") == ("unreadable", f"src: {server}/loop: more than 5 redirects")


def test_a_missing_page_is_unreadable(server):
    status, detail = error_of(server, "/nowhere.png")
    assert status == "unreadable"
    assert "nowhere.png does not exist" in detail


def test_no_more_than_the_limit_is_read(server):
    status, detail = error_of(server, "/src.png", max_bytes=100)
    assert status == "too_large"
    assert "100 bytes" in detail
