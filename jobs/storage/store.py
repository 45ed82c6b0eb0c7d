"""The only door to fsspec: list, read, publish and delete objects at any URL.

What a storage library raises becomes a `StorageError` (see `errors.py`) here and only here, after transient
failures were tried again with growing pauses, a bounded number of times. Storage options are credentials: they are
passed to fsspec and shown nowhere. Paths are what `url_of` returns: absolute and with their protocol.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast
from urllib.parse import urljoin, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from homoalign.errors import HomoalignError
from jobs.storage.access import WEB_SCHEMES, AccessRules
from jobs.storage.errors import (
    FolderBlocked,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    StorageError,
    attempt,
    redact,
    translated,
)
from jobs.storage.local import publish_local, read_local

if TYPE_CHECKING:
    from jobs.storage.web import Redirect

T = TypeVar("T")

MAX_REDIRECTS = 5
MIN_SECRET_LENGTH = 4
"""Shorter storage options (`us`, `v4`) are not looked for in messages."""
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

    def locate(self, url: str, rules: AccessRules | None = None, *, with_credentials: bool = True) -> tuple[Any, str]:
        """Return the filesystem of `url` and the path in it.

        Args:
            url: what to open.
            rules: for what a manifest names; HTTP then connects to public addresses only, unless a prefix names them.
            with_credentials: False where HTTP led to another host than the one they are for.

        Raises:
            StorageError: no installed package knows the protocol, or the filesystem cannot be made.
        """
        protocols = [get_protocol(link) for link in url.split("::")]
        named = {name: dict(self.options[name]) for name in protocols if name in self.options}
        try:
            if rules is not None:
                named |= _guarded(url, named, rules, with_credentials=with_credentials)
            if len(protocols) > 1:
                return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **named))
            return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **named.get(protocols[0], {})))
        except Exception as error:
            raise self.translated(error, url) from None

    def translated(self, error: Exception, url: str) -> StorageError:
        """Return what a storage library raised as an error of ours, without what the options hold."""
        found = error if isinstance(error, StorageError) else translated(error, url)
        return type(found)(self._without_options(str(found)))

    def _attempt(self, action: Callable[[], T], url: str) -> T:
        try:
            return attempt(action, url)
        except StorageError as error:
            raise self.translated(error, url) from None  # the cause may quote a secret

    def _without_options(self, text: str) -> str:
        for value in sorted(_texts_in(self.options), key=len, reverse=True):
            text = text.replace(value, "…")
        return text

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
        self._attempt(filesystem.invalidate_cache, url)
        magic = re.search(r"[*?\[]", path)
        if magic and not self.exists(url):
            found = self._attempt(lambda: filesystem.glob(path, detail=True), url)
            entries = [entry for entry in found.values() if entry["type"] == "file"]
            root = path[: magic.start()].rpartition("/")[0]
        else:
            entry = self._attempt(lambda: filesystem.info(path), url)
            if entry["type"] == "file":
                entries, root = [entry], path.rpartition("/")[0]
            else:
                entries, root = self._attempt(lambda: list(_tables_below(filesystem, path)), url), path
        tables = [_object_info(filesystem, entry) for entry in entries if not _is_hidden(entry["name"])]
        return filesystem.unstrip_protocol(root or "/").rstrip("/"), sorted(tables, key=lambda table: table.path)

    def info(self, url: str) -> ObjectInfo:
        """Return what the store says about the object now."""
        filesystem, path = self.locate(url)
        return _object_info(filesystem, self._attempt(lambda: filesystem.info(path), url))

    def list_names(self, folder: str) -> list[str]:
        """Return the sorted names of what lies directly in `folder`; none where there is no such folder.

        Raises:
            FolderBlocked: it is a file.
        """
        filesystem, path = self.locate(folder)
        filesystem.invalidate_cache()
        try:
            entries = self._attempt(lambda: filesystem.ls(path, detail=False), folder)
        except ObjectMissing:
            return []
        inside = [entry for entry in entries if entry.rstrip("/") != path.rstrip("/")]
        if len(inside) < len(entries) and self._attempt(lambda: filesystem.isfile(path), folder):
            raise FolderBlocked(f"{redact(folder)}: a file stands where a folder should")
        return sorted(name for entry in inside if (name := entry.rstrip("/").rpartition("/")[2]))

    def exists(self, url: str) -> bool:
        """Return whether something is stored at `url` now."""
        filesystem, path = self.locate(url)
        filesystem.invalidate_cache()
        return cast("bool", self._attempt(lambda: filesystem.exists(path), url))

    def open(self, url: str) -> BinaryIO:
        """Open an object for random reads. What reading raises is the caller's to give to `translated`."""
        filesystem, path = self.locate(url)
        return cast("BinaryIO", self._attempt(lambda: filesystem.open(path, "rb"), url))

    def read(self, url: str, *, max_bytes: int | None = None) -> bytes:
        """Read a whole object.

        Args:
            url: what to read.
            max_bytes: read no more than this.

        Raises:
            ObjectTooLarge: it has more than `max_bytes`; no more than that was read.
        """
        filesystem, path = self.locate(url)
        return _within(self._attempt(lambda: _read(filesystem, path, max_bytes), url), max_bytes, url)

    def read_named(self, uri: str, rules: AccessRules, *, max_bytes: int) -> bytes:
        """Read what a manifest names, and only what `rules` allow: at every redirect and down to the address.

        Raises:
            PairError: it is not allowed.
            ObjectTooLarge: it has more than `max_bytes`; no more than that was read.
            StorageError: it cannot be read, whatever a library raised about it: a cell, or a server's answer, that no
                one has thought of is the matter of its own row.
        """
        try:
            return self._read_followed(uri, rules, max_bytes)
        except (HomoalignError, MemoryError):
            raise
        except Exception as error:
            raise self.translated(error, uri) from None

    def _read_followed(self, uri: str, rules: AccessRules, max_bytes: int) -> bytes:
        url = first = rules.resolve(uri)
        for _ in range(MAX_REDIRECTS + 1):
            has_moved = url != first and _origin(url) != _origin(first)
            filesystem, path = self.locate(url, rules, with_credentials=not has_moved)
            found = self._attempt(lambda: _read_named(filesystem, path, max_bytes), url)  # noqa: B023, called at once
            if isinstance(found, bytes):
                return _within(found, max_bytes, url)
            try:
                target = urljoin(url, found.target)
            except ValueError as error:
                reason = f"{redact(url)} redirects to {redact(found.target)}, which is no URL: {error}"
                raise StorageError(reason) from error
            url = rules.follow(target)
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
            self._attempt(lambda: publish_local(path, data, os.replace if replace else os.link), url)
        elif _is_object_store(filesystem):
            mode = {} if replace else {"mode": "create"}
            self._attempt(lambda: filesystem.pipe_file(path, data, **mode), url)
        elif not replace and self.exists(url):
            raise ObjectExists(f"{redact(url)} exists already")
        else:
            self._attempt(lambda: _publish_renamed(filesystem, path, data), url)

    def create(self, url: str, data: bytes) -> None:
        """Store `data` at `url` only if nothing is there.

        Raises:
            ObjectExists: something is there.
        """
        filesystem, path = self.locate(url)
        if isinstance(filesystem, LocalFileSystem):
            # a link is made whole or not at all, and never over something
            self._attempt(lambda: publish_local(path, data, os.link), url)
        else:
            filesystem.invalidate_cache()
            self._attempt(lambda: filesystem.pipe_file(path, data, mode="create"), url)

    def delete(self, url: str) -> None:
        """Delete an object; nothing happens where there is none."""
        filesystem, path = self.locate(url)
        with contextlib.suppress(ObjectMissing):
            self._attempt(lambda: filesystem.rm_file(path), url)


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith((".", "_"))


def _tables_below(filesystem: Any, folder: str) -> Iterator[dict[str, Any]]:
    for entry in filesystem.ls(folder, detail=True):
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["type"] == "directory" and "=" in name:
            yield from _tables_below(filesystem, entry["name"])
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


def _texts_in(options: Any) -> Iterator[str]:
    """Yield the texts that storage options hold, at any depth."""
    if isinstance(options, Mapping):
        for value in options.values():
            yield from _texts_in(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _texts_in(value)
    elif isinstance(options, str) and len(options) >= MIN_SECRET_LENGTH:
        yield options


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _guarded(
    url: str, options: Mapping[str, Mapping[str, Any]], rules: AccessRules, *, with_credentials: bool
) -> dict[str, dict[str, Any]]:
    """Return the options of the web links of `url`, by protocol, that keep them to what the rules allow."""
    found = {}
    for link in url.split("::"):
        protocol = get_protocol(link)
        if protocol in WEB_SCHEMES:
            from jobs.storage.web import web_options  # aiohttp is an extra

            found[protocol] = web_options(
                options.get(protocol, {}), public_only=not rules.is_named(link), with_credentials=with_credentials
            )
    return found


def _within(data: bytes, max_bytes: int | None, url: str) -> bytes:
    if max_bytes is not None and len(data) > max_bytes:
        raise ObjectTooLarge(f"{redact(url)} has more than {max_bytes} bytes")
    return data


def _read(filesystem: Any, path: str, max_bytes: int | None) -> bytes:
    """Return an object's bytes, one more than `max_bytes` where there are more."""
    if isinstance(filesystem, LocalFileSystem):
        return read_local(path, max_bytes)
    if max_bytes is None or get_protocol(path) in WEB_SCHEMES:  # servers may not know the size or ignore a range
        return cast("bytes", filesystem.cat_file(path))
    size = filesystem.info(path)["size"] or 0  # stores refuse a range that starts behind the end of an empty object
    return cast("bytes", filesystem.cat_file(path, start=0, end=max_bytes + 1)) if size else b""


def _read_named(filesystem: Any, path: str, max_bytes: int) -> bytes | Redirect:
    if isinstance(filesystem, LocalFileSystem):
        return read_local(path, max_bytes, follow_links=False)
    if get_protocol(path) in WEB_SCHEMES:
        from jobs.storage.web import read_web

        return read_web(filesystem, path, max_bytes)
    return _read(filesystem, path, max_bytes)


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
