"""The TOML: what is read, and one line for everything that cannot be."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.config import load, parse
from icnfs.config.schema import TABLES
from icnfs.config.volume import ADOPTED, FILE_MAX, FIXED, Schedule, VolumeConfig, _Reader
from icnfs.errors import ConfigError, NoVolumeError, UsageError
from icnfs.limits import GIB, MIB
from icnfs.placement import Policy, Weights
from icnfs.providers.facts import ProviderFacts
from icnfs.providers.open import ProviderSpec

FILE = Path("/etc/icnfs/demo.toml")

MINIMAL = "".join(
    f"""
[provider.{name}]
url = "file:///srv/{name}"
owner = "Owner {name}"
parent_country = "DE"
country = "FI"
"""
    for name in "abcdef"
)

FULL = """
[volume]
code = "2-of-3"
safe = 3
publish_seconds = 5
publish_mib = 0.5e2
sync_deadline = 60.5
read_deadline = 2
grace_hours = 2

[cache]
clean = "1.5GiB"
dirty = 536870912
reserve = "100 MB"

[keys]
passphrase_file = "secret/demo.passphrase"
credential = "icnfs-demo"
keyfile = "/root/demo.key"

[policy]
allowed_countries = ["DE", "FI"]
excluded_parents = ["US"]
max_per_owner = 1
max_per_parent_country = 3
max_per_country = 2
max_per_site = 3

[log]
level = "debug"

[placement]
cost = 2
latency = 0
room = 0.5
life_months = 12
reads = 3

[limits]
upload = "10MB"
download = 70000

[provider.x-1]
url = "/srv/x"
owner = "Süd GmbH"
parent_country = "DE"
country = "DE"
site = "Köln"
eur_per_tb_month = 5.5
eur_per_tb_read = 1
upload = "1MiB"
download = "2MiB"
drain = true

[provider.w]
url = "/srv/w"
owner = "W"
parent_country = "CH"
country = "FI"

[provider.y]
url = "/srv/y"
owner = "Y"
parent_country = "CH"
country = "FI"

[provider.z]
url = "/srv/z"
owner = "Z"
parent_country = "CH"
country = "DE"
"""


def read(text: str) -> VolumeConfig:
    return parse("demo", FILE, text.encode())


def with_line(table: str, line: str) -> str:
    """MINIMAL with one line added to one table, in place of the line of the same key."""
    key = line.partition(" ")[0]
    if not table.startswith("provider."):
        return f"[{table}]\n{line}\n{MINIMAL}"
    head, body = MINIMAL.split(f"[{table}]\n")
    mine, gap, rest = body.partition("\n\n")
    kept = [old for old in mine.splitlines() if old.partition(" ")[0] != key]
    return head + f"[{table}]\n" + "\n".join([*kept, line]) + gap + rest


def test_defaults() -> None:
    config = read(MINIMAL)
    assert (config.name, config.path) == ("demo", FILE)
    assert (config.k, config.n, config.safe) == (4, 6, 6)
    assert (config.publish_seconds, config.publish_bytes) == (30, 64 * MIB)
    assert (config.sync_deadline, config.read_deadline) == (300, 20)
    assert (config.cache_clean, config.cache_dirty, config.reserve) == (10 * GIB, 4 * GIB, 256 * MIB)
    assert config.passphrase_file is config.credential is config.keyfile is None
    assert (config.policy, config.log_level) == (Policy(), "info")
    assert list(config.providers) == list("abcdef")
    assert config.providers["a"] == ProviderFacts("a", "file:///srv/a", "Owner a", "DE", "FI", "a", 0.0, 0.0)


def test_every_key_is_read() -> None:
    config = read(FULL)
    assert (config.k, config.n, config.safe) == (2, 3, 3)
    assert (config.publish_seconds, config.publish_bytes) == (5, 50 * MIB)
    assert (config.sync_deadline, config.read_deadline) == (60.5, 2)
    assert config.grace == 7200
    assert (config.cache_clean, config.cache_dirty, config.reserve) == (3 * GIB // 2, 512 * MIB, 10**8)
    assert config.passphrase_file == Path("/etc/icnfs/secret/demo.passphrase")
    assert (config.credential, config.keyfile) == ("icnfs-demo", Path("/root/demo.key"))
    assert config.policy == Policy(frozenset({"DE", "FI"}), frozenset({"US"}), 1, 3, 2, 3)
    assert config.weights == Weights(2, 0, 0.5, 12, 3)
    assert (config.upload, config.download) == (10**7, 70000)
    assert config.log_level == "debug"
    assert config.providers["x-1"] == ProviderFacts(
        "x-1", "/srv/x", "Süd GmbH", "DE", "DE", "Köln", 5.5, 1.0, upload=MIB, download=2 * MIB, drain=True
    )


def test_what_a_mount_cannot_take_over_is_told_by_the_keys_of_the_toml() -> None:
    mounted = read(MINIMAL)
    changed = replace(mounted, log_level="debug", publish_bytes=1, k=2, n=3, upload=5, snapshots=Schedule(daily=1))
    assert mounted.fixed_in(changed) == ["log.level", "volume.code", "volume.publish_mib"]
    assert mounted.fixed_in(replace(mounted, upload=5)) == []
    tables = {f"{table}.{key}" for table, keys in TABLES.items() for key in keys}
    assert set(FIXED.values()) <= tables
    assert {field.name for field in fields(mounted)} == FIXED.keys() | ADOPTED | {"name", "path"}


def test_specs_open_the_providers_in_order() -> None:
    assert read(FULL).specs()[0] == ProviderSpec("x-1", "/srv/x", upload=MIB, download=2 * MIB, eur_per_tb_read=1.0)
    assert read(FULL).specs()[2] == ProviderSpec("y", "/srv/y", create=False)
    assert all(spec.create for spec in read(FULL).specs(create=True))


BAD_VALUES = [
    ("volume", 'code = "6-of-4"', "volume.code", 'asks for more shares than there are; write it as "K-of-N"'),
    ("volume", 'code = "4-of-4"', "volume.code", "survives no loss; write"),
    ("volume", 'code = "1-of-4"', "volume.code", "gives every owner all there is; write"),
    ("volume", 'code = "0-of-4"', "volume.code", "write it as"),
    ("volume", 'code = "40-of-65"', "volume.code", "too many shares; write"),
    ("volume", 'code = "4of6"', "volume.code", "is no code; write"),
    ("volume", 'code = "4-of-6\\n"', "volume.code", "is no code; write"),
    ("volume", "code = 4", "volume.code", "is no code; write"),
    ("volume", 'code = "5-of-7"', "volume.code", "needs 7 providers and there are 6; add"),
    ("volume", "safe = 4", "volume.safe", "write a number from 5 to 6"),
    ("volume", "safe = 7", "volume.safe", "write a number from 5 to 6"),
    ("volume", 'safe = "6"', "volume.safe", "write a number of owners from 1 to 64"),
    ("volume", "safe = true", "volume.safe", "write a number of owners"),
    ("volume", "publish_seconds = 0", "volume.publish_seconds", "write seconds from 1 to 86400"),
    ("volume", 'publish_seconds = "30s"', "volume.publish_seconds", "write seconds"),
    ("volume", "publish_seconds = nan", "volume.publish_seconds", "write seconds"),
    ("volume", "publish_mib = -1", "volume.publish_mib", "write MiB from 1"),
    ("volume", f"publish_mib = {10**400}", "volume.publish_mib", "write MiB from 1"),
    ("volume", "sync_deadline = inf", "volume.sync_deadline", "write seconds"),
    ("volume", "read_deadline = 0.01", "volume.read_deadline", "write seconds from 0.1"),
    ("volume", "read_deadline = 1979-05-27", "volume.read_deadline", "write seconds"),
    ("volume", 'cod = "4-of-6"', "volume.cod", "unknown key; did you mean code?"),
    ("volume", "chunk_size = 1", "volume.chunk_size", "unknown key; there are code, safe"),
    ("volume", '"a b\\n" = 1', 'volume."a b\\n"', "unknown key"),
    ("cache", 'clean = "10 gigs"', "cache.clean", 'is no size; write bytes, or a number and a unit, as in "10GiB"'),
    ("cache", 'clean = "10gib"', "cache.clean", "is no size; write"),
    ("cache", "clean = 1.5", "cache.clean", "is no size; write"),
    ("cache", "clean = -5", "cache.clean", "is no size; write"),
    ("cache", 'clean = "1MiB"', "cache.clean", 'write at least "16MiB"'),
    ("cache", 'dirty = "1KiB"', "cache.dirty", 'write at least "64MiB"'),
    ("cache", 'reserve = "9999999TiB"', "cache.reserve", "is no size; write"),
    ("keys", 'passphrase_file = ""', "keys.passphrase_file", "is no path; write"),
    ("keys", "keyfile = 7", "keys.keyfile", "is no path; write"),
    ("keys", 'credential = "../x"', "keys.credential", "names no credential; write"),
    ("keys", 'passphrase = "hunter2"', "keys.passphrase", "unknown key; did you mean passphrase_file?"),
    ("policy", 'allowed_countries = "DE"', "policy.allowed_countries", "is no list; write"),
    ("policy", 'allowed_countries = ["XX"]', "policy.allowed_countries", "is no country; write its two-letter"),
    ("policy", 'allowed_countries = ["DE"]', "provider", "a is in FI, which is not allowed"),
    ("policy", 'excluded_parents = ["DE"]', "provider", "a's parent is in DE, which is excluded"),
    ("policy", 'excluded_parents = [["DE"]]', "policy.excluded_parents", "is no country"),
    ("policy", "max_per_owner = 0", "policy.max_per_owner", "write shares from 1 to 64"),
    ("policy", "max_per_country = 3", "provider", "at most 3 per country leaves 3 places for 6 shares"),
    ("policy", "max_per_site = 1.0", "policy.max_per_site", "write shares"),
    ("log", 'level = "loud"', "log.level", "is no level; write one of debug, info, warning, error"),
    ("provider.c", "url = 7", "provider.c.url", "is no url; write file:///PATH"),
    ("provider.c", 'url = "ftp://bucket"', "provider.c.url", "is of no known kind; write file:///PATH"),
    (
        "provider.c",
        'url = "s3://k:hush@b"',
        "provider.c.url",
        '"s3://...@b" holds a name or a password; write the keys',
    ),
    ("provider.c", 'url = "srv/c"', "provider.c.url", "is of no known kind; write file:///PATH"),
    ("provider.c", 'url = "file://srv/c"', "provider.c.url", "names a host; a directory of this machine is"),
    ("provider.c", 'url = "/srv/a"', "provider.c.url", "the same place as provider.a.url; give each"),
    ("provider.c", 'url = "file://localhost/srv//a/"', "provider.c.url", "the same place as provider.a.url"),
    ("provider.c", 'url = "/srv/a/shares"', "provider.c.url", "lies within, or around, provider.a.url; give"),
    ("provider.c", 'url = "/srv"', "provider.c.url", "lies within, or around, provider.a.url; give"),
    ("provider.c", 'owner = ""', "provider.c.owner", "is no text; write"),
    ("provider.c", 'owner = " x"', "provider.c.owner", "outer blanks; remove"),
    ("provider.c", 'owner = "a\\u001b[31m"', "provider.c.owner", "control characters or outer blanks; remove them"),
    ("provider.c", 'owner = "Owner a"', "provider", "safe = 6 distinct owners and there are 5"),
    ("provider.c", 'parent_country = "Germany"', "provider.c.parent_country", "is no country; write its two-letter"),
    ("provider.c", 'country = "UK"', "provider.c.country", "is no country's code in ISO 3166; write GB"),
    ("provider.c", 'country = "de"', "provider.c.country", "is no country; write"),
    ("provider.c", "site = []", "provider.c.site", "is no text; write"),
    ("provider.c", "eur_per_tb_month = -0.5", "provider.c.eur_per_tb_month", "write EUR from 0"),
    ("provider.c", 'eur_per_tb_read = "free"', "provider.c.eur_per_tb_read", "is no number; write EUR from 0"),
    (
        "provider.c",
        'owner = "ownerb"',
        "provider.c.owner",
        "provider.b.owner differ in capitals or blanks alone; write",
    ),
    (
        "provider.c",
        'site = "A"',
        "provider.c.site",
        'provider.a.site differ in capitals or blanks alone; write both as "a"',
    ),
    ("provider.c", 'ower = "C"', "provider.c.ower", "unknown key; did you mean owner?"),
    ("provider.Upper", 'owner = "C"', 'provider."Upper"', "no name for a provider; use 1 to 32 of a-z"),
    ("provider.-x", 'owner = "C"', 'provider."-x"', "no name for a provider; use"),
    ("provider.n", 'owner = "C"', "provider.n.url", 'missing; add a line such as url = "file:///srv/icnfs/a"'),
    ("volumes", "x = 1", "volumes", "unknown table; did you mean volume?"),
]


@pytest.mark.parametrize(
    ("table", "line", "key", "what"), BAD_VALUES, ids=[f"{t}: {line}" for t, line, *_ in BAD_VALUES]
)
def test_bad_value_is_one_line_of_file_key_and_remedy(table: str, line: str, key: str, what: str) -> None:
    text = with_line(table, line) if f"[{table}]" in MINIMAL or "." not in table else f"{MINIMAL}[{table}]\n{line}\n"
    with pytest.raises(ConfigError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith(f"{FILE}: {key}: ")
    assert what in message
    assert message.isprintable() and len(message) < 400


@pytest.mark.parametrize("key", ["url", "owner", "parent_country", "country"])
def test_fact_that_is_missing_is_asked_for(key: str) -> None:
    head, _, rest = MINIMAL.partition("[provider.d]")
    text = head + "[provider.d]" + re.sub(f"(?m)^{key} = .*\n", "", rest, count=1)
    with pytest.raises(ConfigError, match=rf"^{FILE}: provider\.d\.{key}: missing; add a line such as {key} = "):
        read(text)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", r"volume.code: \"4-of-6\" needs 6 providers and there are 0; add"),
        (b"code = 1", "code: unknown key; there are volume, cache"),
        (b"volume = 1", r"volume: not a table; write it as \[volume\]"),
        (b"provider = 1", r"provider: not a table; write one \[provider.NAME\]"),
        (b"[provider]\na = 1", r"provider.a: not a table; write it as \[provider.a\]"),
        (b"[[provider]]\nurl = 1", "provider: not a table"),
        (b"[volume]\n[volume]", "not TOML: .*line 2.*; correct that place"),
        (b"[volume]\nsafe = 1\nsafe = 2\n", "not TOML: .*line 3.*; correct that place"),
        (b"[volume\n", "not TOML: .*line 1.*; correct that place"),
        (b"\n\n\xff", "line 3: not UTF-8; save the file as UTF-8"),
        (b"x = " + b"[" * 8_000, "not TOML"),
        (b"x = " + b"1" * 8_000, "not TOML"),
        (b"\n" + b".".join([b"x"] * 50_000) + b" = 1", "line 2: longer than 8 KiB; write"),
        (b"\0\x1b[31m = 1", "not TOML"),
        (b"\xef\xbb\xbf[volume]", "line 1: begins with a byte order mark; save"),
        (b"x" * 8_000 + b" = 1", r'"x{56}\.\.\.: unknown key; there are'),
        (b"[volume]\n" + b"x" * 8_000 + b" = 1", r'volume."x{56}\.\.\.: unknown key; there are'),
    ],
)
def test_file_that_is_no_configuration_is_one_line(data: bytes, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        parse("demo", FILE, data)
    assert str(caught.value).startswith(f"{FILE}: ") and str(caught.value).isprintable()


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_parser_is_total(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse("demo", FILE, data)


toml_values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates() | st.just("4-of-6"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(
    st.sampled_from(["volume", "cache", "keys", "policy", "log", "provider"]),
    st.sampled_from(["code", "safe", "clean", "keyfile", "credential", "max_per_site", "level", "a"]),
    toml_values,
)
def test_values_of_every_type_are_read_or_refused(table: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        _Reader(FILE).volume("demo", {table: {key: value}})  # never a configuration: it has no providers
    assert str(caught.value).startswith(f"{FILE}: ") and "\n" not in str(caught.value)


def test_load_reads_the_volumes_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICNFS_CONFIG_DIR", str(tmp_path))
    (tmp_path / "demo.toml").write_text(MINIMAL)
    assert load("demo").path == tmp_path / "demo.toml"
    assert load("other", tmp_path / "demo.toml").name == "other"


def test_load_of_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoVolumeError, match=r"nothing\.toml: no such file, so no volume demo; write it"):
        load("demo", tmp_path / "nothing.toml")


def test_load_of_what_is_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make it a file"):
        load("demo", tmp_path)


def test_load_of_a_fifo_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "demo.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load("demo", tmp_path / "demo.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load("demo", Path("/dev/zero"))


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "what"),
    [
        (0o644, 0, 0, ""),
        (0o664, 0, 0, ""),
        (0o666, 0, 0, "everybody may change it; run chmod o-w"),
        (0o664, 0, 1, "a group may change it; run chmod g-w"),
        (0o644, 0, 1, ""),
        (0o600, 1, 1, "belongs to another user; run chown"),
    ],
)
def test_load_of_what_others_may_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, uid: int, gid: int, what: str
) -> None:
    path = tmp_path / "demo.toml"
    path.write_text(MINIMAL)
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        found = list(real(fd))
        found[stat.ST_MODE], found[stat.ST_UID], found[stat.ST_GID] = stat.S_IFREG | mode, uid, gid
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", fstat)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if not what:
        assert load("demo", path).k == 4
        return
    with pytest.raises(ConfigError, match=what):
        load("demo", path)


def test_load_of_a_huge_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo.toml").write_bytes(b"#" * (FILE_MAX + 1))
    with pytest.raises(ConfigError, match="longer than 128 KiB"):
        load("demo", tmp_path / "demo.toml")


@pytest.mark.parametrize("name", ["", "../x", "A", "a" * 33, "a.b", "a\n", "-f"])
def test_load_of_no_volumes_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no volume's name"):
        load(name)
