"""The experts interface: which computation of a mixture of experts is traced."""

from __future__ import annotations

from transformers import PreTrainedModel

#: Gathers the weights of the chosen experts for each token. The library's default (`grouped_mm`) has no ONNX form and its eager
#: form branches on data. It is exact, and costs memory traffic in proportion to the tokens.
EXPORTABLE_IMPLEMENTATION = "batched_mm"


def use_exportable_experts(shell: PreTrainedModel) -> None:
    """Selects the expert computation that can be traced, in models that have experts."""
    shell.set_experts_implementation(EXPORTABLE_IMPLEMENTATION)
