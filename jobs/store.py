"""The only door to fsspec: list, read, publish and delete objects at any URL.

What a storage library raises becomes a `StorageError` (see `storage_errors.py`) here and only here, after transient
failures were tried again with growing pauses, a bounded number of times. Storage options are credentials: they are
passed to fsspec and shown nowhere. Paths are what `url_of` returns: absolute and with their protocol.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast
from urllib.parse import urljoin

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from jobs.storage_errors import ObjectExists, ObjectMissing, ObjectTooLarge, StorageError, attempt, redact, translated

MAX_REDIRECTS = 5
TEMPORARY = re.compile(r"^\.(?P<name>.+)\.[0-9a-f]{32}\.tmp$")
"""Names of files that a publication which died may leave beside its target, where one is made by renaming."""
OBJECT_STORES = frozenset({"abfs", "az", "gcs", "gs", "memory", "oss", "r2", "s3", "s3a"})
"""Protocols whose uploads show only when they are whole; on others a part is written beside its name and renamed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """What a listing says about one object."""

    path: str
    """Absolute, with its protocol."""
    size: int
    etag: str | None
    mtime: str | None
    """Kept only where the store gives no etag; seconds with all their digits on a local disk, else ISO 8601."""


def is_local(url: str) -> bool:
    """Return whether `url` names a file on a local disk."""
    return "::" not in url and get_protocol(url) in ("file", "local")


@dataclass(frozen=True, slots=True)
class Store:
    """Opens filesystems on demand, so that it can travel to a worker and make its own there."""

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """fsspec's options for each protocol. Secret."""

    def locate(self, url: str) -> tuple[Any, str]:
        """Return the filesystem of `url` and the path in it.

        Raises:
            StorageError: no installed package knows the protocol, or the filesystem cannot be made.
        """
        protocols = [get_protocol(link) for link in url.split("::")]
        named = {name: dict(self.options[name]) for name in protocols if name in self.options}
        try:
            if len(protocols) > 1:
                return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **named))
            return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **named.get(protocols[0], {})))
        except Exception as error:
            raise translated(error, url) from error

    def url_of(self, url: str) -> str:
        """Return `url` absolute and with its protocol, without a slash at the end."""
        if "::" in url:
            return url
        filesystem, path = self.locate(url)
        return cast("str", filesystem.unstrip_protocol(path)).rstrip("/")

    def list_tables(self, url: str) -> tuple[str, list[ObjectInfo]]:
        """List the Parquet files that `url` names: a file, a folder or a glob.

        A folder gives its own `*.parquet`, `*.parq` and `*.pq` files and those in subfolders named `key=value`; names
        that begin with a dot or an underscore are skipped.

        Returns:
            root: the folder that relative URIs in the files start from.
            tables: sorted by path.
        """
        filesystem, path = self.locate(url)
        attempt(filesystem.invalidate_cache, url)
        magic = re.search(r"[*?\[]", path)
        if magic and not self.exists(url):
            found = attempt(lambda: filesystem.glob(path, detail=True), url)
            entries = [entry for entry in found.values() if entry["type"] == "file"]
            root = path[: magic.start()].rpartition("/")[0]
        else:
            entry = attempt(lambda: filesystem.info(path), url)
            if entry["type"] == "file":
                entries, root = [entry], path.rpartition("/")[0]
            else:
                entries, root = list(_tables_below(filesystem, path, url)), path
        tables = [_object_info(filesystem, entry) for entry in entries if not _is_hidden(entry["name"])]
        return filesystem.unstrip_protocol(root or "/").rstrip("/"), sorted(tables, key=lambda table: table.path)

    def info(self, url: str) -> ObjectInfo:
        """Return what the store says about the object now."""
        filesystem, path = self.locate(url)
        return _object_info(filesystem, attempt(lambda: filesystem.info(path), url))

    def list_names(self, folder: str) -> list[str]:
        """Return the sorted names of what lies directly in `folder`; none where there is no such folder."""
        filesystem, path = self.locate(folder)
        filesystem.invalidate_cache()
        try:
            entries = attempt(lambda: filesystem.ls(path, detail=False), folder)
        except ObjectMissing:
            return []
        return sorted(name for entry in entries if (name := entry.rstrip("/").rpartition("/")[2]))

    def exists(self, url: str) -> bool:
        """Return whether something is stored at `url` now."""
        filesystem, path = self.locate(url)
        filesystem.invalidate_cache()
        return cast("bool", attempt(lambda: filesystem.exists(path), url))

    def open(self, url: str) -> BinaryIO:
        """Open an object for random reads. What reading raises is the caller's to give to `translated`."""
        filesystem, path = self.locate(url)
        return cast("BinaryIO", attempt(lambda: filesystem.open(path, "rb"), url))

    def read(self, url: str, *, max_bytes: int | None = None, follow: Callable[[str], str] | None = None) -> bytes:
        """Read a whole object.

        Args:
            url: what to read.
            max_bytes: read no more than this.
            follow: with `max_bytes`, called with the target of every HTTP redirect; it raises, or returns what to
                read instead. Redirects are refused where it is None.

        Raises:
            ObjectTooLarge: it has more than `max_bytes`; no more than that was read.
        """
        for _ in range(MAX_REDIRECTS + 1):
            filesystem, path = self.locate(url)
            found = attempt(lambda: _read(filesystem, path, max_bytes), url)  # noqa: B023, called at once
            if isinstance(found, bytes):
                if max_bytes is not None and len(found) > max_bytes:
                    raise ObjectTooLarge(f"{redact(url)} has more than {max_bytes} bytes")
                return found
            if follow is None:
                raise StorageError(f"{redact(url)} redirects to {redact(found.target)}, which is not followed")
            url = follow(urljoin(url, found.target))
        raise StorageError(f"{redact(url)}: more than {MAX_REDIRECTS} redirects")

    def publish(self, url: str, data: bytes, *, replace: bool = True) -> None:
        """Store `data` at `url` as one object, whole or not at all.

        Args:
            url: where.
            data: the whole object.
            replace: put it in place of what may be there.

        Raises:
            ObjectExists: something is there, and is not to be replaced.
        """
        filesystem, path = self.locate(url)
        if isinstance(filesystem, LocalFileSystem):
            attempt(lambda: _publish_local(path, data, os.replace if replace else os.link), url)
        elif _is_object_store(filesystem):
            mode = {} if replace else {"mode": "create"}
            attempt(lambda: filesystem.pipe_file(path, data, **mode), url)
        elif not replace and self.exists(url):
            raise ObjectExists(f"{redact(url)} exists already")
        else:
            attempt(lambda: _publish_renamed(filesystem, path, data), url)

    def create(self, url: str, data: bytes) -> None:
        """Store `data` at `url` only if nothing is there.

        Raises:
            ObjectExists: something is there.
        """
        filesystem, path = self.locate(url)
        if isinstance(filesystem, LocalFileSystem):
            # a link is made whole or not at all, and never over something
            attempt(lambda: _publish_local(path, data, os.link), url)
        else:
            filesystem.invalidate_cache()
            attempt(lambda: filesystem.pipe_file(path, data, mode="create"), url)

    def delete(self, url: str) -> None:
        """Delete an object; nothing happens where there is none."""
        filesystem, path = self.locate(url)
        with contextlib.suppress(ObjectMissing):
            attempt(lambda: filesystem.rm_file(path), url)


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith((".", "_"))


def _tables_below(filesystem: Any, folder: str, url: str) -> Iterator[dict[str, Any]]:
    for entry in attempt(lambda: filesystem.ls(folder, detail=True), url):
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["type"] == "directory" and "=" in name:
            yield from _tables_below(filesystem, entry["name"], url)
        elif entry["type"] != "directory" and name.endswith((".parquet", ".parq", ".pq")):
            yield entry


def _object_info(filesystem: Any, entry: Mapping[str, Any]) -> ObjectInfo:
    etag = next((entry[key] for key in ("ETag", "etag", "md5Hash", "content_md5") if entry.get(key)), None)
    times = (entry.get(key) for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"))
    time = next((time for time in times if time is not None), None)
    if isinstance(time, (int, float)) and not isinstance(filesystem, LocalFileSystem):
        time = datetime.fromtimestamp(time, tz=UTC)
    return ObjectInfo(
        path=filesystem.unstrip_protocol(entry["name"]),
        size=int(entry["size"] or 0),
        etag=None if etag is None else str(etag).strip('"'),
        mtime=None if etag is not None or time is None else _time_text(time),
    )


def _time_text(time: Any) -> str:
    return time.astimezone(UTC).isoformat() if isinstance(time, datetime) else str(time)


@dataclass(frozen=True, slots=True)
class _Redirect:
    """What a server answered instead of an object."""

    target: str


def _read(filesystem: Any, path: str, max_bytes: int | None) -> bytes | _Redirect:
    if isinstance(filesystem, LocalFileSystem):
        with open(path, "rb", opener=_open_regular) as file:
            return file.read() if max_bytes is None else file.read(max_bytes + 1)
    if max_bytes is None:
        return cast("bytes", filesystem.cat_file(path))
    if get_protocol(path) in ("http", "https"):
        return _read_web(filesystem, path, max_bytes)
    size = filesystem.info(path)["size"] or 0  # stores refuse a range that starts behind the end of an empty object
    return cast("bytes", filesystem.cat_file(path, start=0, end=max_bytes + 1)) if size else b""


def _is_object_store(filesystem: Any) -> bool:
    """Return whether an upload becomes visible when it is complete, and never before."""
    protocol = filesystem.protocol
    return bool(OBJECT_STORES & {*((protocol,) if isinstance(protocol, str) else protocol)})


def _publish_renamed(filesystem: Any, path: str, data: bytes) -> None:
    folder, _, name = path.rpartition("/")
    filesystem.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        filesystem.pipe_file(temporary, data)
        filesystem.mv(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            filesystem.rm_file(temporary)
        raise


def _open_regular(path: str, flags: int) -> int:
    """Open a file that ends; a pipe would be waited for, and a device could be read for ever."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder `open` itself says so
        os.close(descriptor)
        raise StorageError(f"{path} is no regular file")
    return descriptor


def _read_web(filesystem: Any, url: str, max_bytes: int) -> bytes | _Redirect:
    """Stream, because a server may ignore a range; a block size of 0 and any size make fsspec do so at once."""
    with filesystem.open(url, "rb", block_size=0, size=1, allow_redirects=False) as file:
        if 300 <= file.r.status < 400:
            return _Redirect(file.r.headers.get("Location", ""))
        parts, left = [], max_bytes + 1
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def _publish_local(path: str, data: bytes, place: Callable[[str, str], None]) -> None:
    folder, name = os.path.split(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder should", folder) from error
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):  # os.replace took it
            os.unlink(temporary)
    folder_handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(folder_handle)  # the new name itself survives a power cut
    finally:
        os.close(folder_handle)
