"""A compiled artifact runs where only NumPy and `tokenizers` are installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.generation.fakes import expected_tokens

SCRIPT = """
import json, sys
from pathlib import Path
from qeff_framework.generation import EncoderRunner, TextGenerator, load_generation_defaults, load_tokenizer
from tests.generation.fakes import FakeCausalLM, FakeEncoder, FakeSampler

tokenizer = load_tokenizer(Path(sys.argv[1]))
session = FakeCausalLM(2, 4, 64, vocab=len(tokenizer.vocabulary()))
generator = TextGenerator(session, tokenizer, load_generation_defaults(Path(sys.argv[1])))
output = generator.generate(["The fox", "It's"], max_new_tokens=6, stop_strings=["never"], stream=sys.stderr)
"".join(generator.stream("The fox", max_new_tokens=6))
TextGenerator(FakeSampler()).generate([[1]], max_new_tokens=2, do_sample=True, top_k=5)
EncoderRunner(FakeEncoder())({"input_ids": [[1, 2]]})
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "onnx", "huggingface_hub"})
ids = [tokenizer.encode(text) for text in ("The fox", "It's")]
print(json.dumps({"heavy": heavy, "prompts": ids, "generated": output.generated_ids, "vocab": session.logits.shape[-1]}))
"""


def test_greedy_decoding_and_sampling_on_the_device_import_neither_torch_nor_transformers(
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
