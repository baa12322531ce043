"""Keys come and go, providers' copies cannot be matched, and only the right secret opens the volume."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.crypto.keys import MasterKey, Secret
from icnfs.crypto.slots import Costs, Slot, SlotKind, decode_slot, make_slot, new_recovery_key
from icnfs.errors import DamagedError, FormatError, NoVolumeError, SecretError, UsageError
from icnfs.volume import keyring as keyrings
from icnfs.volume.keyring import Keyring, Secrets, encode_entry, opened, unlock

CHEAP = Costs(64, 1, 1)
MASTER = MasterKey.random()
PROVIDERS = ("one", "two", "three")


def ring() -> tuple[Keyring, Secret, Secret]:
    keyring, recovery, passphrase = Keyring(), new_recovery_key(), Secret(b"open sesame")
    keyring.add(SlotKind.RECOVERY, recovery, MASTER, label="recovery", providers=PROVIDERS)
    keyring.add(SlotKind.PASSPHRASE, passphrase, MASTER, label="me", costs=CHEAP)
    return keyring, recovery, passphrase


def test_either_secret_opens_and_a_wrong_one_does_not() -> None:
    keyring, recovery, passphrase = ring()
    assert unlock(keyring.slots(), Secrets(recovery=recovery)) == MASTER
    assert unlock(keyring.slots(), Secrets(passphrase=passphrase)) == MASTER
    for wrong in (Secrets(passphrase=Secret(b"x")), Secrets(recovery=new_recovery_key()), Secrets()):
        with pytest.raises(SecretError):
            unlock(keyring.slots(), wrong)
    with pytest.raises(SecretError, match="kind"):
        unlock(keyring.slots(), Secrets(keyfile=Secret.random()))


def test_a_passphrase_stays_local_and_no_two_copies_share_a_byte_run() -> None:
    keyring, recovery, _ = ring()
    by_provider = {p: keyring.undelivered(p) for p in PROVIDERS}
    assert all([decode_slot(c.slot).kind for c in copies] == [SlotKind.RECOVERY] for copies in by_provider.values())
    slots = [decode_slot(copies[0].slot) for copies in by_provider.values()]
    for field in ("id", "salt", "sealed"):
        assert len({getattr(slot, field) for slot in slots}) == 3
    assert len({copies[0].name for copies in by_provider.values()}) == 3
    assert all(unlock([slot], Secrets(recovery=recovery)) == MASTER for slot in slots)


def test_a_passphrase_opens_however_its_accents_were_typed() -> None:
    composed, apart = Secret("Zürich passé".encode()), Secret(normalize("NFD", "Zürich passé").encode())
    assert composed != apart
    for kept, typed in ((composed, apart), (apart, apart), (composed, composed)):
        slot = make_slot("passphrase", kept, MASTER, label="", costs=CHEAP)
        assert unlock([slot], Secrets(passphrase=typed)) == MASTER
    bytes_alone = Secret(b"caf\xe9")
    assert unlock([make_slot("passphrase", bytes_alone, MASTER, label="", costs=CHEAP)], Secrets(bytes_alone)) == MASTER
    keyfile = Secret(apart.reveal() * 3)
    with pytest.raises(SecretError, match="does not open"):
        unlock([make_slot("keyfile", keyfile.composed(), MASTER, label="")], Secrets(keyfile=keyfile))


def test_copies_are_owed_until_delivered_and_again_once_lost() -> None:
    keyring, _, _ = ring()
    (copy,) = keyring.undelivered("one")
    keyring.delivered("one", copy.name)
    assert keyring.undelivered("one") == []
    assert len(keyring.undelivered("two")) == 1
    keyring.lost("one")
    assert keyring.undelivered("one") == [copy]


def test_the_copy_of_who_left_goes_to_who_has_none_and_is_deleted_should_it_return() -> None:
    keyring, _, _ = ring()
    entry = next(e for e in keyring.entries() if e.kind == "recovery")
    left, named = entry.copies["one"], ("two", "three", "new", "newer")
    wanting = keyring.wanting(("two", "new", "newer"), named, lambda have: len(have) >= 3)
    assert wanting == [(entry, "new")], "one has left, and three are enough"
    keyring.hand_out(wanting, named)
    assert keyring.undelivered("new")[0].slot == left.slot
    assert "one" not in entry.copies
    assert keyring.undeleted("one") == [left.name]
    assert not keyring.wanting(("two", "new", "newer"), named, lambda have: len(have) >= 3)


def test_a_copy_of_anothers_is_handed_out_only_while_too_few_have_one() -> None:
    keyring, recovery, _ = ring()
    entry = next(e for e in keyring.entries() if e.kind == "recovery")
    named = (*PROVIDERS, "new", "newer")
    assert not keyring.wanting(named, named, lambda have: len(have) >= 3)
    wanting = keyring.wanting(named, named, lambda have: len(have) >= 4)
    assert wanting == [(entry, "new")], "and none of the passphrase, which stays local"
    keyring.hand_out(wanting, named)
    (copy,) = keyring.undelivered("new")
    assert unlock([decode_slot(copy.slot)], Secrets(recovery=recovery)) == MASTER
    assert copy.name not in [entry.copies[name].name for name in PROVIDERS]


def test_what_a_drained_provider_had_is_kept_until_somebody_needs_it() -> None:
    keyring, _, _ = ring()
    entry = next(e for e in keyring.entries() if e.kind == "recovery")
    for name in PROVIDERS:
        keyring.bequeath(name, ())
    assert len(entry.copies) == 3, "a key that no home has yet still goes to providers"
    wanting = keyring.wanting(("new",), ("new",), bool)
    keyring.hand_out(wanting, ("new",))
    assert len(keyring.undelivered("new")) == 1


def test_a_removed_key_is_deleted_where_it_was_and_no_longer_opens() -> None:
    keyring, recovery, _ = ring()
    entry = next(e for e in keyring.entries() if e.kind == "recovery")
    keyring.remove(entry.id)
    assert keyring.undeleted("two") == [entry.copies["two"].name]
    keyring.deleted("two", entry.copies["two"].name)
    assert keyring.undeleted("two") == []
    with pytest.raises(SecretError):
        unlock(keyring.slots(), Secrets(recovery=recovery))


def test_the_last_key_and_unknown_keys_cannot_be_removed() -> None:
    keyring, _, _ = ring()
    first, last = keyring.entries()
    with pytest.raises(UsageError, match="no key"):
        keyring.remove("ffffffff")
    keyring.remove(first.id)
    with pytest.raises(UsageError, match="last"):
        keyring.remove(last.id)


def test_it_is_kept_owner_only_and_comes_back(tmp_path: Path) -> None:
    keyring, _, passphrase = ring()
    keyring.remove(keyring.add(SlotKind.KEYFILE, Secret.random(), MASTER, label="k", providers=PROVIDERS).id)
    keyring.save(tmp_path)
    assert (tmp_path / "slots").stat().st_mode & 0o777 == 0o600
    again = Keyring.load(tmp_path)
    assert again.encode() == keyring.encode()
    assert unlock(again.slots(), Secrets(passphrase=passphrase)) == MASTER
    with pytest.raises(NoVolumeError):
        Keyring.load(tmp_path / "elsewhere")


def harm(path: Path, part: bytes) -> None:
    raw = path.read_bytes()
    at = raw.index(part) + len(part) // 2
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])


def test_one_damaged_slot_leaves_the_others_to_open_and_comes_back_from_the_last_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keyring, recovery, passphrase = ring()
    published = keyring.encode()
    keyring.save(tmp_path)
    for entry in keyring.entries()[:1]:
        harm(tmp_path / "slots", entry.slot)
    again = Keyring.load(tmp_path)
    assert f"{tmp_path / 'slots'}: 1 of its 2 keys are damaged" in caplog.text
    assert "icnfs key add" in caplog.text
    assert unlock(again.slots(), Secrets(passphrase=passphrase)) == MASTER
    again.save()
    once_more = Keyring.load(tmp_path)
    once_more.mend(published)
    for mended in (once_more, Keyring.load(tmp_path)):
        assert unlock(mended.slots(), Secrets(recovery=recovery)) == MASTER


def test_only_a_keyring_without_any_whole_slot_is_refused(tmp_path: Path) -> None:
    keyring, _, _ = ring()
    keyring.save(tmp_path)
    for entry in keyring.entries():
        harm(tmp_path / "slots", entry.slot)
    with pytest.raises(DamagedError, match=r"slots: every key in it is damaged; .*icnfs recover"):
        Keyring.load(tmp_path)


def test_a_key_wrapped_elsewhere_is_adopted_once() -> None:
    keyring, _, _ = ring()
    keyfile = Secret.random()
    entry = Keyring.decode(keyring.encode()).add(SlotKind.KEYFILE, keyfile, MASTER, label="k", providers=PROVIDERS)
    assert keyring.adopt(encode_entry(entry)) == entry
    assert unlock(keyring.slots(), Secrets(keyfile=keyfile)) == MASTER
    assert len(keyring.undelivered("one")) == 2
    for bad in (encode_entry(entry), b"junk", encode_entry(msgspec.structs.replace(entry, id="../x"))):
        with pytest.raises((UsageError, FormatError)):
            keyring.adopt(bad)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_keyring_or_one_error(junk: bytes) -> None:
    try:
        Keyring.decode(junk)
    except FormatError:
        pass


@given(st.integers(0, 10**4), st.binary(min_size=1, max_size=3))
def test_any_damage_gives_a_keyring_or_one_error(at: int, junk: bytes) -> None:
    raw = RAW
    at %= len(raw)
    try:
        Keyring.decode(raw[:at] + junk + raw[at + len(junk) :])
    except FormatError:
        pass


RAW = ring()[0].encode()


def test_cheap_slots_are_tried_before_those_that_cost_much(monkeypatch: pytest.MonkeyPatch) -> None:
    passphrase = Secret(b"correct horse")
    costs = [Costs(64 * 2**i, 1 + i, 1) for i in (3, 0, 2, 1)]
    slots = [make_slot("passphrase", passphrase, MASTER, label="", costs=each) for each in costs]
    tried: list[Costs | None] = []
    open_slot = keyrings.open_slot

    def spy(slot: Slot, secret: Secret) -> MasterKey:
        tried.append(slot.costs)
        return open_slot(slot, secret)

    monkeypatch.setattr(keyrings, "open_slot", spy)
    assert unlock(slots, Secrets(passphrase=passphrase)) == MASTER
    assert tried == [costs[1]]
    assert list(opened(slots, Secrets(passphrase=passphrase))) == [MASTER] * 4
    assert tried[1:] == [costs[i] for i in (1, 3, 2, 0)]
