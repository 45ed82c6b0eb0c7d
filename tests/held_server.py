"""An HTTP server on loopback that holds its answers back: what fetches from it stalls until it is let go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


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


class _Handler(BaseHTTPRequestHandler):
    server: HeldServer

    def do_GET(self) -> None:
        self.server.asked.set()
        self.server.let_go.wait()
        body = (self.server.folder / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serve_held(folder: Path) -> Iterator[HeldServer]:
    """Serve a folder's files, but not yet."""
    with HeldServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.let_go.set()
            server.shutdown()
            thread.join()
