"""Edits of a TOML: exactly what was asked for, every other byte as it was; one editor at a time, never half a file."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.config import edit, parse
from icnfs.config.edit import EditError, editing, with_provider, with_value, without_provider
from icnfs.errors import ConfigError, NoVolumeError

TEXT = """\
# Our volume.

[volume]
code = "2-of-3"   # any one may be lost

# The north.
[provider.north]
url = "file:///srv/north"
owner = "Nord"
country = "FI"  # since May
parent_country = "FI"
# eur_per_tb_month = 5

[policy]
max_per_owner = 1

# The alps.
[ provider . "alps" ] # high up
url = "file:///srv/alps"
owner = "Alp"
country = "CH"
parent_country = "CH"

[provider.coast]
url = "file:///srv/coast"
owner = "Küste"
country = "FR"
parent_country = "FR"

[provider.spare]
url = "file:///srv/spare"
owner = "Spare"
country = "DE"
parent_country = "DE"
# The end.
"""
NEW: dict[str, edit.Value] = {"url": "file:///srv/new", "owner": 'Ne"w \\ Süd', "country": "DE", "parent_country": "DE"}


def test_a_provider_is_added_at_the_end_and_nothing_else_changes() -> None:
    text = with_provider(TEXT, "new", {**NEW, "eur_per_tb_month": 5.5, "drain": False})
    assert text.startswith(TEXT + "\n[provider.new]\n")
    assert tomllib.loads(text)["provider"]["new"] == {**NEW, "eur_per_tb_month": 5.5, "drain": False}
    with pytest.raises(EditError, match="already"):
        with_provider(text, "new", NEW)


def test_a_key_is_set_behind_the_last_changed_in_place_and_taken_out() -> None:
    text = with_value(TEXT, "north", "drain", True)
    assert text == TEXT.replace('parent_country = "FI"\n', 'parent_country = "FI"\ndrain = true\n')
    assert with_value(text, "north", "drain", None) == TEXT
    assert with_value(text, "north", "drain", False) == text.replace("drain = true", "drain = false")
    assert with_value(TEXT, "north", "country", "SE") == TEXT.replace(
        'country = "FI"  # since May', 'country = "SE"  # since May'
    )
    assert with_value(TEXT, "alps", "drain", None) == TEXT


def test_a_provider_goes_with_its_own_comments_and_leaves_those_of_others() -> None:
    text = without_provider(TEXT, "north")
    assert text == TEXT[: TEXT.index("# The north")] + TEXT[TEXT.index("[policy]") :]
    text = without_provider(TEXT, "alps")
    assert text == TEXT[: TEXT.index("# The alps")] + TEXT[TEXT.index("[provider.coast]") :]
    assert without_provider(TEXT, "spare") == TEXT[: TEXT.index("[provider.spare]")]
    close = TEXT.replace("\n\n", "\n")
    assert without_provider(close, "north") == close.replace(
        close[close.index("# The north") : close.index("# eur_per_tb_month")], ""
    )


@pytest.mark.parametrize(
    "text",
    [
        'provider = { a = { url = "x" } }\n',
        '[provider]\na.url = "x"\n',
        '[provider]\na = { url = "x" }\n',
        'x = """\n[provider.a]\n"""\n[provider]\na = { url = "x" }\n',
        '[provider.a]\nurl = """\n[x]\ny"""\n',
    ],
)
def test_what_only_a_person_can_change_is_refused(text: str) -> None:
    tomllib.loads(text)
    with pytest.raises(EditError, match="by hand"):
        without_provider(text, "a")


def test_what_is_not_there_is_told() -> None:
    for text in ("", "[provider]\n", TEXT):
        with pytest.raises(EditError, match=r"no \[provider.x\]"):
            without_provider(text, "x")
    with pytest.raises(EditError, match="no table"):
        with_provider("provider = 3\n", "x", NEW)
    with pytest.raises(EditError, match="do not print"):
        with_provider(TEXT, "x", {"owner": "a\nb"})


words = st.text(st.sampled_from("ab #=[].'\"\\\n"), max_size=12)
values = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8).filter(str.isprintable),
)
blanks = st.lists(st.sampled_from(["", "# note", "  # [provider.a]", "\t"]), max_size=3)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A TOML of providers a to d in any order, with comments anywhere, and strings that look like headers."""
    lines: list[str] = draw(blanks)
    for name in draw(st.permutations("abcd")):
        if draw(st.booleans()):
            lines += [f"[other-{name}]", 'text = """', *draw(st.sampled_from([["# x"], ["y"], ["'"]])), '"""']
        lines.append(
            draw(st.sampled_from([f"[provider.{name}]", f'[provider."{name}"] # x', f" [ provider.'{name}' ]"]))
        )
        for key in draw(st.lists(st.sampled_from(["url", "owner", "drain", "site"]), unique=True)):
            value = draw(st.sampled_from(['"x"', "true", "'#'", '"[y]"', "5"]))
            lines += [f"{key}{draw(st.sampled_from([' = ', '=']))}{value}{draw(st.sampled_from(['', ' # why']))}"]
            lines += draw(blanks)
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return end.join(lines) + draw(st.sampled_from(["", end]))


@given(texts(), st.sampled_from("abcd"), values)
def test_an_edit_says_what_was_asked_and_keeps_every_other_line(text: str, name: str, value: edit.Value) -> None:
    before = tomllib.loads(text)
    lines = text.splitlines()
    added = with_provider(text, "new", {"owner": value})
    assert tomllib.loads(added) == before | {"provider": before["provider"] | {"new": {"owner": value}}}
    assert added.startswith(text)
    changed = with_value(text, name, "drain", True)
    assert tomllib.loads(changed)["provider"][name] == before["provider"][name] | {"drain": True}
    assert sum(a != b for a, b in zip(lines, changed.splitlines(), strict=False)) <= len(lines)
    assert not [line for line in lines if line not in changed.splitlines() and "drain" not in line]
    removed = without_provider(text, name)
    assert tomllib.loads(removed).get("provider", {}) == {
        other: table for other, table in before["provider"].items() if other != name
    }
    position = 0
    for line in removed.splitlines():
        position = lines.index(line, position) + 1  # in order, none new


@given(words, words)
def test_any_text_is_edited_rightly_or_refused(before: str, after: str) -> None:
    text = f"{before}\n[provider.a]\nurl = 'x'\n{after}\n"
    try:
        wanted = tomllib.loads(text)
        assert tomllib.loads(with_value(text, "a", "drain", True))["provider"]["a"]["drain"] is True
        left = tomllib.loads(without_provider(text, "a"))
        assert "a" not in left.get("provider", {}) and left.keys() | {"provider"} == wanted.keys()
    except (tomllib.TOMLDecodeError, EditError):
        pass


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "demo.toml"
    path.write_text(TEXT)
    path.chmod(0o640)
    return path


def test_a_file_is_replaced_with_mode_owner_and_attributes_and_can_be_put_back(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, 0, 2345)
    os.setxattr(path, "user.note", b"kept")
    old = path.stat()
    with editing("demo", path) as editor:
        config = editor.replace(with_value(editor.text, "spare", "drain", True))
        assert config.providers["spare"].drain
        assert config == parse("demo", path, path.read_bytes())
        new = path.stat()
        assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)
        assert new.st_ino != old.st_ino and new.st_mtime_ns > old.st_mtime_ns
        assert os.getxattr(path, "user.note") == b"kept"
        editor.put_back()
    assert path.read_text() == TEXT
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["demo.toml"]


def test_an_edit_that_changes_nothing_writes_nothing(path: Path) -> None:
    before = path.stat()
    with editing("demo", path) as editor:
        assert not editor.replace(with_value(editor.text, "spare", "drain", None)).providers["spare"].drain
    assert path.stat() == before


def test_a_link_stays_one(path: Path) -> None:
    link = path.parent / "link.toml"
    link.symlink_to("demo.toml")
    with editing("demo", link) as editor:
        editor.replace(without_provider(editor.text, "spare"))
    assert link.is_symlink() and "spare" not in path.read_text()


def test_what_no_volume_can_have_is_not_written(path: Path) -> None:
    with editing("demo", path) as editor, pytest.raises(ConfigError, match="needs 3 providers and there are 2"):
        editor.replace(without_provider(without_provider(editor.text, "spare"), "north"))
    assert path.read_text() == TEXT
    assert os.listdir(path.parent) == ["demo.toml"]


def test_a_toml_that_no_volume_can_have_is_mended(path: Path) -> None:
    path.write_text(without_provider(without_provider(TEXT, "spare"), "north"))
    with editing("demo", path) as editor:
        assert len(editor.replace(with_provider(editor.text, "new", NEW)).providers) == 3


def test_what_cannot_be_edited_is_one_error_with_the_path(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"demo.toml: it has no \[provider.x\]"), editing("demo", path) as editor:
        without_provider(editor.text, "x")
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"), editing("demo", path):
        pass
    path.unlink()
    with pytest.raises(NoVolumeError), editing("demo", path):
        pass


def test_no_edit_is_lost_among_many(path: Path) -> None:
    def add(number: int) -> None:
        with editing("demo", path) as editor:
            values = {**NEW, "url": f"file:///srv/{number}"}
            editor.replace(with_provider(editor.text, f"new-{number}", values))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(parse("demo", path, path.read_bytes()).providers) == 4 + 12


def test_nobody_edits_between_an_edit_and_its_putting_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "WAITING", 0.0)
    with editing("demo", path) as editor:
        editor.replace(with_value(editor.text, "spare", "drain", True))
        with pytest.raises(ConfigError, match="another icnfs"), editing("demo", path):
            pass
        editor.put_back()
    with editing("demo", path):
        pass


def test_the_lock_of_a_file_that_was_replaced_meanwhile_is_not_enough(path: Path) -> None:
    """The waiter gets the old file's lock first, sees that it is not the file any more, and takes the new one's."""
    seen: list[str] = []

    def wait() -> None:
        with editing("demo", path) as editor:
            seen.append(editor.text)

    with open(path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiter = threading.Thread(target=wait)
        waiter.start()
        other = path.with_suffix(".new")
        other.write_text(TEXT + "# newer\n")
        other.rename(path)
    waiter.join()
    assert seen == [TEXT + "# newer\n"]
