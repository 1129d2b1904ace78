"""Speech through encoder and decoder side by side on one device, by programs that the bundle of a dry run was compiled to."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qeff_framework import QEFFAutoModelForSpeechSeq2Seq, load_compiled
from qeff_framework.runtime.speech import CompiledSpeechSeq2Seq
from tests.sdk_standins.qaic import StandinSdk
from tests.sound_models import clip, whisper, whisper_processor, whisper_tokens


@pytest.fixture(autouse=True)
def _store(session_store: Path) -> None:
    """Exports lie there."""


def test_standin_tokens_and_texts_of_a_clip(standin: Callable[..., StandinSdk], tmp_path: Path) -> None:
    """The processor is in memory, and so is its tokenizer, which the artifact must carry."""
    standin()
    module, processor = whisper(), whisper_processor()
    model = QEFFAutoModelForSpeechSeq2Seq(module, processor=processor)
    bundle = model.compile("qaic", dry_run=True, compile_dir=tmp_path / "bundle", ctx_len=64, num_cores=8)
    assert {*bundle.parts()} == {"encoder", "decoder"}
    for program in bundle.parts().values():
        subprocess.run([str(program.directory / "compile.sh")], check=True, capture_output=True)
    wanted = whisper_tokens(module, 3, new_tokens=8)
    with load_compiled(bundle.directory) as runner:
        assert isinstance(runner, CompiledSpeechSeq2Seq)
        found = runner.generate(runner.prepared(clip(3, 3)), max_new_tokens=8)
    assert found.generated_ids == [wanted]
    assert found.generated_texts == [processor.decode(wanted, skip_special_tokens=True)]
