"""Every table and key of icnfs.toml(5), once: how it is read, and what holds where it is not written.

A test holds the manual page to this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from icnfs.config import values
from icnfs.limits import GIB, KIB, MIB, SHARES_MAX

RATE_LEAST: Final = 64 * KIB
"""Bytes per second of the lowest limit: below it a share of 4 MiB takes over a minute and counts as hanging."""


SCHEDULED_MAX: Final = 500
"""Automatic snapshots of one kind: all four together, and as many by hand, stay below what a volume can have."""


class Required:
    """The default of a key that must be written."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key: `read` returns its value or raises BadValueError; `default` is such a value, or Required."""

    read: Callable[[object], Any]
    default: Any
    example: str
    """What an error that asks for the key shows."""


PROVIDER: Final[dict[str, Key]] = {
    "url": Key(values.read_url, Required, '"file:///srv/icnfs/a"'),
    "owner": Key(values.read_text, Required, '"Example Oy"'),
    "parent_country": Key(values.read_country, Required, '"FI"'),
    "country": Key(values.read_country, Required, '"FI"'),
    "site": Key(values.read_text, None, '"Helsinki"'),
    "eur_per_tb_month": Key(values.number_of(0, 1e6, "EUR"), 0.0, "5.5"),
    "eur_per_tb_read": Key(values.number_of(0, 1e6, "EUR"), 0.0, "0"),
    "credentials": Key(values.read_path, None, '"example.keys"'),
    "profile": Key(values.read_profile, None, '"example"'),
    "credential": Key(values.read_credential, None, '"icnfs-example"'),
    "upload": Key(values.size_of(RATE_LEAST), None, '"10MB"'),
    "download": Key(values.size_of(RATE_LEAST), None, '"10MB"'),
    "drain": Key(values.read_bool, False, "true"),
    "retention_days": Key(values.number_of(0, 36_500, "days"), None, "35"),
}
"""Keys of each `[provider.NAME]`."""

TABLES: Final[dict[str, dict[str, Key]]] = {
    "volume": {
        "code": Key(values.read_code, (4, 6), '"4-of-6"'),
        "safe": Key(values.integer_of(1, SHARES_MAX, "a number of owners"), None, "6"),
        "publish_seconds": Key(values.number_of(1, 86_400, "seconds"), 30.0, "30"),
        "publish_mib": Key(values.number_of(1, 65_536, "MiB"), 64.0, "64"),
        "sync_deadline": Key(values.number_of(1, 86_400, "seconds"), 300.0, "300"),
        "grace_hours": Key(values.number_of(1, 87_600, "hours"), 24.0, "24"),
        "read_deadline": Key(values.number_of(0.1, 3_600, "seconds"), 20.0, "20"),
    },
    "cache": {
        "clean": Key(values.size_of(16 * MIB), 10 * GIB, '"10GiB"'),
        "dirty": Key(values.size_of(64 * MIB), 4 * GIB, '"4GiB"'),
        "reserve": Key(values.size_of(16 * MIB), 256 * MIB, '"256MiB"'),
    },
    "keys": {
        "passphrase_file": Key(values.read_path, None, '"demo.passphrase"'),
        "credential": Key(values.read_credential, None, '"icnfs-demo"'),
        "keyfile": Key(values.read_path, None, '"demo.key"'),
    },
    "policy": {
        "allowed_countries": Key(values.read_countries, frozenset(), '["DE", "FI"]'),
        "excluded_parents": Key(values.read_countries, frozenset(), '["US"]'),
        "max_per_owner": Key(values.integer_of(1, SHARES_MAX, "shares"), None, "1"),
        "max_per_parent_country": Key(values.integer_of(1, SHARES_MAX, "shares"), None, "2"),
        "max_per_country": Key(values.integer_of(1, SHARES_MAX, "shares"), None, "2"),
        "max_per_site": Key(values.integer_of(1, SHARES_MAX, "shares"), None, "1"),
    },
    "placement": {
        "cost": Key(values.number_of(0, 1000, "a weight"), 1.0, "1"),
        "latency": Key(values.number_of(0, 1000, "a weight"), 1.0, "1"),
        "room": Key(values.number_of(0, 1000, "a weight"), 1.0, "1"),
        "life_months": Key(values.number_of(1, 1200, "months"), 36.0, "36"),
        "reads": Key(values.number_of(0, 1000, "a part of what is stored"), 0.1, "0.1"),
    },
    "limits": {
        "upload": Key(values.size_of(RATE_LEAST), None, '"50MB"'),
        "download": Key(values.size_of(RATE_LEAST), None, '"50MB"'),
    },
    "audit": {
        "enabled": Key(values.read_bool, True, "true"),
        "days": Key(values.number_of(0.0001, 3650, "days"), 14.0, "14"),
        "most": Key(values.number_of(0.001, 100, "percent of the stored bytes a day"), 0.1, "0.1"),
    },
    "snapshots": {
        "hourly": Key(values.integer_of(0, SCHEDULED_MAX, "snapshots"), 0, "24"),
        "daily": Key(values.integer_of(0, SCHEDULED_MAX, "snapshots"), 0, "7"),
        "weekly": Key(values.integer_of(0, SCHEDULED_MAX, "snapshots"), 0, "4"),
        "monthly": Key(values.integer_of(0, SCHEDULED_MAX, "snapshots"), 0, "12"),
    },
    "log": {
        "level": Key(values.read_level, "info", '"info"'),
    },
}
"""All tables but the providers', and their keys; every table may be left out."""
