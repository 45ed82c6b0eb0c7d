"""Credentials stay out of everything a run leaves behind, and its local Ray asks for a token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from job_pairs import ENVIRONMENT, homoalign, result_rows, write_manifest, write_pairs
from loopback import QuietHandler, serve

SECRETS = ("AKIAHUNTER2KEY", "hunter2-secret-key", "hunter2-session-token")


class Talkative(QuietHandler):
    """An S3 that has everything, gives nothing, and repeats the credentials it was sent."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 08:00:00 GMT")
        self.send_header("ETag", '"e"')
        self.end_headers()

    def do_GET(self) -> None:
        said = f"{self.headers['x-amz-security-token']} and {self.headers['Authorization']}"
        body = f"<Error><Code>NotFor</Code><Message>{said}</Message></Error>".encode()
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def talkative_s3() -> Iterator[str]:
    with serve(Talkative) as address:
        yield address


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps its logs; short, because sockets lie there too."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    monkeypatch.setitem(ENVIRONMENT, "RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def everything_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file's text; of Parquet what the compressed pages hold, and the footers."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        yield path, path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            yield path, str(pq.read_table(path).to_pylist()) + str(pq.read_metadata(path).metadata)


def test_no_output_log_or_message_holds_a_credential(tmp_path, talkative_s3, ray_folder):
    rows = write_pairs(tmp_path, 3)
    rows[1]["src"] = "s3://bucket/a.png"
    rows[2]["src"] = "https://user:hunter2-session-token@127.0.0.1/a.png?X-Amz-Signature=hunter2-secret-key"
    manifest = write_manifest(tmp_path / "pairs.parquet", rows)
    key, secret, token = SECRETS
    options = json.dumps(
        {"s3": {"key": key, "secret": secret, "token": token, "client_kwargs": {"endpoint_url": talkative_s3}}}
    )
    common = ("--allow", "s3", "--storage-options", options)
    out = tmp_path / "out"
    said = [
        homoalign("run", manifest, out, "--address", "local", "--progress", "plain", *common),
        homoalign("plan", manifest, tmp_path / "other", "--sample", 0, "--json", *common),
        homoalign("run", "s3://bucket/m.parquet", tmp_path / "other", *common),
        homoalign("status", out, "--json"),
    ]
    assert [done.returncode for done in said] == [0, 0, 3, 0], [done.stderr for done in said]
    details = [row["status_detail"] for row in result_rows(out)]
    assert "s3://bucket/a.png" in details[1]
    assert "127.0.0.1/a.png" in details[2]

    found = [*everything_in(out), *everything_in(ray_folder)]
    assert len(found) > 20, "Ray's logs are among them"
    found += [(Path("stdout and stderr"), done.stdout + done.stderr) for done in said]
    leaks = [(path, value) for path, text in found for value in SECRETS if value in text]
    assert leaks == []


LOCAL_RAY = """
import os, subprocess, sys
import ray
from jobs.cluster import RayWorkers
os.environ.pop("RAY_AUTH_TOKEN", None)
with RayWorkers("local", device="cpu", num_cpus=1, num_gpus=0, max_workers=1):
    token, address = os.environ["RAY_AUTH_TOKEN"], ray.get_runtime_context().gcs_address
    code = f"from ray._raylet import GcsClient; GcsClient(address='{address}').internal_kv_keys(b'', None)"
    for value in (token, "0" * len(token)):
        environment = {**os.environ, "RAY_AUTH_TOKEN": value}
        print(subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL).returncode)
    print(ray.get_runtime_context().gcs_address == address, bool(ray._private.worker.get_dashboard_url()))
"""


def test_a_local_ray_asks_for_a_token_that_lies_in_no_file_and_has_no_dashboard(tmp_path):
    environment = {**ENVIRONMENT, "HOME": str(tmp_path)}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    command = [sys.executable, "-c", LOCAL_RAY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["0", "1", "True", "False"], done.stderr
    assert not os.listdir(tmp_path)
