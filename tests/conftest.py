"""What several parts of the suite share: an artifact store of its own, and small real checkpoints."""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.tokenizer_folders import tokenizer_folders

__all__ = ["tokenizer_folders"]

# pytest listens at every level, and torch then formats megabytes of traces for each export.
logging.getLogger("torch.__trace").disabled = True

# A trace makes hundreds of thousands of objects that die by themselves, and half a million of the libraries' stay to the end:
# looking for cycles every 700 objects takes a tenth of the run.
gc.set_threshold(50_000, 20, 10)


# What an example takes on a busy machine says nothing.
settings.register_profile("suite", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

TESTS = Path(__file__).parent

#: Files whose tests take more than some seconds together, most of it for exports of models.
SLOW = frozenset(
    {
        "cli/test_app.py",
        "cli/test_batch.py",
        "cli/test_coverage.py",
        "cli/test_generate.py",
        "cli/test_serve.py",
        "coverage/test_families_subset.py",
        "coverage/test_parity.py",
        "coverage/test_processes.py",
        "coverage/test_reference.py",
        "docs/test_examples.py",
        "examples/test_examples.py",
        "export/test_encoder.py",
        "export/test_position_limits.py",
        "export/test_seq2seq_lm.py",
        "export/test_states.py",
        "export/test_weights.py",
        "plugins/ort_sim_backend/test_models.py",
        "plugins/qaic_backend/test_documents.py",
        "plugins/qefficient_compat/test_flows.py",
        "seam/test_special.py",
        "sessions/test_backends.py",
    }
)

#: Other files whose tests take more than five seconds, although there are few of them.
LONG = frozenset(
    {
        "cli/test_doctor.py",
        "coverage/test_fuzz.py",
        "export/test_causal_lm.py",
        "export/test_errors.py",
        "export/test_module_unchanged.py",
        "export/test_stamp.py",
        "export/test_unloaded.py",
        "plugins/ort_sim_backend/test_ai100.py",
        "plugins/ort_sim_backend/test_session.py",
        "plugins/qaic_backend/test_framework.py",
        "plugins/qaic_backend/test_generation.py",
        "plugins/qaic_backend/test_images.py",
        "plugins/qaic_backend/test_pipelines.py",
        "plugins/qaic_backend/test_seq2seq.py",
        "plugins/qaic_backend/test_session.py",
        "plugins/qaic_backend/test_speech.py",
        "plugins/qaic_backend/test_weights.py",
        "plugins/qefficient_compat/test_flows.py",
        "plugins/qnn_backend/aic/test_framework.py",
        "plugins/qnn_backend/aic/test_generation.py",
        "plugins/qnn_backend/aic/test_sound.py",
        "plugins/qnn_backend/htp/test_errors.py",
        "plugins/qnn_backend/htp/test_images.py",
        "plugins/qnn_backend/htp/test_minilm.py",
        "plugins/qnn_backend/htp/test_models.py",
        "plugins/qnn_backend/htp/test_speech.py",
        "test_model.py",
        "test_packaging.py",
        "testing/test_doors.py",
        "testing/test_our_backends.py",
    }
)

#: What these export, other files export as well. Side by side they would both do it, or wait for each other.
SHARING = frozenset({"docs/test_examples.py", "plugins/qaic_backend/test_documents.py"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests by what they need, so that `make test-fast` can leave out what takes long or needs more than Python.

    The slow and the long files come first, then those of most tests: one that begins last would leave the other workers idle. Left
    alone xdist goes by the number of tests, and the files that take a minute have two.
    """
    sizes = Counter(item.path for item in items)
    names = {path: path.relative_to(TESTS).as_posix() for path in sizes}
    slow = {path for path, name in names.items() if name in SLOW or name.startswith("end_to_end/")}
    first = slow | {path for path, name in names.items() if name in LONG}
    places = {path: (path not in first, name in SHARING, -sizes[path]) for path, name in names.items()}
    items.sort(key=lambda item: places[item.path])
    for item in items:
        name = names[item.path]
        if item.path in slow:
            item.add_marker(pytest.mark.slow)
        if "standin" in item.nodeid or name.startswith("plugins/qaic_backend/") or "qnn_backend/aic/" in name:
            item.add_marker(pytest.mark.standin)
        if "qnn_backend/htp/" in name:
            item.add_marker(pytest.mark.htp)
        if name in ("test_packaging.py", "examples/test_examples.py"):
            item.add_marker(pytest.mark.network)


@pytest.fixture(scope="session", autouse=True)
def session_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of the whole session: what one test has exported, another one finds, in whichever worker it runs.

    No test writes into the store of who runs it, or finds something there.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session-qeff-home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEFF_HOME", str(root))
        for variable in ("QEFF_BACKEND", "QEFF_BACKENDS", "QEFF_DISABLE_BACKENDS", "QEFF_EXTENSIONS"):
            patch.delenv(variable, raising=False)
        # No test looks at what would be left after the power has failed; waiting for the disk takes seconds of some files. A
        # descriptor that is none is an error all the same.
        patch.setattr(os, "fsync", os.fstat)
        yield root


@pytest.fixture
def store_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store for one test."""
    root = tmp_path / "qeff-home"
    monkeypatch.setenv("QEFF_HOME", str(root))
    return root
