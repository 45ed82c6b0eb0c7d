"""Files on a local disk: read without surprises, published whole."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable

from jobs.storage.errors import StorageError

_FOLDER = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)  # macOS has no O_PATH


def read_local(path: str, max_bytes: int | None, *, follow_links: bool = True) -> bytes:
    """Return a regular file's bytes, one more than `max_bytes` where there are more.

    Args:
        path: absolute.
        max_bytes: None for all of them.
        follow_links: False where symlinks were resolved, and judged, before: one that stands there now was put in
            their place since.

    Raises:
        OSError: as `open` does.
        StorageError: it is a pipe, a socket or a device.
    """
    with open(path, "rb", opener=_open_regular if follow_links else _open_without_links) as file:
        return file.read() if max_bytes is None else file.read(max_bytes + 1)


def _open_without_links(path: str, flags: int) -> int:
    *parents, name = path.strip("/").split("/")
    folder = os.open("/", _FOLDER)
    try:
        for parent in parents:
            below = os.open(parent, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        return _regular(os.open(name or ".", flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), path)
    finally:
        os.close(folder)


def _open_regular(path: str, flags: int) -> int:
    return _regular(os.open(path, flags | os.O_NONBLOCK), path)


def _regular(descriptor: int, path: str) -> int:
    """Return a descriptor of a file that ends; a pipe would be waited for, and a device could be read for ever."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder `open` itself says so
        os.close(descriptor)
        raise StorageError(f"{path} is no regular file")
    return descriptor


def publish_local(path: str, data: bytes, place: Callable[[str, str], None]) -> None:
    """Write a file under its final name whole or not at all.

    Args:
        path: where; its folder is made.
        data: all of it.
        place: gives a temporary file beside it that name, `os.replace` or `os.link`.
    """
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
