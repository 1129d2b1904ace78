"""The source of a plugin under development is part of what it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qeff_framework.registry import Registry
from qeff_framework.sources.code_digests import source_digest
from qeff_framework.sources.fingerprint import NotIdentifiableError
from tests.fake_distributions import echo_backend
from tests.recording_backend import RecordingBackend


def test_every_file_of_a_package_counts_and_what_python_compiles_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_plugin_under_work"
    (package / "tables").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "lowering.py").write_text("a = 1")
    (package / "tables" / "costs.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest() -> str:
        return source_digest(["some_plugin_under_work.hooks", "some_plugin_under_work"])

    digests = [digest()]
    for name, text in (("lowering.py", "a = 2"), ("tables/costs.json", "[]"), ("new.py", "")):
        (package / name).write_text(text)
        digests.append(digest())
    assert len(set(digests)) == 4
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "lowering.pyc").write_text("x")
    assert digest() == digests[-1]
    assert "some_plugin_under_work" not in sys.modules

    package.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved").rename(tmp_path / "elsewhere" / "some_plugin_under_work")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert digest() == digests[-1], "what the files hold counts, not where they lie"


def test_a_module_without_a_file_cannot_be_identified() -> None:
    with pytest.raises(NotIdentifiableError, match="module 'sys' has no file"):
        source_digest(["sys"])


@pytest.mark.parametrize(
    ("url", "counts"), [({"dir_info": {"editable": True}}, True), ({"dir_info": {}}, False), (None, False)]
)
def test_the_source_of_an_editable_install_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: object, counts: bool
) -> None:
    module = echo_backend(tmp_path, "works")
    if url is not None:
        (tmp_path / "qeff_works_backend-1.0.dist-info" / "direct_url.json").write_text(json.dumps(url))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Registry().get("works").source_modules == ((module, module) if counts else ())
    sys.modules.pop(module)


def test_the_source_of_a_class_that_is_passed_counts() -> None:
    relay = Registry().get(RecordingBackend)
    before = source_digest(relay.source_modules)
    assert relay.source_modules == ("tests.recording_backend",) * 2
    assert len(before) == 64
