"""A contender of llama.cpp through llama-cpp-python; runs in an environment of its own, without the framework's dependencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from qeff_framework.bench.job import Rows, serve

#: ``GGML_TYPE_F32``, the type of the cache beside float32 weights; llama.cpp's default is float16.
_FLOAT32 = 0


class LlamaCpp:
    """Greedy tokens with a GGUF file, through the C interface: the class `Llama` runs one row at a time."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        rows, ctx_len, threads = described["rows"], described["ctx_len"], described["threads"]
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            described["file"].encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {described['file']}")
        params = llama_cpp.llama_context_default_params()
        # llama.cpp divides the context among the rows.
        params.n_ctx, params.n_seq_max = rows * ctx_len, rows
        params.n_batch = rows * ctx_len
        if threads:
            params.n_threads = params.n_threads_batch = threads
        if described["float32_cache"]:
            params.type_k = params.type_v = _FLOAT32
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context of {rows} rows of {ctx_len} tokens")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(rows * ctx_len, 0, 1)
        self.info = {"runtime": f"llama-cpp-python {version('llama-cpp-python')}"}

    def generate(self, prompts: Rows, new_tokens: int, on_first: Callable[[], None]) -> Sequence[Sequence[int]]:
        """See `Running.generate`."""
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        chosen = self._step([(row, 0, tokens) for row, tokens in enumerate(prompts)])
        on_first()
        results = [[token] for token in chosen]
        for number in range(new_tokens - 1):
            chosen = self._step([(row, len(prompts[row]) + number, [token]) for row, token in enumerate(chosen)])
            for result, token in zip(results, chosen, strict=True):
                result.append(token)
        return results

    def _step(self, rows: Sequence[tuple[int, int, Sequence[int]]]) -> list[int]:
        """Reads tokens (row, first position, tokens) and returns the most likely next one of each row."""
        import numpy as np

        batch, count, last = self._batch, 0, []
        for row, start, tokens in rows:
            for offset, token in enumerate(tokens):
                batch.token[count], batch.pos[count] = token, start + offset
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, row
                batch.logits[count] = offset == len(tokens) - 1
                count += 1
            last.append(count - 1)
        batch.n_tokens = count
        code = self._api.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode failed with code {code}")
        logits = (self._api.llama_get_logits_ith(self._context, index) for index in last)
        return [int(np.ctypeslib.as_array(each, (self._vocabulary,)).argmax()) for each in logits]


if __name__ == "__main__":
    serve(LlamaCpp)
