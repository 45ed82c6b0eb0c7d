"""An S3-compatible server on loopback that fails when it is told to."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Answer = Callable[[str, list[tuple[str, str]]], Any]


class Server:
    """Passes requests on to moto, counts those that write, and refuses or breaks off some."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.rng, self.share = random.Random(0), 0.0
        self.num_writes, self.num_failed = 0, 0
        self.turn = threading.Lock()
        self.options: dict[str, Any] = {}

    def fail(self, share: float, *, seed: int = 0) -> None:
        """Let this share of the requests fail from now on."""
        with self.turn:
            self.rng, self.share = random.Random(seed), share

    def __call__(self, environ: dict[str, Any], start_response: Answer) -> Iterable[bytes]:
        """Answer a request."""
        is_write = environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE")
        with self.turn:
            fails, is_late = self.rng.random() < self.share, self.rng.random() < 0.5
            self.num_failed += fails
        if fails and not is_late:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return refuse(start_response)
        try:
            answer: Iterable[bytes] = self.app(environ, start_response if not fails else swallow)
            if fails:  # what was asked for is done, and no one is told
                return refuse(start_response)
            return answer
        finally:
            self.num_writes += is_write


def refuse(start_response: Answer) -> Iterable[bytes]:
    """Say that the server is too busy."""
    start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Connection", "close")])
    return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"]


def swallow(*_: object) -> Callable[[bytes], None]:
    """Take an answer that is not sent."""
    return lambda _: None


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    protocol_version = "HTTP/1.1"

    def log(self, *_: object, **__: object) -> None:
        """Do nothing."""


@contextmanager
def serve_s3(bucket: str) -> Iterator[Server]:
    """Serve an empty bucket."""
    server = Server()
    listener = make_server("127.0.0.1", 0, server, threaded=True, request_handler=Quiet)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    server.options = {
        "key": "testing",
        "secret": "testing",
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{listener.port}", "region_name": "us-east-1"},
    }
    urlopen(Request(f"http://127.0.0.1:{listener.port}/{bucket}", method="PUT")).close()
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
