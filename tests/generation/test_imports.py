"""A compiled artifact runs where only NumPy and `tokenizers` are installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import qeff_framework
from tests.generation.fakes import expected_tokens

SCRIPT = """
import json, sys
from pathlib import Path
from qeff_framework.generation import TextGenerator, load_generation_defaults
from qeff_framework.single_pass import EncoderRunner
from qeff_framework.tokenization import load_tokenizer
from tests.generation.fakes import FakeCausalLM, FakeEncoder, FakeSampler

tokenizer = load_tokenizer(Path(sys.argv[1]))
session = FakeCausalLM(2, 4, 64, vocab=len(tokenizer.vocabulary()))
generator = TextGenerator(session, tokenizer, load_generation_defaults(Path(sys.argv[1])))
output = generator.generate(["The fox", "It's"], max_new_tokens=6, stop_strings=["never"], stream=sys.stderr)
"".join(generator.stream("The fox", max_new_tokens=6))
TextGenerator(FakeSampler()).generate([[1]], max_new_tokens=2, do_sample=True, top_k=5)
rules = {
    "sequence_bias": [[[1, 2], 2.0]], "encoder_repetition_penalty": 1.5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2, "bad_words_ids": [[3, 4]], "min_new_tokens": 2, "forced_bos_token_id": 3,
    "forced_eos_token_id": 3, "remove_invalid_values": True, "exponential_decay_length_penalty": [100, 1.5],
    "suppress_tokens": [5], "begin_suppress_tokens": [6], "renormalize_logits": True,
}
drawn = {"temperature": 0.7, "top_h": 0.9, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 0.01}
ruled = TextGenerator(session, tokenizer, rules)
ruled.generate([[{"role": "user", "content": "The fox"}]], max_new_tokens=4)
ruled.generate(["The fox"], max_new_tokens=4, do_sample=True, eta_cutoff=0.01, **drawn)
EncoderRunner(FakeEncoder())({"input_ids": [[1, 2]]})
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "onnx", "huggingface_hub"})
ids = [tokenizer.encode(text) for text in ("The fox", "It's")]
print(json.dumps({"heavy": heavy, "prompts": ids, "generated": output.generated_ids, "vocab": session.logits.shape[-1]}))
"""


def test_decoding_with_rules_and_samples_imports_neither_torch_nor_transformers(
    tokenizer_folders: dict[str, Path],
) -> None:
    folder = tokenizer_folders["byte_level"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["heavy"] == []
    eos = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["<eos>"]
    expected = [expected_tokens(prompt, 6, [eos], result["vocab"]) for prompt in result["prompts"]]
    assert result["generated"] == expected


def test_one_loop_runs_the_programs_of_language_models() -> None:
    """`generate`, the engines and the server stand on the scheduler; the smaller model that drafts tokens is a program of its own."""
    core = Path(qeff_framework.__file__).parent
    rooms = [
        core / "generation",
        core / "serving",
        core / "scale",
        core / "cli",
        core / "runtime" / "text_generation.py",
    ]
    files = [file for room in rooms for file in (room.rglob("*.py") if room.is_dir() else [room])]
    running = {file.name for file in files if "ession.run(" in file.read_text(encoding="utf-8")}
    assert running == {"scheduler.py", "draft_model.py"}
