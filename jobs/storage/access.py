"""Which URIs a manifest may name, and what they mean.

By default a manifest reads through its own scheme: a local one local files, one on `s3://` objects on S3. `--allow`
adds a scheme (`https`) or a prefix (`s3://bucket/photos/`, `/mnt/photos`). A prefix of the manifest's own scheme
narrows that scheme to it. Every link of a chained URL (`zip://a.png::s3://bucket/a.zip`) must be allowed.

Local paths are compared with symlinks and `..` resolved. Hosts that resolve to a loopback, link-local, private or
otherwise not public address need a prefix that names the host; a scheme is not enough. Here they are judged by name,
before anything is opened; `web.py` judges the address that is connected to.
"""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import SplitResult, unquote, urlsplit

from homoalign.errors import ImageUnreadable, RowInvalid, UriNotAllowed
from jobs.errors import UsageError
from jobs.storage.errors import redact

WEB_SCHEMES = ("http", "https")
HOST_SCHEMES = (*WEB_SCHEMES, "ftp", "hdfs", "sftp", "smb", "ssh", "webdav", "webhdfs")
"""Those whose URLs name the machine to connect to."""
INDIRECT_SCHEMES = ("blockcache", "cached", "dask", "filecache", "generic", "reference", "simplecache")
"""fsspec's protocols that open other URLs than they name, or keep copies on disk without end."""
KERNEL_FOLDERS = ("file:///proc", "file:///sys")
"""What a worker knows of itself and its machine: no images, but credentials."""
SAME_SCHEMES = {"local": "file", "s3a": "s3", "gcs": "gs"}
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What one run allows."""

    root: str
    """URL of the manifest's folder: relative URIs start here, and its scheme is the default."""
    allow: tuple[str, ...] = ()
    """Schemes and prefixes, as `--allow` names them."""

    def schemes(self) -> frozenset[str]:
        """Return the schemes that are allowed as a whole."""
        own = scheme_of(self.root.rpartition("::")[2])
        narrowed = any(scheme_of(prefix) == own for prefix in self.prefixes())
        named = {_canonical(entry.removesuffix("://")) for entry in self.allow if _is_scheme(entry)}
        return frozenset(named if narrowed else named | {own})

    def prefixes(self) -> tuple[str, ...]:
        """Return the entries of `allow` that are prefixes."""
        return tuple(entry for entry in self.allow if not _is_scheme(entry))

    def resolve(self, uri: str) -> str:
        """Return the absolute URL that `uri` stands for.

        Raises:
            UriNotAllowed: the run does not allow it, the message says what it allows; or it is no URL.
            RowInvalid: a local URL that is not absolute.
            ImageUnreadable: its host cannot be resolved.
        """
        if re.search(r"[\x00-\x1f\x7f-\x9f]", uri):
            raise UriNotAllowed(f"{uri!r} holds control characters")
        links = uri.split("::")
        if _has_scheme(links[-1]):  # those before it name what lies inside it
            split_url(links[-1])
        if len(links) > 1:
            return "::".join(self._resolve_link(link, uri, is_chained=True) for link in links)
        return self._resolve_link(uri, uri, is_chained=False)

    def follow(self, url: str) -> str:
        """Return `url`, which a web server sent us to, if the run allows it.

        Raises:
            UriNotAllowed: it is not allowed, or leads from the web to somewhere else.
        """
        if scheme_of(url) not in WEB_SCHEMES:
            raise UriNotAllowed(f"a redirect to {redact(url)} leaves the web")
        return self.resolve(url)

    def is_named(self, url: str) -> bool:
        """Return whether a prefix allows `url`, so that it may be anywhere."""
        comparable = comparable_url(url)
        return any(_is_below(comparable, comparable_url(prefix)) for prefix in self.prefixes())

    def _resolve_link(self, link: str, uri: str, *, is_chained: bool) -> str:
        if is_chained and re.fullmatch(r"[a-z0-9]+", link):  # fsspec: a bare word in a chain is a protocol
            link += "://"
        url = link if _has_scheme(link) else self._absolute(link, is_chained=is_chained)
        scheme = scheme_of(url)
        if scheme in INDIRECT_SCHEMES:
            raise UriNotAllowed(f"{redact(uri)}: {scheme}:: opens more than it names and is never allowed")
        if self.is_named(url):
            return _opened_as(url, scheme, link, is_chained=is_chained)
        is_kernel = scheme == "file" and any(_is_below(comparable_url(url), folder) for folder in KERNEL_FOLDERS)
        if scheme not in self.schemes() or is_kernel:
            raise UriNotAllowed(f"{redact(uri)} is outside what the run allows ({self._allowed_text()})")
        if scheme in HOST_SCHEMES:
            self._check_host(url)
        return _opened_as(url, scheme, link, is_chained=is_chained)

    def _absolute(self, path: str, *, is_chained: bool) -> str:
        if path.startswith("/"):
            return f"file://{path}"
        if is_chained and scheme_of(self.root) != "file":
            raise UriNotAllowed(f"{path} is relative inside a chained URL, which only a local manifest may name")
        return f"{self.root}/{path}"

    def _check_host(self, url: str) -> None:
        host = split_url(url).hostname
        if not host:
            raise UriNotAllowed(f"{redact(url)} names no host")
        for address in addresses_of(host):
            if not is_public(address):
                raise UriNotAllowed(
                    f"{redact(url)} leads to {address}, which is not a public address; "
                    f"only a prefix that names the host allows it, such as --allow {scheme_of(url)}://{host}/"
                )

    def _allowed_text(self) -> str:
        schemes = [f"{scheme}://" for scheme in sorted(self.schemes())]
        return ", ".join([*schemes, *(redact(prefix) for prefix in self.prefixes())])


def scheme_of(url: str) -> str:
    """Return the scheme of a URL, `file` for a plain path; aliases give the same answer."""
    return _canonical(url.partition("://")[0]) if _has_scheme(url) else "file"


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL.

    Raises:
        UriNotAllowed: it has none: half a bracket, a port that is no number, letters that stand for a slash.
    """
    try:
        parts = urlsplit(url)
        if scheme_of(url) in HOST_SCHEMES:
            _ = parts.port  # parsed when it is asked for
    except ValueError as error:
        raise UriNotAllowed(f"{redact(url)} is no URL: {error}") from error
    return parts


def check_entry(entry: str) -> None:
    """Check that an entry of `--allow` is a scheme or a prefix.

    Raises:
        UsageError: it is neither, and so would allow nothing, or another folder than it seems to.
    """
    if not entry.strip():
        raise UsageError("--allow is empty; it takes a scheme (https) or a prefix (s3://bucket/photos/, /mnt/photos)")
    if _is_scheme(entry):
        return
    if "::" in entry:
        raise UsageError(
            f"--allow {redact(entry)} holds ::, which parts the links of a chain; each link is allowed by itself, and "
            "an address of IPv6 is written without"
        )
    if not _has_scheme(entry):
        if re.match(r"[A-Za-z0-9+.-]*:", entry):
            raise UsageError(
                f"--allow {redact(entry)} is neither a scheme (https) nor a prefix (s3://bucket/photos/); "
                f"a folder of that name is ./{entry}"
            )
        return
    try:
        parts = split_url(entry)
        comparable_url(absolute_entry(entry))
    except (UriNotAllowed, RowInvalid) as error:
        raise UsageError(f"--allow {error}") from error
    if scheme_of(entry) in HOST_SCHEMES and not parts.hostname:
        raise UsageError(f"--allow {redact(entry)} names no host")


def absolute_entry(entry: str) -> str:
    """Return an entry of `--allow` with a local prefix taken from the current folder."""
    if _is_scheme(entry) or scheme_of(entry) != "file" or "::" in entry:
        return entry
    path = entry.partition("://")[2].removeprefix("localhost") if _has_scheme(entry) else entry
    return os.path.abspath(os.path.expanduser(path))


def comparable_url(url: str) -> str:
    """Return `url` with `..`, symlinks, case of the host and its port resolved, for comparison only."""
    scheme, rest = scheme_of(url), url.partition("://")[2] if _has_scheme(url) else url
    if scheme == "file":
        return f"file://{os.path.realpath(local_path(url))}"
    if scheme in WEB_SCHEMES:
        if "\\" in rest:
            raise UriNotAllowed(f"{redact(url)} holds a backslash, which servers read in different ways")
        parts = split_url(f"{scheme}://{rest}")
        port = parts.port or (443 if scheme == "https" else 80)
        return f"{scheme}://{(parts.hostname or '').rstrip('.')}:{port}{_normal(unquote(parts.path))}"
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}{_normal(key)}"


def local_path(url: str) -> str:
    """Return the absolute path that a local URL, or a plain path, names.

    Raises:
        RowInvalid: it is not absolute. `file://a/b` would be `b` on the host `a`, and is often meant as `a/b`.
    """
    path = url.partition("://")[2].removeprefix("localhost") if _has_scheme(url) else url
    if not path.startswith("/"):
        raise RowInvalid(f"{url} is not absolute; write {path} (from the manifest's folder) or file:///…/{path}")
    return path


@lru_cache(maxsize=4096)
def addresses_of(host: str) -> tuple[str, ...]:
    """Return the addresses that `host` resolves to.

    Raises:
        ImageUnreadable: to none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImageUnreadable(f"host {host} cannot be resolved: {error}") from error
    return tuple(sorted({str(entry[4][0]) for entry in found}))


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet, also when wrapped in IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if wrapped is None and ip in NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = wrapped or ip
    return ip.is_global and not ip.is_multicast


def _has_scheme(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _is_scheme(entry: str) -> bool:
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*(://)?", entry) is not None


def _canonical(scheme: str) -> str:
    return SAME_SCHEMES.get(scheme.lower(), scheme.lower())


def _normal(path: str) -> str:
    return posixpath.normpath(f"/{path.lstrip('/')}")


def _is_below(url: str, prefix: str) -> bool:
    return url == prefix or url.startswith(f"{prefix.rstrip('/')}/")


def _opened_as(url: str, scheme: str, link: str, *, is_chained: bool) -> str:
    """Return what fsspec opens: for a local file the very path that was compared."""
    if scheme == "file":
        return comparable_url(url)
    if is_chained and link.endswith("://"):
        return link.removesuffix("://")
    return f"{url.partition('://')[0].lower()}://{url.partition('://')[2]}"
