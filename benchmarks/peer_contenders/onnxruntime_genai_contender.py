"""A contender of onnxruntime-genai; runs in an environment of its own, without the framework's dependencies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qeff_framework.bench.job import Rows, serve


class Genai:
    """Greedy tokens with a model that the builder of onnxruntime-genai has written."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        import onnxruntime_genai as genai

        self._genai = genai
        directory = described["directory"]
        config = genai.Config(directory)
        if described["threads"]:
            options = {"session_options": {"intra_op_num_threads": described["threads"]}}
            config.overlay(json.dumps({"model": {"decoder": options}}))
        self._model = genai.Model(config)
        decoder = json.loads((Path(directory) / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
        #: Caches are made for the longest text, and those of a window must not be shorter than it.
        self._least_length = int(decoder.get("sliding_window", {}).get("window_size", 0))
        self.info = {"runtime": f"onnxruntime-genai {genai.__version__}"}

    def generate(self, prompts: Rows, new_tokens: int, on_first: Callable[[], None]) -> Sequence[Sequence[int]]:
        """See `Running.generate`."""
        import numpy as np

        length = len(prompts[0]) + new_tokens
        params = self._genai.GeneratorParams(self._model)
        longest = max(length, self._least_length)
        params.set_search_options(
            max_length=longest, min_length=longest, batch_size=len(prompts), do_sample=False, num_beams=1
        )
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        for number in range(new_tokens):
            generator.generate_next_token()
            if number == 0:
                on_first()
        return [list(map(int, generator.get_sequence(row)))[-new_tokens:] for row in range(len(prompts))]


if __name__ == "__main__":
    serve(Genai)
