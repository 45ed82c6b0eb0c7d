"""A filesystem whose files harm the process that reads them; fsspec finds it by the entry point beside it.

deadly://segv/PATH     ends the process by SIGSEGV
deadly://once/PATH     likewise, but only the first who reads it; then it is the file
deadly://memory/PATH   asks for more memory than there is
deadly://frozen/PATH   sleeps in native code and lets no other thread run
deadly://hang/PATH     sleeps
deadly://slow/PATH     sleeps for 1.5 s; then it is the file
deadly://late/PATH     sleeps for 3 s, then ends the process by SIGSEGV
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import time
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem

FOREVER_S = 100_000


class DeadlyFileSystem(AbstractFileSystem):  # type: ignore[misc]
    protocol = "deadly"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("deadly://")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": Path(f"/{path.partition('/')[2]}").stat().st_size, "type": "file"}

    def cat_file(self, path: str, **_: Any) -> bytes:
        what, _, path = path.partition("/")
        file = Path(f"/{path}")
        if what == "segv":
            signal.raise_signal(signal.SIGSEGV)  # in this thread: one for the process would let it go on for a while
        elif what == "once":
            with contextlib.suppress(FileExistsError):
                file.with_suffix(".read").touch(exist_ok=False)
                signal.raise_signal(signal.SIGSEGV)
        elif what == "memory":
            bytearray(1 << 60)
        elif what == "frozen":
            ctypes.PyDLL(None).sleep(FOREVER_S)
        elif what == "hang":
            time.sleep(FOREVER_S)
        elif what == "slow":
            time.sleep(1.5)
        elif what == "late":
            time.sleep(3)
            signal.raise_signal(signal.SIGSEGV)
        return file.read_bytes()
