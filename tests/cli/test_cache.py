"""``qeff cache``: listing, checking and removing what is in the store."""

from __future__ import annotations

import io

import pytest

from qeff_framework.artifacts import Store, cache_key


@pytest.fixture
def home(tmp_path):
    """A store with three small artifacts."""
    home = tmp_path / "store"
    for kind, label in (("exports", "alpha"), ("exports", "beta"), ("compiled", "ort_sim-alpha")):
        parts = {"label": label}
        Store(home).get_or_build(
            kind, label, cache_key(parts), parts, lambda path: (path / "data.bin").write_bytes(b"x" * 2500) and None
        )
    return home


@pytest.fixture
def cache(qeff, home):
    return lambda *argv: qeff("cache", *argv, home=home)


class Terminal(io.StringIO):
    """Standard input with somebody who answers."""

    def isatty(self):
        return True


def names(document, key="artifacts"):
    return [f"{item['kind']}/{item['label']}" for item in document[key]]


def test_ls(cache, home):
    document, text = cache("ls", "--json").json, cache("ls").out

    assert document["root"] == str(home)
    assert names(document) == ["compiled/ort_sim-alpha", "exports/alpha", "exports/beta"]
    assert all(item["intact"] for item in document["artifacts"])
    assert text.splitlines()[-1].startswith("3 artifacts, ")
    assert "ok" in text.splitlines()[1]


def test_empty_store(qeff):
    assert "is empty" in qeff("cache", "ls").out
    assert qeff("cache", "ls", "--json").json["artifacts"] == []
    assert qeff("cache", "verify").code == 0
    assert qeff("cache", "rm", "--all", "--yes", "--json").json["removed"] == []


def test_verify_finds_the_damaged_one(cache, home):
    assert cache("verify").code == 0
    damaged = next(home.glob("exports/alpha-*/data.bin"))
    damaged.write_bytes(b"y" * 2500)

    result = cache("verify", "--json")

    assert result.code == 1
    problems = {item["label"]: item["problems"] for item in result.json["artifacts"]}
    assert [item["kind"] for item in problems["alpha"]] == ["altered"]
    assert (problems["beta"], problems["ort_sim-alpha"]) == ([], [])
    assert f"qeff cache rm {damaged.parent.name}" in result.err
    assert cache("verify", "beta").code == 0


def test_rm_removes_what_is_named(cache):
    result = cache("rm", "alpha", "ort_sim-alpha", "--yes", "--json")

    assert result.code == 0
    assert names(result.json, "removed") == ["exports/alpha", "compiled/ort_sim-alpha"]
    assert result.json["freed_bytes"] > 5000
    assert names(cache("ls", "--json").json) == ["exports/beta"]


def test_rm_with_one_wrong_selector_removes_nothing(cache):
    result = cache("rm", "alpha", "gamma", "--yes")

    assert result.code == 1
    assert "'gamma'" in result.err
    assert len(cache("ls", "--json").json["artifacts"]) == 3


def test_rm_all(cache):
    assert cache("rm", "--all", "--yes").code == 0
    assert cache("ls", "--json").json["artifacts"] == []


def test_rm_asks_on_a_terminal(cache, monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    refused = cache("rm", "alpha")
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    confirmed = cache("rm", "alpha")

    assert (refused.code, confirmed.code) == (1, 0)
    assert "exports/alpha-" in refused.err
    assert names(cache("ls", "--json").json) == ["compiled/ort_sim-alpha", "exports/beta"]


def test_rm_without_a_terminal_needs_yes(cache, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))

    result = cache("rm", "alpha")

    assert result.code == 2
    assert "--yes" in result.err
    assert len(cache("ls", "--json").json["artifacts"]) == 3
