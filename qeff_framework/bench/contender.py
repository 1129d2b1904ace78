"""The process of a contender that is a compiled program, or Transformers itself: ``python -m qeff_framework.bench.contender``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from qeff_framework.bench.job import OnFirst, Rows, Running, serve
from qeff_framework.errors import QEFFError


class Program:
    """A compiled program. What the checkpoint says about decoding does not hold: greedy, without an end."""

    def __init__(self, directory: str, runtime_options: Mapping[str, Any], extensions: Sequence[str] | None) -> None:
        from qeff_framework.generation import TextGenerator
        from qeff_framework.runtime import generation_defaults, load_compiled

        runner = load_compiled(directory, extensions=extensions, **runtime_options)
        stated = generation_defaults(runner.compiled.directory)
        starts = {name: stated[name] for name in ("decoder_start_token_id", "bos_token_id") if name in stated}
        self._generator = TextGenerator(runner.session, generation_defaults={**starts, "eos_token_id": None})
        self.info = dict(runner.info)

    def generate(self, prompts: Rows, new_tokens: int, on_first: OnFirst) -> Sequence[Sequence[int]]:
        """See `Running.generate`."""
        waiting, early_tokens = set(range(len(prompts))), 0

        def on_token(row: int, token: int) -> None:  # noqa: ARG001 - the loop passes both
            nonlocal early_tokens
            if not waiting:
                return
            if row not in waiting:
                # Rows of continuous batching decode while others wait for their prompts.
                early_tokens += 1
                return
            waiting.remove(row)
            if not waiting:
                on_first(early_tokens)

        settings = self._generator.settings(max_new_tokens=new_tokens, num_beams=1)
        return self._generator.generate_ids(prompts, settings, on_token=on_token).generated_ids


class Transformers:
    """Transformers' module in float32 without compilation, with its own cache; nothing of `generate` but the best token."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        import inspect

        import torch
        import transformers

        from qeff_framework.auto.causal_lm import QEFFAutoModelForCausalLM

        self._torch = torch
        model = dict(arguments)
        self._module: Any = QEFFAutoModelForCausalLM.from_pretrained(model.pop("model"), **model).module
        parameters = inspect.signature(self._module.forward).parameters
        # Transformers 5 has renamed the argument.
        self._cache = "cache" if "cache" in parameters else "past_key_values"
        self.info = {
            "device": "CPU",
            "runtime": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "threads": str(torch.get_num_threads()),
        }

    def generate(self, prompts: Rows, new_tokens: int, on_first: OnFirst) -> Sequence[Sequence[int]]:
        """See `Running.generate`. The prompts have one length."""
        torch, chosen = self._torch, []
        with torch.inference_mode():
            output = self._module(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            chosen.append(output.logits[:, -1].argmax(-1, keepdim=True))
            on_first()
            for _ in range(new_tokens - 1):
                output = self._module(chosen[-1], **{self._cache: output.past_key_values}, logits_to_keep=1)
                chosen.append(output.logits[:, -1].argmax(-1, keepdim=True))
            rows: list[list[int]] = torch.cat(chosen, dim=1).tolist()
        return rows


def load(described: Mapping[str, Any]) -> Running:
    """What ``contender`` of a job describes: ``{"kind": "program", ...}`` or ``{"kind": "transformers", ...}``."""
    if described["kind"] == "transformers":
        return Transformers(described["arguments"])
    return Program(described["directory"], described["runtime_options"], described["extensions"])


if __name__ == "__main__":
    try:
        serve(load)
    except QEFFError as error:
        # The message alone, which is what the command shows of this process.
        sys.exit(str(error))
