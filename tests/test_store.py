"""Storage: listing, whole publication, exclusive creation, limits, and what is never shown."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs.storage.errors import (
    MAX_ATTEMPTS,
    FolderBlocked,
    ObjectExists,
    ObjectMissing,
    ObjectTimedOut,
    ObjectTooLarge,
    StorageError,
    StorageFull,
    attempt,
    num_retries,
    redact,
    translated,
)
from jobs.storage.store import Store


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/x" if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


def test_what_is_published_is_read_back_and_replaced_whole(folder):
    store = Store()
    for data in (b"first", b"second and longer"):
        store.publish(f"{folder}/a.bin", data)
        assert store.read(f"{folder}/a.bin") == data
    assert store.list_names(folder) == ["a.bin"]
    store.delete(f"{folder}/a.bin")
    store.delete(f"{folder}/a.bin")
    assert not store.exists(f"{folder}/a.bin")


def test_what_is_not_to_be_replaced_is_not(folder):
    store = Store()
    store.publish(f"{folder}/a.bin", b"mine", replace=False)
    with pytest.raises(ObjectExists, match=r"a\.bin exists already"):
        store.publish(f"{folder}/a.bin", b"yours", replace=False)
    assert store.read(f"{folder}/a.bin") == b"mine"
    assert store.list_names(folder) == ["a.bin"]


class SlowDisk(MemoryFileSystem):
    """Shows files while they are written, as a disk does."""

    protocol = "slowdisk"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    seen: ClassVar[list[str]] = []
    is_full = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("slowdisk://", "memory://"))

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        super().pipe_file(path, value[:1], **options)
        self.seen += [name for name in self.find("/") if not name.endswith(".tmp")]
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().pipe_file(path, value, **options)


@pytest.fixture
def slow_disk() -> Iterator[type[SlowDisk]]:
    fsspec.register_implementation("slowdisk", SlowDisk, clobber=True)
    yield SlowDisk
    SlowDisk.store.clear()
    SlowDisk.seen.clear()
    SlowDisk.is_full = False


def test_where_a_file_shows_while_it_is_written_it_is_renamed_when_it_is_whole(slow_disk):
    Store().publish("slowdisk://x/a.bin", b"whole")
    assert Store().read("slowdisk://x/a.bin") == b"whole"
    assert slow_disk.seen == []
    with pytest.raises(ObjectExists):
        Store().publish("slowdisk://x/a.bin", b"other", replace=False)
    Store().publish("slowdisk://x/a.bin", b"replaced")
    assert Store().read("slowdisk://x/a.bin") == b"replaced"
    assert Store().list_names("slowdisk://x") == ["a.bin"]


def test_where_there_is_no_room_nothing_is_left_and_nothing_is_tried_again(slow_disk):
    slow_disk.is_full = True
    before = num_retries()
    with pytest.raises(StorageFull, match=r"a\.bin: No space left on device"):
        Store().publish("slowdisk://x/a.bin", b"whole")
    assert num_retries() == before
    assert Store().list_names("slowdisk://x") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_or_read_only_disk_has_its_own_error(number):
    assert isinstance(translated(OSError(number, "x"), "/a"), StorageFull)


@pytest.mark.parametrize("is_written_to", [False, True])
def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path, is_written_to):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(tmp_path / "pipe", os.O_WRONLY) if is_written_to else None
    try:
        with pytest.raises(StorageError, match="pipe is no regular file"):
            Store().read(str(tmp_path / "pipe"), max_bytes=10)
    finally:
        for descriptor in (reader, writer):
            if descriptor is not None:
                os.close(descriptor)


def test_a_device_is_no_file():
    with pytest.raises(StorageError, match="/dev/zero is no regular file"):
        Store().read("/dev/zero", max_bytes=10)


def test_exclusive_creation_fails_where_something_is(folder):
    store = Store()
    store.create(f"{folder}/lock", b"mine")
    with pytest.raises(ObjectExists, match="lock"):
        store.create(f"{folder}/lock", b"yours")
    assert store.read(f"{folder}/lock") == b"mine"


def test_a_missing_object_is_named(folder):
    with pytest.raises(ObjectMissing, match=r"nowhere\.bin does not exist"):
        Store().read(f"{folder}/nowhere.bin")


@pytest.mark.parametrize("size", [0, 10])
def test_an_object_of_the_largest_allowed_size_is_read(folder, size):
    Store().publish(f"{folder}/a.bin", b"x" * size)
    assert Store().read(f"{folder}/a.bin", max_bytes=10) == b"x" * size


def test_an_object_of_a_byte_more_is_refused_with_the_limit(folder):
    Store().publish(f"{folder}/a.bin", b"x" * 11)
    with pytest.raises(ObjectTooLarge, match="more than 10 bytes"):
        Store().read(f"{folder}/a.bin", max_bytes=10)


def test_a_publication_that_dies_leaves_the_old_object_and_no_visible_name(tmp_path, monkeypatch):
    store = Store()
    store.publish(f"{tmp_path}/a.bin", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left"):
        store.publish(f"{tmp_path}/a.bin", b"new")
    assert store.read(f"{tmp_path}/a.bin") == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_has_no_names_in_it_but_a_folder_that_an_object_stands_for_may(folder, monkeypatch):
    Store().publish(f"{folder}/data", b"a file")
    with pytest.raises(FolderBlocked, match=r"data: a file stands where a folder should"):
        Store().list_names(f"{folder}/data")
    Store().publish(f"{folder}/out/data/part", b"x")
    filesystem, path = Store().locate(f"{folder}/out/data")
    monkeypatch.setattr(filesystem, "ls", lambda *_, **__: [f"{path}/", f"{path}/part"])  # as S3 lists empty objects
    assert Store().list_names(f"{folder}/out/data") == ["part"]
    monkeypatch.setattr(filesystem, "ls", lambda *_, **__: [f"{path}/"])
    assert Store().list_names(f"{folder}/out/data") == []


def test_publishing_below_a_regular_file_says_so(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name in ("file/a.bin", "file/deeper/a.bin"):
        with pytest.raises(StorageError, match="a file stands where a folder should"):
            Store().publish(f"{tmp_path}/{name}", b"x")


def test_a_folder_lists_its_tables_sorted_without_hidden_ones_and_with_partitions(folder):
    store = Store()
    for name in (
        "b.parquet",
        "a.parquet",
        "_SUCCESS",
        ".c.parquet",
        "_d.parquet",
        "notes.txt",
        "day=1/e.pq",
        "sub/f.parquet",
    ):
        store.publish(f"{folder}/{name}", b"x")
    root, tables = store.list_tables(folder)
    assert [table.path.removeprefix(f"{root}/") for table in tables] == ["a.parquet", "b.parquet", "day=1/e.pq"]
    assert all(table.size == 1 and (table.mtime or table.etag) for table in tables)


def test_a_glob_lists_what_it_matches_and_roots_at_its_fixed_part(folder):
    store = Store()
    for name in ("m/a1.parquet", "m/a2.parquet", "m/b1.parquet"):
        store.publish(f"{folder}/{name}", b"x")
    root, tables = store.list_tables(f"{folder}/m/a*.parquet")
    assert root.endswith("/m")
    assert [table.path.rpartition("/")[2] for table in tables] == ["a1.parquet", "a2.parquet"]


@pytest.mark.usefixtures("no_waiting")
def test_a_transient_failure_is_tried_again_a_bounded_number_of_times():
    calls = []

    def fails(times: int) -> str:
        calls.append(1)
        if len(calls) <= times:
            raise OSError(5, "Input/output error")
        return "done"

    before = num_retries()
    assert attempt(lambda: fails(2), "s3://b/k") == "done"
    assert num_retries() == before + 2
    calls.clear()
    with pytest.raises(StorageError, match="s3://b/k: Input/output error"):
        attempt(lambda: fails(99), "s3://b/k")
    assert len(calls) == MAX_ATTEMPTS


@pytest.mark.usefixtures("no_waiting")
def test_a_permanent_failure_is_not_tried_again():
    calls = []

    def fails() -> None:
        calls.append(1)
        raise FileNotFoundError("k")

    with pytest.raises(ObjectMissing):
        attempt(fails, "s3://b/k")
    assert len(calls) == 1


@pytest.mark.usefixtures("no_waiting")
def test_a_store_that_does_not_answer_has_its_own_error():
    def fails() -> None:
        raise TimeoutError

    with pytest.raises(ObjectTimedOut, match="s3://b/k"):
        attempt(fails, "s3://b/k")


def test_an_unknown_protocol_is_a_storage_error():
    with pytest.raises(StorageError, match="nosuch"):
        Store().read("nosuch://a/b")


def test_storage_options_reach_their_protocol_and_are_shown_nowhere():
    store = Store({"memory": {"secret_key": "hunter2"}})
    assert "hunter2" not in repr(store)
    filesystem, _ = store.locate("memory://a")
    assert filesystem.storage_options == {"secret_key": "hunter2"}
    assert fsspec.filesystem("file").storage_options == store.locate("/tmp")[0].storage_options


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://me:pw@host/a", "ftp://…@host/a"),
        ("https://h/a.png?X-Amz-Signature=abc", "https://h/a.png?…"),
        ("HTTPS://h/a.png#access_token=abc", "HTTPS://h/a.png#…"),
        ("az://c/a.png?sv=1&sig=abc and more", "az://c/a.png?… and more"),
        ("ftp://me:p@w@host/a@b", "ftp://…@host/a@b"),
        ("/plain/path", "/plain/path"),
        ("file:///m/part-?.parquet", "file:///m/part-?.parquet"),
    ],
)
def test_passwords_and_signatures_are_redacted(url, shown):
    assert redact(url) == shown


@pytest.mark.parametrize("action", ["read", "publish", "list_tables", "exists"])
def test_what_the_options_hold_is_taken_out_of_errors(monkeypatch, action):
    store = Store({"memory": {"key": "AKIA0123", "deep": {"tokens": ["hunter2hunter2"]}, "short": "us"}})
    filesystem, _ = store.locate("memory://a")

    def quotes(*_: object, **__: object) -> None:
        raise ValueError("the key AKIA0123 of us with hunter2hunter2 is unknown")

    for name in ("cat_file", "pipe_file", "info", "exists"):
        monkeypatch.setattr(filesystem, name, quotes)
    with pytest.raises(StorageError, match="the key … of us with … is unknown") as caught:
        getattr(store, action)("memory://a", *([b"x"] if action == "publish" else []))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
