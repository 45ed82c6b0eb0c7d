"""HTTP for images: from addresses that may be reached, one hop at a time, and never more bytes than asked for.

An address is judged where the socket to it is made, so a name cannot mean one host when it is checked and another when
it is opened (DNS rebinding), and a number is judged in whatever spelling it came. Redirects and content codings are
left to the caller: the first are to be checked again, the second could say a terabyte in a megabyte.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from homoalign.errors import ImageUnreadable, UriNotAllowed
from jobs.storage.access import is_public
from jobs.storage.errors import ObjectTooLarge, redact

PIECE_BYTES = 2**20
MAX_WHOLE_BYTES = 256 * 2**20
"""Of a response that something else than `read_web` reads at once and without a range: a link of a chained URL."""
CREDENTIALS = ("auth", "cookies", "headers")
"""Options that are meant for one server only."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """What a server answered instead of an object."""

    target: str


class _BoundedResponse(aiohttp.ClientResponse):
    """Reads no more than the range that was asked for, whatever the server sends."""

    async def read(self) -> bytes:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
        limit = int(asked[2]) - int(asked[1]) + 1 if asked else MAX_WHOLE_BYTES
        parts, left = [], limit
        while part := await self.content.read(min(left, PIECE_BYTES) + 1):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise ObjectTooLarge(f"{redact(str(self.url))} sends more than the {limit} bytes it was asked for")
        return b"".join(parts)


async def public_client(**options: Any) -> aiohttp.ClientSession:
    """Return a session that connects to public addresses only; fsspec's `get_client`."""
    return _client(aiohttp.TCPConnector(socket_factory=_public_socket), options)


async def any_client(**options: Any) -> aiohttp.ClientSession:
    """Return a session for hosts that the run names; fsspec's `get_client`."""
    return _client(aiohttp.TCPConnector(), options)


def _client(connector: aiohttp.TCPConnector, options: Mapping[str, Any]) -> aiohttp.ClientSession:
    headers = {**(options.get("headers") or {}), "Accept-Encoding": "identity"}
    return aiohttp.ClientSession(
        **{**options, "headers": headers, "connector": connector},
        auto_decompress=False,
        response_class=_BoundedResponse,
    )


def _public_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an entry of getaddrinfo; OSError, which aiohttp expects, where it may not be reached."""
    family, kind, protocol, _, (host, *_) = address
    if not is_public(host):
        raise OSError(errno.EACCES, f"{host} is not a public address")
    return socket.socket(family, kind, protocol)


def web_options(options: Mapping[str, Any], *, public_only: bool, with_credentials: bool) -> dict[str, Any]:
    """Return what fsspec's HTTP filesystem is made with to read images.

    Args:
        options: the run's, for this protocol.
        public_only: refuse to connect to any other address.
        with_credentials: False for a host that a redirect led to, which they are not meant for.
    """
    client = {**options.get("client_kwargs", {})}
    kept = {**options, "get_client": public_client if public_only else any_client, "allow_redirects": False}
    if not with_credentials:
        for name in CREDENTIALS:
            client.pop(name, None)
            kept.pop(name, None)
    return {**kept, "client_kwargs": client}


def read_web(filesystem: Any, url: str, max_bytes: int) -> bytes | Redirect:
    """Read an object of at most `max_bytes`, and a byte more where it has more.

    Raises:
        UriNotAllowed: it is at an address that may not be reached.
        ObjectTooLarge: it says so itself.
        ImageUnreadable: it came in a content coding, or the server sends us to no place.
    """
    try:
        # a block size of 0 and any size make fsspec stream at once: a server may ignore a range
        with filesystem.open(url, "rb", block_size=0, size=1) as file:
            headers = file.r.headers
            if 300 <= file.r.status < 400:
                if not headers.get("Location"):
                    raise ImageUnreadable(f"{redact(url)} answers {file.r.status} without saying where to")
                return Redirect(headers["Location"])
            if headers.get("Content-Encoding", "identity") != "identity":
                raise ImageUnreadable(
                    f"{redact(url)} came with Content-Encoding {headers['Content-Encoding']}, not asked for"
                )
            stated = headers.get("Content-Length", "")
            if stated.isdecimal() and int(stated) > max_bytes:
                raise ObjectTooLarge(f"{redact(url)} has {stated} bytes, more than {max_bytes} bytes")
            parts, left = [], max_bytes + 1
            while left > 0 and (part := file.read(min(left, PIECE_BYTES))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
    except aiohttp.ClientConnectorError as error:
        if error.os_error.errno == errno.EACCES:
            reason = f"{error.os_error.strerror}; only a prefix that names the host allows it"
            raise UriNotAllowed(f"{redact(url)}: {reason}") from None
        raise
