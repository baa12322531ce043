"""What is remembered of names is true, whatever changes beneath and above."""

from __future__ import annotations

import os
import random
import stat

import pytest

from icnfs.crypto.names import NameHash
from icnfs.errors import DamagedError, FsError
from icnfs.format.records import PAIR, RANKS, Entry, Table
from icnfs.state.loader import ROOT_INO
from icnfs.state.names import REMEMBERED, ChangedNames
from icnfs.state.store import Store
from tests.state.local import Local

REG = stat.S_IFREG >> 12


def add(store: Store, name: bytes) -> Entry:
    node = store.new_inode(stat.S_IFREG | 0o644, 0, 0, 0)
    return store.add_name(ROOT_INO, name, node.ino, node.kind)


def test_changed_names_come_in_order_whatever_was_put_and_forgotten_between_listings() -> None:
    chance = random.Random(5)
    changed, model = ChangedNames(), {}
    for _ in range(400):
        cookie = chance.randrange(100) * RANKS
        if chance.random() < 0.3 and cookie in model:
            changed.forget(cookie)
            del model[cookie]
        else:
            entry = chance.choice((None, Entry(cookie, 2, REG, b"n")))
            changed.put(cookie, entry)
            model[cookie] = entry
        if chance.random() < 0.5:
            start = chance.randrange(100 * RANKS)
            assert list(changed.since(start)) == sorted((c, e) for c, e in model.items() if c >= start)


def test_names_of_one_hash_are_kept_apart_in_every_layer(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """All names meet, as names do once in 2**59 times."""
    monkeypatch.setattr(NameHash, "cookie_base", lambda self, parent, name: 1)
    names = [b"%d" % i for i in range(RANKS)]

    async def body(store: Store) -> None:
        for name in names[:8]:
            add(store, name)
        await store.flush()
        for name in names[8:]:
            add(store, name)
        with pytest.raises(FsError):
            store.free_cookie(ROOT_INO, b"one more")
        inodes = {name: store.find(ROOT_INO, name).ino for name in names}  # type: ignore[union-attr]
        assert len(set(inodes.values())) == RANKS
        for gone in (names[2], names[12]):
            store.remove_name(ROOT_INO, store.find(ROOT_INO, gone))  # type: ignore[arg-type]
            assert store.find(ROOT_INO, gone) is None
            assert add(store, gone + b"'").cookie % RANKS == int(gone)
            assert store.find(ROOT_INO, gone) is None
        await store.flush()
        assert sum(store.find(ROOT_INO, name) is not None for name in names) == RANKS - 2
        assert len(list(store.entries(ROOT_INO, 0))) == RANKS

    local.run(body)


def test_a_name_is_seen_when_a_commit_brought_it_and_not_when_one_took_it(local: Local) -> None:
    async def body(store: Store) -> None:
        assert store.find(ROOT_INO, b"f") is None
        entry = add(store, b"f")
        assert store.find(ROOT_INO, b"f") == entry
        await store.flush()
        assert store.find(ROOT_INO, b"f") == entry
        store.remove_name(ROOT_INO, entry)
        assert store.find(ROOT_INO, b"f") is None
        await store.flush()
        assert store.find(ROOT_INO, b"f") is None

    local.run(body)


def test_what_is_remembered_of_names_is_bounded(local: Local) -> None:
    async def body(store: Store) -> None:
        for number in range(3 * REMEMBERED):
            assert store.find(ROOT_INO, b"%d" % number) is None
            assert len(store.beneath._places) <= REMEMBERED

    local.run(body)


def test_a_damaged_name_harms_no_other(local: Local) -> None:
    """Rows that somebody put into LMDB beside a name's: of a neighbouring hash, of no length that a key has."""

    async def body(store: Store) -> None:
        names = store.env.meta_dbs[Table.NAMES]
        first = store.names.cookie_base(ROOT_INO, b"none") * RANKS
        alien = [
            PAIR.pack(ROOT_INO, first + RANKS),
            PAIR.pack(ROOT_INO, first + RANKS - 1) + b"x",
            PAIR.pack(ROOT_INO, first + RANKS)[:-1],
            PAIR.pack(ROOT_INO + 1, 0)[:9],
        ]
        await store.task(lambda writer, _: [writer.reader.meta.put(k, os.urandom(50), db=names) for k in alien])
        assert store.find(ROOT_INO, b"none") is None
        add(store, b"none")
        assert store.find(ROOT_INO, b"none") is not None
        inside = PAIR.pack(ROOT_INO, first + 1)
        await store.task(lambda writer, _: writer.reader.meta.put(inside, b"x" * 50, db=names))
        with pytest.raises(DamagedError):
            store.find(ROOT_INO, b"none")

    local.run(body)
