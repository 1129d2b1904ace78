"""Faults that only whole models show. Each runs over as few models as show it: an export is the dear part."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from qeff_framework.lowering import GraphPass
from tests.testing.mutants import mutant
from tests.testing.toy_hooks import ToySession

PLAIN = ("generation/causal_lm[dense]", "generation/prefill_of_one_token")


@mutant("generation", "causal_lm[dense]", "prefill_of_one_token", runs=PLAIN)
class ForgetsTheLastToken(ToySession):
    """A decode step does not write its own token into the cache."""

    def run_step(self, specialization: Any, inputs: Any) -> Any:
        before = {name: array.copy() for name, array in self.states.items()}
        outputs = super().run_step(specialization, inputs)
        if specialization.dims["seq_len"] == 1:
            self.states.update(before)
        return outputs


@mutant("generation", "causal_lm[dense]", runs=PLAIN)
class ChunksBeginAnew(ToySession):
    """Each chunk of a prompt is taken for the first one."""

    def run_step(self, specialization: Any, inputs: Any) -> Any:
        if specialization.dims["seq_len"] > 1:
            self.clear_states()
        return super().run_step(specialization, inputs)


@mutant("generation", "causal_lm[dense]", "prefill_of_one_token", runs=PLAIN)
class RotatedByTheRow(ToySession):
    """Positions of the second row are those of the first."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        ids = feeds["input_ids"].copy()
        if ids.shape[0] > 1:
            ids[1] = ids[0]
        return super().compute({**feeds, "input_ids": ids})


@mutant("generation", "causal_lm[dense]", "prefill_of_one_token", runs=PLAIN)
class CoarseWeights(GraphPass):
    """Weights are rounded to two bits, and float32 is claimed."""

    name, version = "CoarseWeights", "1"

    def run(self, model: onnx_ir.Model) -> bool:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype == onnx_ir.DataType.FLOAT and len(tensor.shape) == 2:
                content = tensor.numpy()
                step = np.abs(content).max() / 2 or 1
                value.const_value = onnx_ir.tensor(
                    (np.round(content / step) * step).astype(np.float32), name=value.name
                )
        return True


@mutant("generation", "windows_of_layers", runs=("generation/windows_of_layers",))
class KeepsWhatItWasGiven(ToySession):
    """What a window of layers hands on is taken from the first step of its shape."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        kept = self.__dict__.setdefault("kept", {})
        handed_on = {name: value.copy() for name, value in feeds.items() if name.startswith("carried_")}
        first = {name: kept.setdefault((name, value.shape), value) for name, value in handed_on.items()}
        return super().compute({**feeds, **first})


@mutant("generation", "continuous_batching", runs=("generation/continuous_batching",))
class RowsOfTheStep(ToySession):
    """With continuous batching, row r of a step is row r of the cache."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        rows = feeds.get("batch_index")
        return super().compute(feeds if rows is None else {**feeds, "batch_index": np.arange(len(rows))[:, None]})


@mutant("generation", "speculative_decoding", runs=("generation/speculative_decoding",))
class LogitsOfTheLastToken(ToySession):
    """A target of speculation returns the logits of its last token for every draft."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        outputs = super().compute(feeds)
        if "num_logits_to_keep" in feeds and outputs["logits"].shape[1] > 1:
            outputs["logits"][:] = outputs["logits"][:, -1:]
        return outputs


@mutant("generation", "on_device_sampling", runs=("generation/on_device_sampling",))
class PenaltyOfTheFirstRow(ToySession):
    """The sampler remembers the tokens of one row for all."""

    def run_step(self, specialization: Any, inputs: Any) -> Any:
        outputs = super().run_step(specialization, inputs)
        for name, buffer in self.states.items():
            if "penalty" in name:
                buffer[:] = buffer[-1]
        return outputs


@mutant("generation", "encoder", runs=("generation/encoder",))
class EncoderReadsPadding(ToySession):
    """The attention mask is not read."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return super().compute({**feeds, "attention_mask": np.ones_like(feeds["attention_mask"])})
