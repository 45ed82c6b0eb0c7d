"""Images over HTTP: redirects and addresses stay within what is allowed, and no more than the limit is read."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from job_pairs import encoded, pair
from loopback import QuietHandler, serve

from jobs.results.rows import error_row
from jobs.storage import access
from jobs.storage.access import AccessRules
from jobs.storage.store import Store
from jobs.worker.fetch import Reader, fetch_pair

SRC, DST = (encoded(pixels) for pixels in pair(0))
PUBLIC = "93.184.216.34"


def archive() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("src.png", SRC)
    return target.getvalue()


class Handler(QuietHandler):
    """Serves two images, redirects in several ways, and lies about lengths."""

    targets: ClassVar = {
        "/to-src": "/src.png",
        "/away": "http://localhost:1/src.png",
        "/loop": "/loop",
        "/file": "file:///etc/passwd",
        "/zip-away": "/pairs.zip",
        "/no-url": "http://[bad",
        "/no-port": "http://localhost:port/",
        "/no-text": "/\xff\xfe.png",
    }
    seen: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_HEAD(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        if self.path in self.targets:
            return self.answer(302, {"Location": self.targets[self.path]}, b"")
        size = len(archive()) if self.path == "/pairs.zip" else 10**6
        return self.answer(200, {"Content-Length": size, "Accept-Ranges": "bytes"}, b"")

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        coded = zlib.compress(SRC)
        lies: dict[str, tuple[dict[str, Any], bytes]] = {
            "/short.png": ({"Content-Length": len(SRC) + 99}, SRC),
            "/long.png": ({"Content-Length": len(SRC) - 99}, SRC),
            "/vast.png": ({"Content-Length": 10**12}, b""),
            "/coded.png": ({"Content-Length": len(coded), "Content-Encoding": "deflate"}, coded),
            "/coded-no-text.png": ({"Content-Length": 3, "Content-Encoding": "\xff\xfe"}, b"abc"),
        }
        if self.path in lies:
            self.answer(200, *lies[self.path])
        elif self.path.startswith("/endless"):
            self.pour()
        elif self.path == "/pairs.zip":
            start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            piece = archive()[start : end + 1]
            self.answer(206, {"Content-Length": len(piece)}, piece)
        elif self.path == "/to":
            self.answer(302, {"Content-Length": 0}, b"")
        elif self.path.startswith("/elsewhere?"):
            self.answer(302, {"Content-Length": 0, "Location": self.path.partition("?")[2]}, b"")
        else:
            self.image_or_redirect()

    def pour(self) -> None:
        """Send until the other side goes away, whatever it asked for."""
        self.answer(206 if "Range" in self.headers else 200, {}, b"")
        try:
            while True:
                self.wfile.write(bytes(2**16))
        except OSError:
            self.close_connection = True

    def answer(self, status: int, headers: dict[str, Any], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def image_or_redirect(self) -> None:
        target = self.targets.get(self.path)
        body = {"/src.png": SRC, "/dst.png": DST}.get(self.path, b"")
        self.send_response(302 if target else 200 if body else 404)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve(Handler) as address:
        yield address


@pytest.fixture
def rebinding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names resolve to a public address when they are checked, and to what they are when they are opened."""
    monkeypatch.setattr(access, "addresses_of", lambda _: (PUBLIC,))
    Handler.seen.clear()


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


def test_a_redirect_to_what_is_no_url_is_unreadable_or_refused(server):
    status, detail = error_of(server, "/no-url")
    assert status == "unreadable"
    assert f"src: {server}/no-url redirects to http://[bad, which is no URL" in detail
    assert error_of(server, "/no-port")[0] == "not_allowed"


def test_a_redirect_to_nowhere_says_so(server):
    assert error_of(server, "/to") == ("unreadable", f"src: {server}/to answers 302 without saying where to")


@pytest.mark.parametrize("path", ["/no-text", "/coded-no-text.png"])
def test_what_a_server_says_that_is_no_text_is_told_as_text(server, path):
    error = fetch_pair({"src": f"{server}{path}", "dst": DST}, reader(server)).error
    assert error is not None
    row = error_row(error, None, None)
    assert row["status"] == "unreadable"
    assert pa.array([row["status_detail"]]).to_pylist() == [row["status_detail"]]
    assert "\\udcff\\udcfe" in row["status_detail"]


def test_whatever_a_uri_makes_a_library_raise_is_of_its_row(monkeypatch, server):
    def raises(*_: object) -> None:
        raise IndexError("pop from an empty list")

    monkeypatch.setattr(AccessRules, "resolve", raises)
    assert error_of(server, "/src.png") == ("unreadable", f"src: {server}/src.png: pop from an empty list")


def test_a_missing_page_is_unreadable(server):
    status, detail = error_of(server, "/nowhere.png")
    assert status == "unreadable"
    assert "nowhere.png does not exist" in detail


def test_no_more_than_the_limit_is_read(server):
    status, detail = error_of(server, "/src.png", max_bytes=100)
    assert status == "too_large"
    assert "100 bytes" in detail


@pytest.mark.usefixtures("rebinding")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0x7f000001"])
def test_a_host_that_means_another_address_when_it_is_opened_is_not_reached(server, host):
    url = f"http://{host}:{server.rpartition(':')[2]}/src.png"
    error = fetch_pair({"src": url, "dst": url}, Reader(store=Store(), rules=AccessRules("file:///m", ("http",)))).error
    assert error is not None
    assert error.status == "not_allowed"
    assert "is not a public address" in str(error)
    assert Handler.seen == []


@pytest.mark.usefixtures("rebinding")
def test_a_redirect_inside_a_chain_is_not_followed(server):
    rules = AccessRules("file:///m", ("zip", f"{server}/"))
    for name, status in (("pairs.zip", None), ("zip-away", "unreadable")):
        url = f"zip://src.png::{server}/{name}"
        error = fetch_pair({"src": url, "dst": SRC}, Reader(store=Store(), rules=rules)).error
        assert (None if error is None else error.status) == status


@pytest.mark.usefixtures("rebinding")
def test_a_chain_over_the_web_reaches_public_addresses_only(server):
    url = f"zip://src.png::http://localhost:{server.rpartition(':')[2]}/pairs.zip"
    rules = AccessRules("file:///m", ("zip", "http"))
    error = fetch_pair({"src": url, "dst": SRC}, Reader(store=Store(), rules=rules)).error
    assert error is not None  # fsspec says that nothing is there
    assert Handler.seen == []


def test_a_server_that_never_ends_is_left_at_the_limit(server):
    status, detail = error_of(server, "/endless.png", max_bytes=2**20)
    assert (status, "1048576 bytes" in detail) == ("too_large", True)
    url = f"zip://src.png::{server}/endless.zip"
    rules = AccessRules("file:///m", ("zip", f"{server}/"))
    error = fetch_pair({"src": url, "dst": SRC}, Reader(store=Store(), rules=rules, max_bytes=2**20)).error
    assert error is not None
    assert error.status in ("too_large", "unreadable")
    assert "bytes" in str(error)


@pytest.mark.parametrize(
    ("path", "status"), [("/short.png", "unreadable"), ("/long.png", "unreadable"), ("/vast.png", "too_large")]
)
def test_a_length_that_is_a_lie_is_found_out(server, path, status, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    assert error_of(server, path, max_bytes=2**20)[0] == status


def test_a_content_coding_is_not_undone(server):
    status, detail = error_of(server, "/coded.png")
    assert status == "unreadable"
    assert "Content-Encoding deflate" in detail


def test_credentials_do_not_follow_a_redirect_to_another_origin(server):
    other = server.replace("127.0.0.1", "localhost")
    options = {"http": {"client_kwargs": {"headers": {"Authorization": "Bearer hunter2"}}}}
    rules = AccessRules("file:///m", (f"{server}/", f"{other}/"))
    Handler.seen.clear()
    url = f"{server}/elsewhere?{other}/src.png"
    assert fetch_pair({"src": url, "dst": f"{server}/to-src"}, Reader(store=Store(options), rules=rules)).error is None
    sent = {(path, headers["Host"].partition(":")[0]): headers.get("Authorization") for path, headers in Handler.seen}
    assert sent == {
        (f"/elsewhere?{other}/src.png", "127.0.0.1"): "Bearer hunter2",
        ("/src.png", "localhost"): None,
        ("/to-src", "127.0.0.1"): "Bearer hunter2",
        ("/src.png", "127.0.0.1"): "Bearer hunter2",
    }
