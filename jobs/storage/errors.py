"""What storage libraries raise, as errors of ours with the URL; and which failures are worth another try.

StorageError              what the store said; where nothing else is made of it, the command ends with 3
  ObjectMissing           nothing is there
    FolderBlocked         nor can be: a file stands where a folder should
  ObjectDenied            the store does not let us
  ObjectExists            exclusive creation found something there
  ObjectTooLarge          more bytes than the caller takes
  ObjectTimedOut          the store did not answer in time
  StorageFull             the store is full, or takes nothing at all
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable
from typing import ClassVar, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from homoalign.errors import HomoalignError
from jobs.errors import ExitCode

T = TypeVar("T")

MAX_ATTEMPTS = 4
PERMANENT_ERRNOS = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
        *(errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EDQUOT, errno.EFBIG),
    }
)
"""What trying again will not change."""
SIGNED = "https?|az|abfss?|adl|wasbs?|webhdfs"
"""Schemes whose URLs may carry a signature or a token behind the path."""
TRANSIENT_MODULES = ("aiohttp", "aiobotocore", "asyncio", "botocore", "fsspec", "gcsfs", "requests", "s3fs", "urllib3")


class StorageError(HomoalignError):
    """A store could not do what was asked."""

    exit_code: ClassVar = ExitCode.MANIFEST_OR_OUTPUT


class ObjectMissing(StorageError):
    """Nothing is stored there."""


class FolderBlocked(ObjectMissing):
    """A file stands where a folder should."""


class ObjectDenied(StorageError):
    """The store refuses access."""


class ObjectExists(StorageError):
    """Exclusive creation found an object there."""


class ObjectTooLarge(StorageError):
    """The object has more bytes than the caller takes."""


class ObjectTimedOut(StorageError):
    """The store did not answer in time."""


class StorageFull(StorageError):
    """No room, or read-only: what was refused now will be refused again."""


FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class _Retries:
    """How many times this process has tried a storage action again."""

    def __init__(self) -> None:
        self.num, self.lock = 0, threading.Lock()

    def add(self, _: object) -> None:
        with self.lock:
            self.num += 1


_retries = _Retries()


def num_retries() -> int:
    """Return how many times this process has tried a storage action again."""
    return _retries.num


def redact(text: str) -> str:
    """Return `text` without passwords and signatures that URLs in it may carry."""
    text = re.sub(r"(?<=://)[^/\s]+@", "…@", text)
    return re.sub(rf"(?i)((?:{SIGNED})://[^\s?#]*[?#])\S+", r"\1…", text)


def attempt(action: Callable[[], T], url: str) -> T:
    """Run a storage action, again after transient failures, and translate what it raises at last."""
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(MAX_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.2, max=5.0),
        before_sleep=_retries.add,
        reraise=True,
    )
    try:
        return retrying(action)
    except (HomoalignError, MemoryError):
        raise
    except Exception as error:
        raise translated(error, url) from error


def is_transient(error: BaseException) -> bool:
    """Return whether a storage failure may go away by itself."""
    status = getattr(error, "status", None)
    if isinstance(status, int):  # HTTP
        return status in (408, 429) or status >= 500
    if isinstance(error, (FileNotFoundError, PermissionError, FileExistsError, StorageError)):
        return False
    if isinstance(error, OSError):
        return error.errno not in PERMANENT_ERRNOS
    return type(error).__module__.partition(".")[0] in TRANSIENT_MODULES


def translated(error: Exception, url: str) -> StorageError:
    """Return the `StorageError` that stands for what a storage library raised about `url`."""
    kinds: tuple[tuple[type[Exception], type[StorageError], str], ...] = (
        (FileNotFoundError, ObjectMissing, "does not exist"),
        (NotADirectoryError, FolderBlocked, "does not exist: a file stands where a folder should"),
        (PermissionError, ObjectDenied, "may not be accessed"),
        (FileExistsError, ObjectExists, "exists already"),
        (TimeoutError, ObjectTimedOut, "did not answer in time"),
    )
    for raised, kind, text in kinds:
        if isinstance(error, raised):
            return kind(f"{redact(url)} {text}")
    if isinstance(error, OSError) and error.errno in FULL_ERRNOS:
        return StorageFull(f"{redact(url)}: {os.strerror(error.errno)}")
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else redact(str(error))
    reason = reason.partition("\n")[0][:300]
    return StorageError(f"{redact(url)}: {reason or type(error).__name__}")
