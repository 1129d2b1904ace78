"""A contender of OpenVINO GenAI; runs in an environment of its own, without the framework's dependencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qeff_framework.bench.job import OnFirst, Rows, serve

#: Gigabytes of cache: more than any case here fills.
_CACHE_GIGABYTES = 1


class OpenVino:
    """Greedy tokens with the pipeline for continuous batching, the one that shows each step also where several rows run."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        import openvino
        import openvino_genai

        self._genai: Any = openvino_genai
        self._tensor: Any = openvino.Tensor
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = _CACHE_GIGABYTES
        scheduling.max_num_batched_tokens = described["rows"] * described["ctx_len"]
        properties: dict[str, Any] = {}
        if described["threads"]:
            properties["INFERENCE_NUM_THREADS"] = described["threads"]
        if described["float32"]:
            properties |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            described["directory"], scheduling, "CPU", properties
        )
        self._requests = 0
        self.info = {"runtime": f"openvino-genai {openvino_genai.__version__}"}

    def generate(self, prompts: Rows, new_tokens: int, on_first: OnFirst) -> Sequence[Sequence[int]]:
        """See `Running.generate`."""
        import numpy as np

        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.min_new_tokens = new_tokens, new_tokens
        config.ignore_eos, config.do_sample = True, False
        handles = []
        for tokens in prompts:
            ids = self._tensor(np.array([tokens], np.int64))
            handles.append(self._pipeline.add_request(self._requests, ids, config))
            self._requests += 1
        rows: list[list[int]] = [[] for _ in prompts]
        told = False
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for row, handle in zip(rows, handles, strict=True):
                if handle.can_read():
                    for output in handle.read().values():
                        row.extend(output.generated_ids)
            if not told and all(rows):
                told = True
                # Its scheduler lets rows decode while it reads the prompts of others.
                on_first(sum(len(row) - 1 for row in rows))
        return rows


if __name__ == "__main__":
    serve(OpenVino)
