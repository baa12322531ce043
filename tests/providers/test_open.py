"""Urls: what opens, and what is refused with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from icnfs.providers.directory import DirectoryProvider
from icnfs.providers.faults import FaultPlan, Faults
from icnfs.providers.open import ProviderSpec, open_provider, parse_url, without_secrets


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/srv/a", "/srv/a"),
        ("/srv//a/", "/srv/a"),
        ("/srv/a?b#c%20", "/srv/a?b#c%20"),
        ("//srv/a", "/srv/a"),
        ("file:///srv/a", "/srv/a"),
        ("file://localhost/srv/a/", "/srv/a"),
        ("file:/srv/a", "/srv/a"),
        ("FILE:///srv/a%20b", "/srv/a b"),
        ("/srv/ä", "/srv/ä"),
    ],
)
def test_url_of_a_directory(url: str, path: str) -> None:
    assert parse_url(url).path == Path(path)
    assert parse_url(url).identity == f"file:{path}"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "no known kind"),
        ("srv/a", "no known kind"),
        ("ftp://host/a", "no known kind; write file:///PATH"),
        ("memory:", "no known kind"),
        ("file://srv/a", "names a host"),
        ("file:a", "no absolute path"),
        ("file:", "no absolute path"),
        ("/srv/../etc", '".."'),
        ("file:///srv/%2e%2e/etc", '".."'),
        ("file:///srv/%00", "NUL"),
        ("/srv/\0", "control character"),
        ("/srv/\n", "control character"),
        ("file:///srv/a#b", "%23"),
        ("file:///srv/a?hnag=1", "unknown"),
        ("file:///srv/a?hang=1&hang=1", "twice"),
        ("file:///srv/a?hang=2", "out of range"),
        ("file:///srv/a?hang=x", "hang"),
        ("file:///srv/a?seed=1.5", "seed"),
        ("file://[", "no url"),
        ("file://user:secret@host/a", "credentials = FILE"),
        ("https://key:secret@host", "credentials = FILE"),
        ("file:///srv/a?secret_key=x", "credentials = FILE"),
        ("file:///srv/a?7f3a", "has the query '...'"),
    ],
)
def test_url_that_opens_nothing_says_why(url: str, what: str) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        parse_url(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://AKIA:SECRET@bucket/x?region=eu", "s3://...@bucket/x?region=eu"),
        ("s3://AKIA:SEC/R?ET@bucket", "s3://...@bucket"),
        ("s3://AKIA:SECRET%40bucket", "s3://...@bucket"),
        ("s3://bucket?endpoint=https://k:SECRET@host&region=eu", "s3://bucket?endpoint=...&region=eu"),
        ("s3://bucket?endpoint=https%3A%2F%2Fk%3ASECRET%40host", "s3://...@host"),
        (
            "s3://bucket?endpoint=https://host&secret_key=SECRET&hang=x",
            "s3://bucket?endpoint=https://host&secret_key=...&hang=x",
        ),
        ("s3://bucket?SECRET", "s3://bucket?..."),
        ("s3://bucket?region=eu#SECRET", "s3://bucket?region=eu#..."),
        ("https://KEY:SECRET@host/x", "https://...@host/x"),
        ("file://user:SECRET@host/x", "file://...@host/x"),
        ("postgres://a:SECRET@h", "postgres://...@h"),
        ("KEY:SECRET@host/bucket", "...@host/bucket"),
        ("file:///srv/a?hnag=1", "file:///srv/a?hnag=..."),
        ("file:///srv/a", "file:///srv/a"),
    ],
)
def test_what_may_be_secret_in_a_url_is_not_quoted(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


@given(st.text(max_size=40) | st.text("file:/?#%&=.0aft[]@", max_size=30).map(lambda text: f"file:///{text}"))
def test_parser_is_total(url: str) -> None:
    without_secrets(url)
    try:
        place = parse_url(url)
    except ValueError:
        return
    assert place.path.is_absolute() and ".." not in place.path.parts


def test_directory_is_opened_and_only_created_when_asked(tmp_path: Path) -> None:
    provider = open_provider(ProviderSpec("alpha", f"file://{tmp_path}/new", create=True))
    assert isinstance(provider, DirectoryProvider) and provider.name == "alpha"
    assert not (tmp_path / "new").exists()
    trio.run(provider.put, "a", b"")
    assert (tmp_path / "new").is_dir()


def test_query_switches_faults_on(tmp_path: Path) -> None:
    provider = open_provider(ProviderSpec("alpha", f"file://{tmp_path}?latency=0.5&seed=7"))
    assert isinstance(provider, Faults)
    assert provider.plan == FaultPlan(latency=0.5, seed=7)
