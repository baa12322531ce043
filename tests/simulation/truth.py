"""What really lies at the providers, read with the volume's keys and none of its caution.

It opens heads and runs, and looks at every share that a head names where it is said to lie.  It asks nobody: it looks
into the vaults, so it sees what a provider that lies would not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from icnfs.config import VolumeConfig
from icnfs.crypto.keys import MasterKey
from icnfs.crypto.sealing import RecordSealer, Salts
from icnfs.erasure import hashtree
from icnfs.erasure.code import Code
from icnfs.errors import FormatError, IcnfsError
from icnfs.format import head as head_format
from icnfs.format import segment as segment_format
from icnfs.format import share as share_format
from icnfs.format.head import PREFIX, Head, RunInfo
from icnfs.format.records import U32, Table
from icnfs.format.run import RunReader
from icnfs.format.segment import SegmentInfo
from icnfs.state.opening import SALT_USE
from icnfs.volume.network import Network
from tests.simulation.history import Tree

Number = tuple[int, int]


@dataclass(eq=False)
class Published:
    """A head that some machine began to put."""

    head: Head
    by: str
    trees: list[Tree]
    """What a recovery from it may show."""
    holders: set[str] = field(default_factory=set)
    """Providers at which a copy ever landed."""
    durable_at: float | None = None
    line: frozenset[tuple[Number, bytes]] = frozenset()
    """The heads that it goes back to, itself included."""

    @property
    def key(self) -> tuple[Number, bytes]:
        return self.head.number, self.head.writer


class Truth:
    """Of one volume; `vaults` are all providers' objects by name."""

    def __init__(self, config: VolumeConfig, vaults: Mapping[str, Callable[[], Mapping[str, bytes]]]) -> None:
        self._config = config
        self._vaults = vaults
        self._network: Network | None = None
        self._good: dict[str, tuple[bytes, bytes, bytes | None]] = {}
        self._rows: dict[bytes, list[tuple[int, bytes, bytes | None]]] = {}

    def learn(self, master: MasterKey) -> None:
        """The volume's key."""
        self._network = Network.of(self._config, master, None)  # type: ignore[arg-type]

    @property
    def network(self) -> Network:
        assert self._network is not None
        return self._network

    # --- heads --------------------------------------------------------------------------------------------------------

    def open_head(self, provider: str, name: str, raw: bytes) -> Head | None:
        """The head, or None where this is none."""
        parsed = head_format.parse_name(name) if name.startswith(PREFIX) else None
        if parsed is None:
            return None
        try:
            head = head_format.unseal(raw, parsed, self.network.token(provider), self.network.open_head)
        except IcnfsError:
            return None
        return head if self.network.names.writer_tag(provider, head.writer) == parsed.tag else None

    def holds_head(self, provider: str, head: Head) -> bool:
        name = str(
            head_format.HeadName(head.epoch, head.sequence, self.network.names.writer_tag(provider, head.writer))
        )
        raw = self._vaults[provider]().get(name)
        return raw is not None and self.open_head(provider, name, raw) is not None

    # --- shares -------------------------------------------------------------------------------------------------------

    def payload(self, segment: SegmentInfo, index: int) -> bytes | None:
        """The payload of the share that lies where the segment says, None where none does or it is not the one."""
        share = segment.shares[index]
        vault = self._vaults.get(share.provider)
        name = self.network.share_name(segment.id, index, share.provider)
        raw = vault().get(name) if vault is not None else None
        if raw is None:
            return None
        known = self._good.get(name)
        if known is not None and known[0] is raw and known[1] == share.root:
            return known[2]
        self._good[name] = raw, share.root, (found := _checked(raw, segment.share_len, share.root))
        return found

    def good(self, segment: SegmentInfo) -> list[int]:
        """Indexes of the shares that lie, unharmed, where the segment says, or where it says that one is missing: such
        are asked for at the very end."""
        return [i for i in range(segment.n) if self.payload(segment, i) is not None]

    def owners(self, segment: SegmentInfo, *, without: Collection[str] = ()) -> int:
        """Distinct owners of good shares."""
        holders = (segment.shares[i].provider for i in self.good(segment))
        return len({self._config.providers[name].owner for name in holders if name not in without})

    # --- contents -----------------------------------------------------------------------------------------------------

    def segments(self, head: Head) -> list[SegmentInfo] | None:
        """Every segment that a head names: the parts of its runs, and what their records say; None where a run cannot
        be had."""
        rows: dict[tuple[int, bytes], bytes | None] = {}
        for run in head.runs:
            found = self._run(run)
            if found is None:
                return None
            rows.update(((table, key), value) for table, key, value in found)
        salts = Salts()
        records = RecordSealer(self.network.master, head.volume, salts)
        for key, sealed in _of(rows, Table.SALTS):
            salts.add(U32.unpack(key)[0], records.open_fixed(SALT_USE, key, sealed))
        segments = [
            segment_format.decode(records.open(Table.SEGMENTS, key, sealed))
            for key, sealed in _of(rows, Table.SEGMENTS)
        ]
        return [*head.segments(), *segments]

    def _run(self, run: RunInfo) -> list[tuple[int, bytes, bytes | None]] | None:
        if run.id not in self._rows:
            reader = RunReader(self.network.open_run, run.id)
            rows: list[tuple[int, bytes, bytes | None]] = []
            for part in run.segments():
                payload = self._rebuilt(part)
                if payload is None:
                    return None
                rows += reader.feed(payload[: part.size])
            reader.close()
            self._rows[run.id] = rows
        elif any(len(self.good(part)) < part.k for part in run.segments()):
            return None
        return self._rows[run.id]

    def _rebuilt(self, segment: SegmentInfo) -> bytes | None:
        have = {index: self.payload(segment, index) for index in range(segment.n)}
        there = {index: payload for index, payload in have.items() if payload is not None}
        if len(there) < segment.k:
            return None
        missing = [index for index in range(segment.k) if index not in there]
        made = Code(segment.k, segment.n).rebuild(there, missing) if missing else {}
        return b"".join({**there, **made}[index] for index in range(segment.k))


def _checked(raw: bytes, share_len: int, root: bytes) -> bytes | None:
    try:
        share = share_format.parse(raw)
        hashtree.verify_leaves(share.leaf_hashes, share_len, root)
        hashtree.verify_data(share.leaf_hashes, share_len, 0, share.payload)
    except FormatError:
        return None
    return bytes(share.payload)


def _of(rows: Mapping[tuple[int, bytes], bytes | None], table: Table) -> Iterator[tuple[bytes, bytes]]:
    for (number, key), sealed in rows.items():
        if number == table and sealed is not None:
            yield key, sealed
