"""Which URIs a manifest may name."""

from __future__ import annotations

import os
import zipfile

import pytest

from homoalign.errors import ImageUnreadable, RowInvalid, UriNotAllowed
from jobs.errors import UsageError
from jobs.storage import access
from jobs.storage.access import AccessRules, absolute_entry, check_entry, is_public
from jobs.storage.errors import StorageError
from jobs.storage.store import Store
from jobs.worker.fetch import Reader, fetch_pair

PUBLIC, PRIVATE = "93.184.216.34", "10.1.2.3"


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """Host names and what they resolve to; nothing is asked of a network."""
    known = {"images.example": (PUBLIC,), "inside.example": (PUBLIC, PRIVATE), "localhost": ("127.0.0.1",)}
    monkeypatch.setattr(access, "addresses_of", lambda host: known.get(host, (host,)))
    return known


def test_relative_uris_start_at_the_manifests_folder(tmp_path):
    rules = AccessRules(f"file://{tmp_path}")
    assert rules.resolve("a/b.png") == f"file://{tmp_path}/a/b.png"
    assert rules.resolve("../b.png") == f"file://{tmp_path.parent}/b.png"
    assert AccessRules("s3://bucket/m").resolve("a/b.png") == "s3://bucket/m/a/b.png"


@pytest.mark.parametrize(
    ("root", "uri"),
    [
        ("file:///m", "/anywhere/a.png"),
        ("file:///m", "file:///anywhere/a.png"),
        ("s3://bucket/m", "s3://other/a.png"),
        ("s3://bucket/m", "s3a://other/a.png"),
    ],
)
def test_the_manifests_own_scheme_is_allowed(root, uri):
    assert AccessRules(root).resolve(uri)


@pytest.mark.parametrize(
    ("root", "uri"),
    [
        ("file:///m", "s3://bucket/a.png"),
        ("file:///m", "https://images.example/a.png"),
        ("file:///m", "memory://a.png"),
        ("file:///m", "zip://a.png::/m/b.zip"),
        ("file:///m", "simplecache::/m/a.png"),
        ("s3://bucket/m", "/etc/passwd"),
        ("s3://bucket/m", "file:///etc/passwd"),
        ("s3://bucket/m", "FILE:///etc/passwd"),
        ("s3://bucket/m", "local:///etc/passwd"),
        ("file:///m", "a\x00.png"),
        ("file:///m", "a\x9b31m.png"),
        ("file:///m", "/proc/self/environ"),
        ("file:///m", "../proc/self/environ"),
        ("file:///m", "file:///sys/kernel/notes"),
    ],
)
def test_anything_else_is_refused_and_named(root, uri):
    with pytest.raises(UriNotAllowed):
        AccessRules(root).resolve(uri)


@pytest.mark.parametrize(
    ("scheme", "uri"),
    [
        ("s3", "s3://[2024]/a.png"),
        ("s3", "s3://[b/k"),
        ("memory", "memory://[x/y.png"),
        ("memory", "memory://x]/y.png"),
        ("memory", "memory://a\u2100b/y.png"),
        ("ftp", "ftp://[x/y.png"),
        ("sftp", "sftp://[x/y.png"),
        ("webhdfs", "webhdfs://[x"),
        ("https", "https://[x/y.png"),
        ("s3", "zip://a.png::s3://[b/k.zip"),
    ],
)
def test_what_no_one_can_read_as_a_url_is_refused_also_where_its_scheme_is_allowed(scheme, uri):
    rules = AccessRules("file:///m", (scheme, "zip"))
    with pytest.raises(UriNotAllowed, match="is no URL"):
        rules.resolve(uri)
    error = fetch_pair({"src": uri, "dst": "a.png"}, Reader(store=Store(), rules=rules)).error
    assert error is not None
    assert (error.status, uri.rpartition("://")[2] in str(error)) == ("not_allowed", True)


def test_a_member_of_an_archive_may_have_any_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("[2024/a]\u2100.png", b"image")
    uri = "zip://[2024/a]\u2100.png::b.zip"
    assert Store().read_named(uri, AccessRules(f"file://{tmp_path}", ("zip",)), max_bytes=9) == b"image"


def test_the_message_says_what_is_allowed():
    with pytest.raises(UriNotAllowed, match=r"s3://b/a\.png is outside .*file://, https://x\.example/"):
        AccessRules("file:///m", ("https://x.example/",)).resolve("s3://b/a.png")


def test_a_scheme_or_a_prefix_adds_to_the_default():
    rules = AccessRules("file:///m", ("gs", "s3://bucket/photos/"))
    assert rules.resolve("gs://any/a.png")
    assert rules.resolve("s3://bucket/photos/a.png")
    assert rules.resolve("/m/a.png")
    for uri in ("s3://bucket/photos2/a.png", "s3://bucket/photos/../secret", "s3://bucket2/photos/a.png"):
        with pytest.raises(UriNotAllowed):
            rules.resolve(uri)


def test_a_prefix_of_the_own_scheme_narrows_it_with_dots_and_symlinks_resolved(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    rules = AccessRules(f"file://{tmp_path}", (str(inside),))
    assert rules.resolve("inside/a.png") == f"file://{inside}/a.png"
    for uri in ("outside/a.png", "inside/../outside/a.png", "inside/link/a.png", f"{inside}x/a.png"):
        with pytest.raises(UriNotAllowed):
            rules.resolve(uri)


def test_every_link_of_a_chain_must_be_allowed():
    assert AccessRules("file:///m", ("zip",)).resolve("zip://a.png::b.zip") == "zip://a.png::file:///m/b.zip"
    with pytest.raises(UriNotAllowed):
        AccessRules("file:///m", ("zip",)).resolve("zip://a.png::s3://bucket/b.zip")
    with pytest.raises(UriNotAllowed):
        AccessRules("file:///m", ("s3",)).resolve("zip://a.png::s3://bucket/b.zip")


@pytest.mark.usefixtures("hosts")
def test_a_scheme_does_not_open_hosts_that_are_not_public():
    rules = AccessRules("file:///m", ("http", "https"))
    assert rules.resolve("https://images.example/a.png")
    for host in ("localhost", "127.0.0.1", "169.254.169.254", "[0:0:0:0:0:0:0:1]", "inside.example", "0.0.0.0"):
        with pytest.raises(UriNotAllowed, match="not a public address"):
            rules.resolve(f"http://{host}/a.png")


@pytest.mark.usefixtures("hosts")
def test_a_prefix_that_names_the_host_opens_it_and_no_other():
    rules = AccessRules("file:///m", ("http://localhost:8000/photos/",))
    assert rules.resolve("http://localhost:8000/photos/a.png")
    for uri in (
        "http://localhost:8001/photos/a.png",
        "http://localhost:8000/photos/%2e%2e/a.png",
        "http://localhost:8000@evil.example/photos/a.png",
        "http://localhost:8000\\@evil.example/photos/a.png",
        "https://localhost:8000/photos/a.png",
    ):
        with pytest.raises(UriNotAllowed):
            rules.resolve(uri)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (PUBLIC, True),
        ("2606:2800:220:1::1", True),
        (PRIVATE, False),
        ("100.64.0.1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("224.0.0.1", False),
    ],
)
def test_addresses_are_told_apart_also_when_wrapped(address, expected):
    assert is_public(address) is expected


def test_a_host_that_does_not_resolve_is_unreadable():
    with pytest.raises(ImageUnreadable, match=r"nowhere\.invalid"):
        AccessRules("file:///m", ("http",)).resolve("http://nowhere.invalid/a.png")


@pytest.mark.usefixtures("hosts")
def test_hosts_of_other_protocols_are_judged_too():
    rules = AccessRules("file:///m", ("ftp", "sftp"))
    assert rules.resolve("ftp://images.example/a.png")
    for uri in ("ftp://localhost/a.png", "sftp://169.254.169.254/a.png"):
        with pytest.raises(UriNotAllowed, match="not a public address"):
            rules.resolve(uri)


@pytest.mark.parametrize("scheme", ["reference", "generic", "simplecache", "filecache"])
def test_protocols_that_open_more_than_they_name_are_refused_also_where_they_are_allowed(scheme):
    with pytest.raises(UriNotAllowed, match="opens more than it names"):
        AccessRules("file:///m", (scheme, "https")).resolve(f"{scheme}::https://images.example/a.png")


def test_a_local_url_is_absolute_or_refused_with_what_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rules = AccessRules("file:///m")
    assert rules.resolve("file:///a/b.png") == rules.resolve("file://localhost/a/b.png") == "file:///a/b.png"
    for uri in ("file://a/b.png", "file://~/b.png", "local://a/b.png"):
        with pytest.raises(RowInvalid, match=r"is not absolute; write .*b\.png \(from the manifest's folder\)"):
            rules.resolve(uri)


def test_local_prefixes_are_taken_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    given = ("./a", "a/b", "file://a", "file:///a", "~/a", "s3://b/a", "https", "zip://a.png::b.zip")
    here = str(tmp_path)
    expected = (f"{here}/a", f"{here}/a/b", f"{here}/a", "/a", "/home/me/a", "s3://b/a", "https", "zip://a.png::b.zip")
    assert tuple(map(absolute_entry, given)) == expected


NO_ENTRIES = (
    "",
    " ",
    "https:",
    "s3:/bucket",
    "https:/cdn.example.com/img",
    "https:///img",
    "ftp:///img",
    "://",
    "s3://[b/",
)
NO_URLS = ("https://cdn.example.com:port/img", "https://[x", "https://host\\@other/", "sftp://host:port/")
CHAINS = ("zip://a.png::s3://bucket/", "http://[::1]:80/")


@pytest.mark.parametrize("entry", [*NO_ENTRIES, *NO_URLS, *CHAINS])
def test_what_is_neither_a_scheme_nor_a_prefix_is_wrong_usage(entry):
    with pytest.raises(UsageError, match=r"--allow "):
        check_entry(entry)


SCHEMES = ("https", "s3://")
PREFIXES = (
    "s3://bucket",
    "s3://bucket/photos/",
    "https://cdn.example.com:8443/img",
    "http://[0:0:0:0:0:0:0:1]/",
    "memory://x",
)
FOLDERS = ("/mnt/photos", "./photos", "~/photos", "./s3:/odd", "file:///mnt", "file://photos", "a/b:c")


@pytest.mark.parametrize("entry", [*SCHEMES, *PREFIXES, *FOLDERS])
def test_schemes_and_prefixes_may_be_allowed(entry):
    check_entry(entry)


@pytest.mark.parametrize("swapped", ["photos", "photos/day", "photos/day/a.png"])
def test_a_symlink_put_in_place_after_the_check_is_not_followed(tmp_path, monkeypatch, swapped):
    for folder in ("photos/day", "secret/day"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(folder.encode())
    rules = AccessRules(f"file://{tmp_path}", (f"{tmp_path}/photos",))
    assert Store().read_named("photos/day/a.png", rules, max_bytes=99) == b"photos/day"

    def resolve_then_swap(self, uri):
        found = resolve(self, uri)
        os.rename(tmp_path / swapped, tmp_path / "was")
        (tmp_path / swapped).symlink_to(tmp_path / swapped.replace("photos", "secret"))
        return found

    resolve = AccessRules.resolve
    monkeypatch.setattr(AccessRules, "resolve", resolve_then_swap)
    with pytest.raises(StorageError):
        Store().read_named("photos/day/a.png", rules, max_bytes=99)
