"""Which layers are alike: found out by what they make torch do, not by their classes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qeff_framework.dialect import ops
from qeff_framework.seam.cache import SeamCache
from qeff_framework.seam.layers import LayerKinds, LayerRecorder
from qeff_framework.seam.mask_plan import MaskPlan
from qeff_framework.seam.scope import Scope, Step, forward_scope
from qeff_framework.seam.weightless import fake_parameters


class Layer(torch.nn.Module):
    """Keeps its input as keys, multiplies it and adds a part of it."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index, self.factor, self.width = index, 2.0, 4
        self.projection = torch.nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, hidden: torch.Tensor, cache: SeamCache) -> torch.Tensor:
        keys, _ = cache.update(hidden[:, None], hidden[:, None], self.index)
        added = self.table * self.factor + keys.amax(dim=(1, 2))
        result: torch.Tensor = self.projection(hidden) + added[:, None]
        return result if self.width == 4 else result[..., : self.width].repeat(1, 1, 2)


class Model(torch.nn.Module):
    """Four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(index) for index in range(4))

    def forward(self, hidden: torch.Tensor, cache: SeamCache) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden, cache)
        return hidden


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture(params=["numbers", "no numbers"], autouse=True)
def has_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are run as they are, and as exports do: on parameters without data."""
    monkeypatch.setattr(sys.modules[__name__], "_WITH_NUMBERS", request.param == "numbers")


_WITH_NUMBERS = True


def _run(model: torch.nn.Module, *arguments: Any) -> Any:
    if _WITH_NUMBERS:
        return model(torch.ones(2, 3, 4), *arguments)
    parameters = fake_parameters(model)
    hidden = next(iter(parameters.values())).new_ones(2, 3, 4)
    return torch.func.functional_call(model, parameters, (hidden, *arguments))


def kinds_of(model: torch.nn.Module) -> list[list[str]]:
    """Numbers of the layers that are alike."""
    recorder, cache, masks = LayerRecorder(), SeamCache(8), MaskPlan()
    step = Step(position_ids=torch.arange(3).expand(2, 3), kv_positions=torch.arange(8))
    with (
        torch.no_grad(),
        recorder.watching(model, cache, masks),
        forward_scope(Scope(masks=masks, step=step)),
    ):
        _run(model, cache)
    kinds: LayerKinds = recorder.kinds()
    for kind in kinds.kinds:
        assert [[state.layer for state in layer.states] for layer in kind] == [
            [int(layer.name[-1])] * 2 for layer in kind
        ]
    return [[layer.name[-1] for layer in kind] for kind in kinds.kinds]


def test_layers_of_one_structure_are_alike(model: Model) -> None:
    assert kinds_of(model) == [["0", "1", "2", "3"]]


def _set(attribute: str, value: Any) -> Callable[[Layer], None]:
    return lambda layer: setattr(layer, attribute, value)


def _leave_something(layer: Layer) -> None:
    def forward(hidden: torch.Tensor, cache: SeamCache) -> torch.Tensor:
        layer.seen = hidden
        return Layer.forward(layer, hidden, cache)

    layer.forward = forward  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[Layer], None]] = {
    "another number": _set("factor", 3.0),
    "another form": _set("width", 2),
    "another buffer": _set("table", torch.ones(1)),
    "no bias": lambda layer: layer.projection.register_parameter("bias", None),
    "something left behind": _leave_something,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_layer_that_does_something_else_is_not_alike(change: Callable[[Layer], None], model: Model) -> None:
    change(model.layers[1])  # type: ignore[arg-type]

    assert kinds_of(model) == [["0", "2", "3"]]


def test_numbers_are_compared_bit_by_bit(model: Model) -> None:
    for layer in model.layers:
        layer.factor = 0.0
    model.layers[2].factor = -0.0
    assert kinds_of(model) == [["0", "1", "3"]]


def test_layers_that_multiply_by_nan_are_alike(model: Model) -> None:
    for layer in model.layers:
        layer.factor = float("nan")
    assert kinds_of(model) == [["0", "1", "2", "3"]]


def test_attributes_of_dialect_ops_tell_layers_apart(model: Model) -> None:
    def normed(layer: Layer, epsilon: float) -> Callable[..., torch.Tensor]:
        def forward(hidden: torch.Tensor, cache: SeamCache) -> torch.Tensor:
            return Layer.forward(layer, ops.rms_norm(hidden, layer.projection.bias, epsilon=epsilon), cache)

        return forward

    for layer, epsilon in zip(model.layers, (1e-6, 1e-5, 1e-6, 1e-5), strict=True):
        layer.forward = normed(layer, epsilon)
    assert kinds_of(model) == [["0", "2"], ["1", "3"]]


def test_numbers_of_arguments_and_of_buffers_tell_layers_apart_by_what_follows_from_them(model: Model) -> None:
    """The number of a layer is an argument of some models' layers, and statistics of a batch normalisation are buffers."""

    class Numbered(Model):
        def forward(self, hidden: torch.Tensor, cache: SeamCache) -> torch.Tensor:
            for number, layer in enumerate(self.layers):
                hidden = layer(hidden, cache, number)
            return hidden

    def forward(layer: Layer) -> Callable[..., torch.Tensor]:
        return lambda hidden, cache, number: Layer.forward(layer, hidden, cache) * (2 if number == 2 else 1)

    numbered = Numbered()
    for layer in numbered.layers:
        layer.forward = forward(layer)  # type: ignore[method-assign, arg-type]
        layer.table.mul_(layer.index + 1)  # type: ignore[operator, union-attr]

    assert kinds_of(numbered) == [["0", "1", "3"]]


def test_two_kinds_in_turns(model: Model) -> None:
    for number in (1, 3):
        model.layers[number].factor = 3.0

    assert kinds_of(model) == [["0", "2"], ["1", "3"]]


def test_a_weight_that_is_shared_with_the_outside_is_no_own_weight(model: Model) -> None:
    """Copies of layer 1 would read their own weight where it reads the model's."""
    model.head = torch.nn.Linear(4, 4)
    model.head.weight = model.layers[1].projection.weight  # type: ignore[union-attr, assignment]

    assert kinds_of(model) == [["0", "2", "3"]]


def test_a_layer_whose_state_another_one_reads_is_traced(model: Model) -> None:
    """The trace holds the states of traced layers only."""

    def forward(hidden: torch.Tensor, cache: SeamCache) -> torch.Tensor:
        keys = cache.read("key", 1)
        assert keys is not None
        return hidden + keys.amax(dim=(1, 2))[:, None]

    model.layers[3].forward = forward  # type: ignore[union-attr, assignment]

    assert kinds_of(model) == [["0", "2"]]


def test_a_layer_that_runs_twice_is_traced(model: Model) -> None:
    class Twice(Model):
        def forward(self, hidden: torch.Tensor, cache: SeamCache) -> torch.Tensor:
            return super().forward(self.layers[2](hidden, cache), cache)

    assert kinds_of(Twice()) == [["0", "1", "3"]]


def test_layers_inside_of_those_that_are_not_alike() -> None:
    """Stages of an image encoder differ in their sizes, and hold layers that are alike."""

    class Stage(torch.nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.first = torch.nn.Linear(4, 4)
            self.blocks = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(count)))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.blocks(self.first(hidden))
            return result

    class Stages(torch.nn.Module):
        def __init__(self, counts: tuple[int, ...]) -> None:
            super().__init__()
            self.stages = torch.nn.ModuleList(map(Stage, counts))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            for stage in self.stages:
                hidden = stage(hidden)
            return hidden

    def names(counts: tuple[int, ...]) -> list[list[str]]:
        recorder, stages = LayerRecorder(), Stages(counts)
        with torch.no_grad(), recorder.watching(stages, SeamCache(8), MaskPlan()):
            stages(torch.ones(2, 4))
        return [[layer.name for layer in kind] for kind in recorder.kinds().kinds]

    assert names((2, 3)) == [[f"stages.{stage}.blocks.{n}" for n in range(2 + stage)] for stage in range(2)]
    assert names((2, 2, 3)) == [["stages.0", "stages.1"], [f"stages.2.blocks.{n}" for n in range(3)]]
