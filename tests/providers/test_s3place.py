"""Urls of buckets: what they mean, what is refused with a remedy, and when two of them are one place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.config import parse
from icnfs.errors import ConfigError
from icnfs.providers.faults import FaultPlan
from icnfs.providers.open import ProviderSpec, parse_url

E = "endpoint=https://s3.example"


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        (f"s3://bucket?{E}", "https://s3.example:443:/bucket"),
        (f"s3://bucket/?{E}/&region=eu-1", "https://s3.example:443:/bucket"),
        (f"S3://bucket/a/b/?{E}:443", "https://s3.example:443:/bucket/a/b"),
        (f"s3://bucket/a/b?{E}&style=virtual&ca=/etc/x.pem", "https://s3.example:443:/bucket/a/b"),
        ("s3://bucket?region=eu-1", "https://s3.eu-1.amazonaws.com:443:/bucket"),
        ("s3://bucket?endpoint=http://127.0.0.1:8333", "http://127.0.0.1:8333:/bucket"),
        ("s3://bucket?endpoint=http://[::1]:8333", "http://[::1]:8333:/bucket"),
        ("s3://bucket?endpoint=http://localhost", "http://localhost:80:/bucket"),
        ("s3://bucket?endpoint=http://10.1.2.3", "http://10.1.2.3:80:/bucket"),
    ],
)
def test_url_of_a_bucket(url: str, identity: str) -> None:
    assert parse_url(url).identity == identity


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("s3://", "names no bucket"),
        ("s3:///bucket", "names no bucket"),
        (f"s3://Bucket?{E}", "names no bucket"),
        (f"s3://a..b?{E}", "names no bucket"),
        (f"s3://key:secret@bucket?{E}", "credentials = FILE"),
        ("s3://bucket?endpoint=https://key:secret@s3.example", "credentials = FILE"),
        (f"s3://bucket?{E}&secret_key=x", "credentials = FILE"),
        (f"s3://bucket/a//b?{E}", "prefix"),
        (f"s3://bucket/../b?{E}", "prefix"),
        (f"s3://bucket/a%2Fb?{E}", "prefix"),
        (f"s3://bucket/{'a' * 201}?{E}", "prefix"),
        ("s3://bucket", "neither endpoint nor region"),
        ("s3://bucket?endpoint=s3.example", "than a host"),
        ("s3://bucket?endpoint=https://s3.example/path", "than a host"),
        ("s3://bucket?endpoint=ftp://s3.example", "than a host"),
        ("s3://bucket?endpoint=https://", "without a host"),
        ("s3://bucket?endpoint=https://s3.example:x", "no url"),
        ("s3://bucket?endpoint=http://localhost:0", "port 0"),
        ("s3://bucket?endpoint=https://-s3.example", "without a host"),
        ("s3://bucket?endpoint=http://s3.example", "unprotected"),
        ("s3://bucket?endpoint=http://8.8.8.8", "unprotected"),
        (f"s3://bucket?{E}&{E}", "twice"),
        (f"s3://bucket?{E}&region=Eu", "no region"),
        (f"s3://bucket?{E}&style=odd", "style"),
        (f"s3://a.b.c?{E}&style=virtual", "style=path"),
        (f"s3://bucket?{E}&ca=x.pem", "no absolute path"),
        ("s3://bucket?endpoint=http://127.0.0.1&ca=/x", "no TLS"),
        (f"s3://bucket?{E}&odd=1", "unknown; there are endpoint"),
        (f"s3://bucket?{E}&hang=2", "out of range"),
        (f"s3://bucket?{E}#x", '"#"'),
    ],
)
def test_url_of_no_bucket_says_why(url: str, what: str) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        parse_url(url)
    assert "\n" not in str(caught.value) and "secret@" not in str(caught.value)


@given(st.text("s3:/?#%&=.abx[]@-endpoit", max_size=40).map(lambda text: f"s3://bucket?endpoint=https://{text}"))
def test_parser_is_total(url: str) -> None:
    try:
        place = parse_url(url)
    except ValueError:
        return
    assert place.s3 is not None and place.s3.secure and place.path == Path("/bucket")


def test_query_may_switch_faults_on() -> None:
    assert parse_url(f"s3://bucket?{E}&latency=0.5&seed=7").faults == FaultPlan(latency=0.5, seed=7)


def volume(*tables: str) -> bytes:
    lines = ["[volume]", 'code = "2-of-3"']
    for i, table in enumerate(tables):
        lines += [f"[provider.p{i}]", table, f'owner = "o{i}"', 'parent_country = "DE"', 'country = "DE"']
    return "\n".join(lines).encode()


def table(prefix: str, more: str = 'credentials = "k"', endpoint: str = E) -> str:
    return f'url = "s3://bucket{prefix}?{endpoint}"\n{more}'


def test_configuration_names_where_the_keys_are() -> None:
    data = volume(table("/a"), table("/b", 'profile = "north"'), table("/c", 'credential = "icnfs-s3"'))
    specs = parse("demo", Path("/etc/icnfs/demo.toml"), data).specs()
    assert specs[0] == ProviderSpec("p0", f"s3://bucket/a?{E}", credentials="/etc/icnfs/k")
    assert (specs[1].profile, specs[2].credential) == ("north", "icnfs-s3")


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ((table("/a"), table("/b"), table("/a")), "p2.url: the same place as provider.p0"),
        ((table("/a"), table("/b"), table("/a", endpoint=f"{E}:443&style=virtual")), "p2.url: the same place"),
        ((table("/a"), table("/b"), table("/a/c")), "p2.url: lies within, or around, provider.p0"),
        ((table("/a"), table("/b"), table("")), "p2.url: lies within, or around"),
        ((table("/a"), table("/b"), table("/c", "")), "provider.p2: a bucket needs keys; add a line such as"),
        (
            (table("/a"), table("/b"), table("/c", 'credentials = "k"\nprofile = "x"')),
            "provider.p2.profile: its keys are in credentials already",
        ),
        ((table("/a"), table("/b"), 'url = "/srv"\nprofile = "x"'), "a directory needs no keys; remove it"),
        ((table("/a"), table("/b"), table("/c", 'profile = "\\u0001"')), "names no profile"),
    ],
)
def test_configuration_that_would_mix_buckets_or_has_no_keys_is_refused(tables: tuple[str, ...], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse("demo", Path("/etc/icnfs/demo.toml"), volume(*tables))


def test_same_path_elsewhere_is_another_place() -> None:
    parse("demo", Path("/d.toml"), volume(table("/a"), table("/a", endpoint=f"{E}:444"), 'url = "/bucket/a"'))
