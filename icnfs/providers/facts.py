"""What is known of a provider before it is asked anything: the facts of its table in the TOML.

Placement chooses by them and `status` shows them; no provider's code reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProviderFacts:
    """One `[provider.NAME]` of icnfs.toml(5).

    Countries are ISO 3166-1 alpha-2 codes; prices are EUR, >= 0, per 10**12 bytes.
    """

    name: str
    url: str
    owner: str
    parent_country: str
    """Where the owner's ultimate parent sits: whose law can reach it."""
    country: str
    """Where the bytes are."""
    site: str
    eur_per_tb_month: float = 0.0
    eur_per_tb_read: float = 0.0
    credentials: Path | None = None
    profile: str | None = None
    credential: str | None = None
    """Where its keys are, never what: at most one is not None."""
    upload: int | None = None
    download: int | None = None
    """Bytes per second that may be sent there and fetched from there; None for no bound."""
    drain: bool = False
    """Whether all of the volume's shares are to leave it."""
    retention_days: float | None = None
    """For so long the bucket itself keeps whatever is stored there, whoever asks to delete it."""
