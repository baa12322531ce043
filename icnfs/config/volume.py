"""A volume's configuration, read from its TOML and checked as a whole.

Every error is one line, `FILE: KEY: what; remedy`.  Nothing is opened but the TOML itself: providers may be away,
secrets locked up, and `status` still works.
"""

from __future__ import annotations

import codecs
import difflib
import os
import pwd
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from icnfs.config.paths import NAME_PATTERN, check_volume_name, config_file
from icnfs.config.schema import PROVIDER, TABLES, Key, Required
from icnfs.config.values import BadValueError, show
from icnfs.errors import ConfigError, NoVolumeError
from icnfs.limits import KIB, MIB, SHARES_MAX
from icnfs.placement import Policy, Weights, place
from icnfs.providers.facts import ProviderFacts
from icnfs.providers.open import ProviderSpec, parse_url

FILE_MAX: Final = 128 * KIB
"""Bytes of a TOML; 64 providers need a fifth of it."""

LINE_MAX: Final = 8 * KIB
"""Bytes of a line: none needs half of it, and what a key of so many dots costs the parser grows by their square."""

KEY_SHOWN: Final = 60
"""Characters of an unknown key, and twice as many of what a parser says, that an error quotes."""


@dataclass(frozen=True, slots=True)
class AuditRules:
    """How much of what is stored is looked at, unasked."""

    enabled: bool = True
    days: float = 14.0
    """Within so many days every share is looked at."""
    most: float = 0.1
    """Percent of the stored bytes that may be read a day."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many automatic snapshots are kept, by kind; 0 for none."""

    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """What the TOML says, defaults filled in.  Sizes are bytes, times seconds."""

    name: str
    path: Path
    k: int
    n: int
    safe: int
    """Distinct owners whose shares make a segment safe; k < safe <= n."""
    publish_seconds: float
    publish_bytes: int
    sync_deadline: float
    grace: float
    """Seconds from when nothing needs an object any more until it is deleted at its provider."""
    read_deadline: float
    cache_clean: int
    cache_dirty: int
    reserve: int
    passphrase_file: Path | None
    credential: str | None
    keyfile: Path | None
    policy: Policy
    weights: Weights
    upload: int
    download: int
    """Bytes per second to and from all providers together; 0 for no bound."""
    audit: AuditRules
    snapshots: Schedule
    log_level: str
    providers: dict[str, ProviderFacts]
    """By name, in the TOML's order."""

    def specs(self, *, create: bool = False) -> list[ProviderSpec]:
        """What opens the providers, in the TOML's order; `create` makes their places (for `init` alone)."""
        return [
            ProviderSpec(
                facts.name,
                facts.url,
                create,
                credentials=str(facts.credentials or ""),
                profile=facts.profile or "",
                credential=facts.credential or "",
                upload=facts.upload or 0,
                download=facts.download or 0,
                eur_per_tb_read=facts.eur_per_tb_read,
            )
            for facts in self.providers.values()
        ]

    def fixed_in(self, other: VolumeConfig) -> list[str]:
        """The keys in which `other` differs and that a mounted volume cannot take over, as the TOML calls them."""
        changed = (field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name))
        return sorted({FIXED.get(name, name) for name in changed if name not in ADOPTED})


ADOPTED: Final = frozenset({"providers", "policy", "weights", "upload", "download", "audit", "snapshots"})
"""What of a configuration may change while the volume is mounted."""

FIXED: Final = {
    "k": "volume.code",
    "n": "volume.code",
    "safe": "volume.safe",
    "publish_seconds": "volume.publish_seconds",
    "publish_bytes": "volume.publish_mib",
    "sync_deadline": "volume.sync_deadline",
    "grace": "volume.grace_hours",
    "read_deadline": "volume.read_deadline",
    "cache_clean": "cache.clean",
    "cache_dirty": "cache.dirty",
    "reserve": "cache.reserve",
    "passphrase_file": "keys.passphrase_file",
    "credential": "keys.credential",
    "keyfile": "keys.keyfile",
    "log_level": "log.level",
}
"""What may not, and the TOML's key for it."""


def load(name: str, path: Path | None = None) -> VolumeConfig:
    """The configuration of volume `name`, from its own place or from `path`.

    Raises `UsageError` for a name that no volume can have, `NoVolumeError` where there is no file, and `ConfigError`
    for whatever is in it.
    """
    check_volume_name(name)
    where = config_file(name) if path is None else path
    return parse(name, where, read(name, where))


def parse(name: str, path: Path, data: bytes) -> VolumeConfig:
    """The configuration in `data`, which was read from `path`; total: ConfigError or a configuration."""
    return _Reader(path).volume(name, decode(path, data))


def read(name: str, path: Path) -> bytes:
    """The bytes of volume `name`'s TOML at `path`; `NoVolumeError` and `ConfigError` as `load`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo must not hold us
        with open(fd, "rb") as file:
            _check_file(path, os.fstat(fd))
            data = file.read(FILE_MAX + 1)
    except FileNotFoundError:
        raise NoVolumeError(f"{path}: no such file, so no volume {name}; write it as icnfs.toml(5) says") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; make it a file that this user can read") from None
    if len(data) > FILE_MAX:
        raise ConfigError(f"{path}: longer than {FILE_MAX // KIB} KiB; is it the right file?")
    return data


def _check_file(path: Path, status: os.stat_result) -> None:
    """ConfigError for what is no file, or one that others could change: they would choose where the shares go."""
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path}: not a regular file; make it a file that this user can read")
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(f"{path}: belongs to another user; run chown {os.geteuid()} {path}")
    if status.st_mode & stat.S_IWOTH:
        raise ConfigError(f"{path}: everybody may change it; run chmod o-w {path}")
    if status.st_mode & stat.S_IWGRP and status.st_gid not in (0, _own_group(status.st_uid)):
        raise ConfigError(f"{path}: a group may change it; run chmod g-w {path}")


def _own_group(uid: int) -> int:
    """The group that a user's files are of from the first; -1 for a user who is not known here."""
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return -1


def decode(path: Path, data: bytes) -> dict[str, Any]:
    """The document in `data`, whatever it says; ConfigError where it is not TOML."""
    if data.startswith(codecs.BOM_UTF8):
        raise ConfigError(f"{path}: line 1: begins with a byte order mark; save the file as UTF-8 without one")
    for number, row in enumerate(data.split(b"\n"), 1):
        if len(row) > LINE_MAX:
            raise ConfigError(f"{path}: line {number}: longer than {LINE_MAX // KIB} KiB; write it as several")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {_one_line(str(error))}; correct that place") from None
    except (RecursionError, ValueError):  # nesting without end; integers of thousands of digits
        raise ConfigError(f"{path}: not TOML that any volume needs; write it as icnfs.toml(5) says") from None


def _one_line(text: str) -> str:
    line = ascii(text)[1:-1] if not text.isprintable() else text
    return line if len(line) <= 2 * KEY_SHOWN else f"{line[:KEY_SHOWN]}...{line[-KEY_SHOWN:]}"


class _Reader:
    """Reads one file's tables; remembers its path for the errors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"{self.path}: {key}: {what}")

    def volume(self, name: str, document: dict[str, Any]) -> VolumeConfig:
        self._known("table", document, [*TABLES, "provider"])
        got = {table: self._table(table, keys, document.get(table, {})) for table, keys in TABLES.items()}
        k, n = got["volume"]["code"]
        safe = n if got["volume"]["safe"] is None else got["volume"]["safe"]
        if not k < safe <= n:
            raise self.error("volume.safe", f'{safe} does not fit "{k}-of-{n}"; write a number from {k + 1} to {n}')
        config = VolumeConfig(
            name=name,
            path=self.path,
            k=k,
            n=n,
            safe=safe,
            publish_seconds=got["volume"]["publish_seconds"],
            publish_bytes=int(got["volume"]["publish_mib"] * MIB),
            sync_deadline=got["volume"]["sync_deadline"],
            grace=3600 * got["volume"]["grace_hours"],
            read_deadline=got["volume"]["read_deadline"],
            cache_clean=got["cache"]["clean"],
            cache_dirty=got["cache"]["dirty"],
            reserve=got["cache"]["reserve"],
            passphrase_file=self._beside(got["keys"]["passphrase_file"]),
            credential=got["keys"]["credential"],
            keyfile=self._beside(got["keys"]["keyfile"]),
            policy=Policy(**got["policy"]),
            weights=Weights(**got["placement"]),
            upload=got["limits"]["upload"] or 0,
            download=got["limits"]["download"] or 0,
            audit=AuditRules(**got["audit"]),
            snapshots=Schedule(**got["snapshots"]),
            log_level=got["log"]["level"],
            providers=self._providers(document.get("provider", {})),
        )
        self._check_places(config.providers.values())
        self._check_spelling(config.providers.values())
        self._check_enough(config)
        return config

    def _beside(self, path: os.PathLike[str] | None) -> Path | None:
        """A relative path counts from the TOML's folder."""
        return None if path is None else Path(os.path.abspath(self.path.parent / path))

    def _providers(self, tables: object) -> dict[str, ProviderFacts]:
        if not isinstance(tables, dict):
            raise self.error("provider", "not a table; write one [provider.NAME] for each provider")
        if len(tables) > 4 * SHARES_MAX:
            raise self.error("provider", f"{len(tables)} providers are too many; write at most {4 * SHARES_MAX}")
        return {name: self._provider(name, table) for name, table in tables.items()}

    def _provider(self, name: str, table: object) -> ProviderFacts:
        if NAME_PATTERN.fullmatch(name) is None:
            form = "use 1 to 32 of a-z, 0-9 and -, with no dash in front"
            raise self.error(f"provider.{show(name)}", f"no name for a provider; {form}")
        facts = self._table(f"provider.{name}", PROVIDER, table)
        if facts["site"] is None:
            facts["site"] = name
        facts["credentials"] = self._beside(facts["credentials"])
        self._check_keys(name, facts)
        return ProviderFacts(name=name, **facts)

    def _check_keys(self, name: str, facts: Mapping[str, Any]) -> None:
        """A bucket has keys at one place; a directory has none."""
        named = [key for key in ("credentials", "profile", "credential") if facts[key] is not None]
        wanted = parse_url(facts["url"]).s3 is not None
        if wanted and not named:
            raise self.error(f"provider.{name}", 'a bucket needs keys; add a line such as credentials = "FILE"')
        if len(named) > 1:
            raise self.error(f"provider.{name}.{named[1]}", f"its keys are in {named[0]} already; leave one of the two")
        if named and not wanted:
            raise self.error(f"provider.{name}.{named[0]}", "a directory needs no keys; remove it")

    def _table(self, name: str, keys: Mapping[str, Key], table: object) -> dict[str, Any]:
        """All of `keys`, as written in `table` or by default."""
        if not isinstance(table, dict):
            raise self.error(name, f"not a table; write it as [{name}] with its keys below")
        self._known(name, table, keys)
        return {key: self._value(name, key, entry, table) for key, entry in keys.items()}

    def _value(self, name: str, key: str, entry: Key, table: Mapping[str, object]) -> Any:
        if key not in table:
            if entry.default is Required:
                raise self.error(f"{name}.{key}", f"missing; add a line such as {key} = {entry.example}")
            return entry.default
        try:
            return entry.read(table[key])
        except BadValueError as error:
            raise self.error(f"{name}.{key}", str(error)) from None

    def _known(self, where: str, table: Mapping[str, object], known: Iterable[str]) -> None:
        """ConfigError for the first key of `table` that is not known, with the nearest that is."""
        names = list(known)
        for key in table:
            if key in names:
                continue
            near = difflib.get_close_matches(key, names, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            written = key if key.isascii() and key.isidentifier() and len(key) <= KEY_SHOWN else show(key)
            if where == "table":
                raise self.error(written, f"unknown {'table' if isinstance(table[key], dict) else 'key'}; {remedy}")
            raise self.error(f"{where}.{written}", f"unknown key; {remedy}")

    def _check_places(self, providers: Iterable[ProviderFacts]) -> None:
        """No two providers may share a place, or lie one within the other: their objects would mix."""
        seen: dict[tuple[str, Path], str] = {}
        for facts in providers:
            place = parse_url(facts.url)
            path = place.path
            for (realm, other), owner in seen.items():
                if realm != place.realm:
                    continue
                if path == other:
                    what = f"the same place as provider.{owner}.url; give each provider a place of its own"
                    raise self.error(f"provider.{facts.name}.url", what)
                if path in other.parents or other in path.parents:
                    what = f"lies within, or around, provider.{owner}.url; give each provider a place of its own"
                    raise self.error(f"provider.{facts.name}.url", what)
            seen[place.realm, path] = facts.name

    def _check_spelling(self, providers: Iterable[ProviderFacts]) -> None:
        """One owner, or site, must not count as two because it is written in two ways."""
        for key in ("owner", "site"):
            seen: dict[str, tuple[str, str]] = {}
            for facts in providers:
                text: str = getattr(facts, key)
                name, written = seen.setdefault("".join(text.split()).casefold(), (facts.name, text))
                if text != written:
                    what = f"{show(text)} and provider.{name}.{key} differ in capitals or blanks alone"
                    raise self.error(f"provider.{facts.name}.{key}", f"{what}; write both as {show(written)}")

    def _check_enough(self, config: VolumeConfig) -> None:
        """There must be a choice of providers that the code, `safe` and the policy all allow."""
        if len(config.providers) < config.n:
            what = f'"{config.k}-of-{config.n}" needs {config.n} providers and there are {len(config.providers)}'
            raise self.error("volume.code", f"{what}; add [provider.NAME] tables or lower N")
        try:
            place(
                config.n,
                config.k,
                tuple(config.providers.values()),
                safe=config.safe,
                policy=config.policy,
                weights=config.weights,
            )
        except ConfigError as error:
            raise self.error("provider", str(error)) from None
