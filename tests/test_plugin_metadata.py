from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from qeff_framework.errors import ExtensionError
from qeff_framework.plugin_metadata import entry_points as found_entry_points
from qeff_framework.plugin_metadata import printable
from qeff_framework.registry import Registry
from tests.fake_distributions import echo_backend, write_distribution

GROUP = "qeff_framework.backends.v1"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    echo_backend(tmp_path, "good")
    return tmp_path


def stranger(
    site: Path, metadata: bytes | None, entry_points: bytes = b"[%s]\nodd = odd:Odd\n" % GROUP.encode()
) -> None:
    info = site / "odd-1.0.dist-info"
    info.mkdir()
    if metadata is not None:
        (info / "METADATA").write_bytes(metadata)
    (info / "entry_points.txt").write_bytes(entry_points)
    importlib.invalidate_caches()


def test_packages_are_looked_through_once_until_one_is_added(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib_metadata

    scans = []
    listed = importlib_metadata.distributions
    monkeypatch.setattr(importlib_metadata, "distributions", lambda: scans.append(1) or listed())
    names = [{entry.name for entry in found_entry_points(group)} for group in (None, GROUP, GROUP)]
    assert len(scans) == 1
    assert names[1] == names[2] >= {"good"}
    stranger(site, b"Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    assert {entry.name for entry in found_entry_points(GROUP)} == {*names[1], "odd"}


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        b"",
        b"Metadata-Version: 2.1\nName: odd\n",
        b"Metadata-Version: 2.1\nVersion: 1.0\n",
        b"Metadata-Version: 2.1\nName: odd\nVersion: 1.0\nSummary: \xff\xfe\x1b[31m\n",
    ],
    ids=["no file", "empty", "no version", "no name", "no text"],
)
def test_a_package_that_says_little_is_listed_and_breaks_nothing(site: Path, metadata: bytes | None) -> None:
    stranger(site, metadata)
    found = {backend.name: backend for backend in Registry().installed()}
    assert found["good"].status == found["odd"].status == "available"
    assert found["odd"].summary.isprintable()
    assert Registry().descriptor("good").name == "good"


@pytest.mark.parametrize("value", [b"odd = not a value", b"odd = odd", b"odd", b"\xff\xfe = odd:Odd"])
def test_an_entry_point_of_another_form_breaks_nothing(site: Path, value: bytes) -> None:
    stranger(site, b"Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n", b"[%s]\n%s\n" % (GROUP.encode(), value))
    assert "good" in {backend.name for backend in Registry().installed()}
    assert Registry().descriptor("good").name == "good"


def test_texts_of_strangers_are_one_printable_line() -> None:
    assert printable("a\nb\t\x1b[31mred\u202e") == "a b \N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"
    assert len(printable("x" * 10_000)) <= 300


def test_the_empty_folder_of_an_old_version_hides_no_package(site: Path) -> None:
    (site / "qeff_good_backend-0.1.dist-info").mkdir()
    assert [backend.status for backend in Registry().installed() if backend.name == "good"] == ["available"]


def test_a_package_that_is_installed_twice_counts_once(site: Path, tmp_path_factory, monkeypatch) -> None:
    other = tmp_path_factory.mktemp("other")
    echo_backend(other, "good")
    stranger(other, b"Name: odd\n", b"no section")
    monkeypatch.syspath_prepend(str(other))
    assert [backend.status for backend in Registry().installed() if backend.name == "good"] == ["available"]


def test_a_finder_of_a_stranger_that_fails_breaks_nothing(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        find_spec = staticmethod(lambda *_: None)

        @staticmethod
        def find_distributions(*_: object) -> None:
            raise OSError("gone")

    monkeypatch.setattr("sys.meta_path", [*sys.meta_path, Finder()])
    assert "good" in {backend.name for backend in Registry().installed()}


def test_a_name_that_cannot_be_typed_is_listed_as_incompatible(site: Path) -> None:
    stranger(site, b"Name: odd\n", b"[%s]\nodd one = odd:Odd\n" % GROUP.encode())
    [odd] = [backend for backend in Registry().installed() if backend.name == "odd one"]
    assert odd.status == "incompatible"


def test_two_packages_with_one_extension_are_not_guessed_between(site: Path) -> None:
    for name in ("one", "two"):
        write_distribution(site, name, entry_points={"qeff_framework.extensions.v1": {"twin": "x:y"}}, modules={})
    with pytest.raises(ExtensionError, match=r"2 packages provide extension 'twin': one 1\.0, two 1\.0"):
        Registry().extensions(["twin"])
