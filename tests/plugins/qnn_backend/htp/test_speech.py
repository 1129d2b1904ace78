"""Speech in the HTP simulator, against eager Transformers in float32."""

from __future__ import annotations

import pytest

from qeff_framework import QEFFAutoModelForSpeechSeq2Seq
from qeff_framework.runtime.speech import CompiledSpeechSeq2Seq
from tests.plugins.qnn_backend.htp.simulator import needs_simulator
from tests.sound_models import clip, whisper, whisper_processor, whisper_tokens

pytestmark = [needs_simulator, pytest.mark.usefixtures("session_store")]


def test_the_tokens_of_eager_for_a_clip() -> None:
    """Compared with eager alone, which costs less than the compiler's own comparison."""
    # Windows of 30 s take the compiler three times as long.
    module = whisper(window=4)
    model = QEFFAutoModelForSpeechSeq2Seq(module, processor=whisper_processor(window=4))
    compiled = model.compile("qnn", target="SM8650", ctx_len=64, verify=False)
    assert [program.program["partial"] for program in compiled.parts().values()] == [{}, {}]
    with model.load() as runner:
        assert isinstance(runner, CompiledSpeechSeq2Seq)
        found = runner.generate(runner.prepared(clip(3, 3)), max_new_tokens=8)
    assert found.generated_ids == [whisper_tokens(module, 3, new_tokens=8)]
