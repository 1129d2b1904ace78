"""A weightless copy has the structure of a model and none of its weights."""

from __future__ import annotations

import resource
import sys

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from qeff_framework.errors import UnsupportedModelError
from qeff_framework.seam.weightless import fake_parameters, weightless_copy
from tests.tiny_models import tiny_causal_lm


def test_structure_names_and_ties_are_kept_and_no_memory_is_shared():
    model, _ = tiny_causal_lm("gpt2")

    weightless = weightless_copy(model)

    assert [name for name, _ in weightless.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert weightless.lm_head.weight is weightless.transformer.wte.weight, "tied weights stay one parameter"
    ours = {parameter.data_ptr() for parameter in weightless.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in model.parameters()}
    assert weightless.config is not model.config


@pytest.mark.parametrize(
    "spoil",
    [
        lambda module: setattr(module, "stream", sys.__stderr__),
        torch.nn.utils.weight_norm,
    ],
    ids=["an open file", "a computed weight"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_cannot_be_copied_is_told(spoil):
    module = torch.nn.Linear(2, 2)
    spoil(module)
    with pytest.raises(UnsupportedModelError, match="it cannot be copied"):
        weightless_copy(module)


def test_half_precision_becomes_float32_and_buffers_keep_their_values():
    model = torch.nn.BatchNorm1d(4).to(torch.bfloat16)
    model.running_mean += 3

    weightless = weightless_copy(model)

    assert weightless.weight.dtype == weightless.running_mean.dtype == torch.float32
    assert weightless.num_batches_tracked.dtype == torch.int64
    torch.testing.assert_close(weightless.running_mean, torch.full((4,), 3.0))
    assert model.weight.dtype == torch.bfloat16


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_a_weightless_copy_costs_no_memory():
    with torch.device("meta"):
        large = torch.nn.Linear(16384, 16384, bias=False)
    large.weight = torch.nn.Parameter(torch.empty(16384, 16384))  # 1 GiB that nobody touches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    fakes = fake_parameters(weightless_copy(large))

    assert fakes["weight"].shape == (16384, 16384)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_indices_stay_real_where_weights_have_no_data():
    embedding = torch.nn.Embedding(10, 4)
    tokens = torch.arange(3)

    result = torch.func.functional_call(embedding, fake_parameters(embedding), (tokens,))

    assert result.shape == (3, 4)
    assert type(tokens * 2) is torch.Tensor
    with pytest.raises(GuardOnDataDependentSymNode):
        bool(result.sum().item() > 0)


def test_parameters_without_data_are_what_torch_makes_of_them():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, fake in fake_parameters(model).items():
        wanted = fake.fake_mode.from_tensor(model.get_parameter(name))
        assert isinstance(fake, torch.nn.Parameter)
        assert isinstance(wanted, torch.nn.Parameter)
        for each in ("dtype", "device", "shape", "requires_grad", "layout", "is_leaf"):
            assert getattr(fake, each) == getattr(wanted, each), (name, each)
        assert fake.stride() == wanted.stride()
