"""HTTP servers on loopback; one of them holds its answers back, so that what fetches from it stalls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class QuietHandler(BaseHTTPRequestHandler):
    """Answers without a line on stderr."""

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """Let a server answer in a thread of its own; yields its address, without a slash at the end."""
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def serve(handler: type[BaseHTTPRequestHandler]) -> AbstractContextManager[str]:
    """Answer as a handler does, at some port."""
    return running(ThreadingHTTPServer(("127.0.0.1", 0), handler))


class HeldServer(ThreadingHTTPServer):
    """Serves the files of a folder once `let_go` is set."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.let_go, self.asked = folder, threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        """Return where the files are, with a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(QuietHandler):
    server: HeldServer

    def do_GET(self) -> None:
        self.server.asked.set()
        self.server.let_go.wait()
        body = (self.server.folder / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve_held(folder: Path) -> Iterator[HeldServer]:
    """Serve a folder's files, but not yet."""
    server = HeldServer(folder)
    with running(server):
        try:
            yield server
        finally:
            server.let_go.set()
