"""The modules that follow the Transformer in a sentence-transformers checkpoint, as one torch module in front of the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qeff_framework.errors import CheckpointError, UnsupportedModelError
from qeff_framework.export.pooling import resolve_pooling
from qeff_framework.sources.sentence_transformers import EmbeddingHead, HeadStep

_Values = dict[str, torch.Tensor]


def build_head(head: EmbeddingHead) -> torch.nn.Module:
    """Returns a pooling with the weights of `head`: last hidden state ``[B, S, H]`` and mask ``[B, S]`` to ``[B, E]``.

    Raises:
        CheckpointError: weights are missing, do not fit, or cannot be read.
        UnsupportedModelError: an activation that is not a module of torch.
    """
    return _Head([_operation(step) for step in head.steps], head.steps)


class _Head(torch.nn.Module):
    def __init__(self, operations: list[torch.nn.Module], steps: tuple[HeadStep, ...]) -> None:
        super().__init__()
        self.operations = torch.nn.ModuleList(operations)
        self._names = [(str(step.settings["input"]), str(step.settings["output"])) for step in steps]

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Runs the steps over named values, as the library does."""
        values: _Values = {"token_embeddings": hidden}
        for operation, (source, target) in zip(self.operations, self._names, strict=True):
            values[target] = operation(values[source], mask)
        return values["sentence_embedding"]


class _Pool(torch.nn.Module):
    def __init__(self, modes: list[str]) -> None:
        super().__init__()
        pooling = resolve_pooling(modes)
        if pooling is None:
            raise ValueError("a pooling step names no mode")
        self._pooling = pooling

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self._pooling(tokens, mask)


class _Dense(torch.nn.Module):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        inner, outer = settings["in_features"], settings["out_features"]
        self.linear = torch.nn.Linear(inner, outer, bias=settings["bias"])
        self.activation = _activation(settings["activation"])
        self._adds_input = settings["residual"]
        if self._adds_input and inner != outer:
            self.residual: torch.nn.Module = torch.nn.Linear(inner, outer, bias=False)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        del mask
        result: torch.Tensor = self.activation(self.linear(values))
        if not self._adds_input:
            return result
        return result + (self.residual(values) if hasattr(self, "residual") else values)


class _LayerNorm(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(size)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        del mask
        result: torch.Tensor = self.norm(values)
        return result


class _Normalize(torch.nn.Module):
    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scales to a length of 1.

        The largest value is divided out first: in half precision the squares of large embeddings would overflow.
        """
        del mask
        scaled = values / values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
        return scaled / scaled.square().sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)


class _Truncate(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        del mask
        return values[..., : self._size]


def _operation(step: HeadStep) -> torch.nn.Module:
    match step.kind:
        case "pooling":
            return _Pool(step.settings["modes"])
        case "dense":
            return _with_weights(_Dense(step.settings), step)
        case "layer_norm":
            tensors = _tensors(step)
            return _with_weights(_LayerNorm(next(iter(tensors.values())).numel()), step)
        case "normalize":
            return _Normalize()
        case "truncate":
            return _Truncate(step.settings["size"])


def _activation(name: str) -> torch.nn.Module:
    found = getattr(torch.nn, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise UnsupportedModelError(f"the activation function {name} of a Dense module is not a module of torch.nn")
    return found()


def _with_weights(module: torch.nn.Module, step: HeadStep) -> torch.nn.Module:
    tensors = {name: tensor.to(torch.float32) for name, tensor in _tensors(step).items()}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        problems = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise CheckpointError(f"the weights in {step.weights} do not fit their module: {problems}") from error
    return module.eval().requires_grad_(False)


def _tensors(step: HeadStep) -> dict[str, torch.Tensor]:
    file = step.weights
    if file is None:
        raise CheckpointError(f"a {step.kind} module has no weights")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return content
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read as weights: {error}; download the checkpoint again") from error
