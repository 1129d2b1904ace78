"""Decode steps of ort_sim, by precision, beside Transformers in this process: time, size, and how many tokens stay the same.

    python benchmarks/decode_speed.py CHECKPOINT [--precisions fp32 w8 w4] [--tokens 32] [--rounds 5] [--threads 1]

Every contender continues the greedy text of Transformers in float32, token by token, so all of them do the same work. The rounds
go through the contenders in turn; ratios of medians are what can be compared, the times themselves depend on the machine. `agree`
is the share of steps whose best token is that of Transformers. One line for each contender.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np

PROMPT = "The history of the city begins with a small harbour, where fishermen and merchants"
CHUNK = 32

Decode = Callable[[], tuple[list[int], float]]


def main() -> int:
    """Compiles, decodes in rounds, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder, .gguf file or hub id of a causal language model with a tokenizer")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "w8", "w4"], help="values of the option precision")
    parser.add_argument("--tokens", type=int, default=32, help="decode steps in a round (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each contender (default 1)")
    arguments = parser.parse_args()

    import torch

    from qeff_framework import QEFFAutoModelForCausalLM
    from qeff_framework.runtime import load_compiled

    # Transformers is about to rename `past_key_values`; the name of today works in the whole range.
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(arguments.threads)
    model = QEFFAutoModelForCausalLM.from_pretrained(arguments.checkpoint)
    sizes = {"transformers": sum(each.numel() * 4 for each in model.module.parameters())}
    ctx_len = CHUNK * (2 + arguments.tokens // CHUNK)
    runners = {}
    for precision in arguments.precisions:
        compiled = model.compile(
            backend="ort_sim", prefill_seq_len=CHUNK, ctx_len=ctx_len, num_cores=arguments.threads, precision=precision
        )
        runners[precision] = load_compiled(compiled.directory)
        sizes[precision] = sum(file.stat().st_size for file in compiled.directory.glob("model.onnx*"))
    tokenizer = next(iter(runners.values())).tokenizer
    if tokenizer is None:
        parser.error(f"{arguments.checkpoint} has no tokenizer")
    prompt = tokenizer.encode(PROMPT)[:CHUNK]
    expected, _ = transformers_decode(model.module, prompt, None, arguments.tokens)

    contenders: dict[str, Decode] = {
        "transformers": lambda: transformers_decode(model.module, prompt, expected, arguments.tokens)
    }
    for precision, runner in runners.items():
        contenders[precision] = lambda runner=runner: session_decode(runner.session, prompt, expected)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    chosen: dict[str, list[int]] = {}
    for _ in range(arguments.rounds):
        for name, decode in contenders.items():
            chosen[name], took = decode()
            seconds[name].append(took / arguments.tokens)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{'':14}{'ms per step':>12}{'of transformers':>17}{'weights MB':>12}{'agree':>8}")
    for name, median in medians.items():
        same = sum(a == b for a, b in zip(chosen[name], expected, strict=True)) / len(expected)
        ratio = median / medians["transformers"]
        print(f"{name:14}{1000 * median:12.1f}{ratio:17.2f}{sizes[name] / 1e6:12.0f}{same:8.0%}")
    return 0


def transformers_decode(
    module: object, prompt: Sequence[int], forced: Sequence[int] | None, tokens: int
) -> tuple[list[int], float]:
    """The best token of each step, and the seconds of all steps but the prompt's; goes on with `forced`, else with its own."""
    import torch

    chosen = []
    with torch.inference_mode():
        output = module(torch.tensor([list(prompt)]), use_cache=True, logits_to_keep=1)
        chosen.append(int(output.logits[0, -1].argmax()))
        started = time.perf_counter()
        for step in range(tokens):
            token = chosen[-1] if forced is None else forced[step]
            output = module(torch.tensor([[token]]), past_key_values=output.past_key_values, logits_to_keep=1)
            chosen.append(int(output.logits[0, -1].argmax()))
        return chosen, time.perf_counter() - started


def session_decode(session: object, prompt: Sequence[int], forced: Sequence[int]) -> tuple[list[int], float]:
    """The same through a compiled program."""
    input_ids, position_ids = np.zeros((1, CHUNK), np.int64), np.full((1, CHUNK), -1)
    input_ids[0, : len(prompt)], position_ids[0, : len(prompt)] = prompt, range(len(prompt))
    chosen = [int(session.run({"input_ids": input_ids, "position_ids": position_ids})["logits"][0, -1].argmax())]
    started = time.perf_counter()
    for step, token in enumerate(forced[:-1]):
        feeds = {"input_ids": np.array([[token]]), "position_ids": np.array([[len(prompt) + step]])}
        chosen.append(int(session.run(feeds)["logits"][0, -1].argmax()))
    return chosen, time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
