from __future__ import annotations

from collections.abc import Callable

import onnx_ir
import onnxruntime as ort
import pytest
import torch

from qeff_framework.dialect.names import ONNX_OPSET
from qeff_framework.export.decompose import decompose_only_where_needed
from qeff_framework.export.trace import quiet_exporter
from qeff_framework.export.translations import to_onnx


def _add_to_a_product(x: torch.Tensor) -> torch.Tensor:
    scores = x @ x.mT
    scores /= 3.0
    scores += x @ x.mT
    return scores


def _normalise_a_read_tensor(x: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(x, -1)
    total = weights.sum(-1, keepdim=True)
    weights /= total + 1.0
    return weights * total


def _change_behind_a_norm_and_a_dropout(x: torch.Tensor) -> torch.Tensor:
    """As XLM hides padding."""
    hidden = torch.nn.functional.layer_norm(x, (3,))
    hidden = torch.nn.functional.dropout(hidden, 0.1, training=False)
    hidden *= (x > 0).to(x.dtype)
    return hidden * 2.0


def _fill_two_slices(x: torch.Tensor) -> torch.Tensor:
    result = x.new_empty((*x.shape[:-1], 2 * x.shape[-1]))
    result[..., : x.shape[-1]] = x.sin()
    result[..., x.shape[-1] :] = x.cos()
    return result + 1.0


def _conversions_and_logic(x: torch.Tensor) -> torch.Tensor:
    inside = (x > -0.5) & (x.to(torch.float32) < 0.5)
    return torch.min(x.to(torch.float64), torch.zeros((), dtype=torch.float64)).to(x.dtype).T + inside.to(x.dtype).T


def _fill_a_column(x: torch.Tensor) -> torch.Tensor:
    result = torch.zeros_like(x)
    result[:, 1] = 1.0 - x[:, 0].square()
    return result + x.var(-1, keepdim=True) + x.var(-1, unbiased=False, keepdim=True) + x.var(0)


def _a_number_that_nobody_reads(x: torch.Tensor) -> torch.Tensor:
    """As LED asks whether there are global tokens, and a model of images whether there are as many features as placeholders."""
    count = (x > 0).sum().item()
    torch._check(count >= 0)
    torch._check_tensor_all(x < 2.0)
    return x * 2.0


def _change_of_what_was_read_through_a_view(x: torch.Tensor) -> torch.Tensor:
    """As Qwen3-VL adds features of its encoder to the tokens of an image."""
    hidden = x.clone()
    flat = hidden.flatten()
    hidden.copy_(torch.where(x > 0, flat[:3] + 1.0, hidden))
    return hidden * 2.0


def _products(x: torch.Tensor) -> torch.Tensor:
    convolved = torch.nn.functional.conv2d(x[None, None], x[None, None, :1], stride=2, padding="valid")
    pooled = torch.nn.functional.adaptive_avg_pool2d(x[None, None], 1) + torch.nn.functional.adaptive_avg_pool2d(
        x[None], (1, 1)
    )
    return torch.outer(x[0], x[1]) + torch.outer(x[2], torch.arange(3)) + convolved.sum() + pooled[0, 0]


def _write_by_index(x: torch.Tensor) -> torch.Tensor:
    """As JetMoE adds what its experts make of tokens, and Longformer and BigBird lay out their masks."""
    result = torch.zeros_like(x).index_add(1, torch.tensor([2, 0, 0]), x)
    result[:, :1].fill_(0.5)
    result[torch.tensor([1]), torch.tensor([2])] = x[0, :1]
    result[2][x[2] > 0.5] = 4.0
    result[:, 2].fill_(x[0, 1])
    result.index_add_(0, torch.tensor([1]), x[:1])
    hidden = torch.where(x > 0, x, -1.0)[None, None].where(x > -2.0, 0.0)
    hidden[:, 0][:, 1][hidden[:, 0, 1] > 0.1] = 5.0
    wider = x.sin()
    wide = wider.view(3, 3) * wider
    wider.unsqueeze_(1)
    wide += wider[:, 0] + wider.squeeze(1)
    return result * x.sin().fill_(2.0) + hidden[0, 0] + wide


def _norm_with_statistics(x: torch.Tensor) -> torch.Tensor:
    mean, variance = torch.tensor([0.5, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.5])
    return torch.nn.functional.batch_norm(x, mean, variance, bias=mean, eps=0.1) * 2.0


def _weights_with_a_norm(x: torch.Tensor) -> torch.Tensor:
    """As Wav2Vec2 embeds positions; the dimension that keeps its length is the first one, one between, and the last one."""
    weights = x[None] + torch.arange(1.0, 3.0)[:, None, None]
    lengths = (
        torch.tensor([[[0.5]], [[2.0]]]),
        torch.tensor([[[0.5], [2.0], [1.0]]]),
        torch.tensor([[[0.5, 2.0, 1.0]]]),
    )
    return sum(torch._weight_norm(weights, length, dim) for dim, length in enumerate(lengths)) * x.sin()


def _fill_slices_of_a_row(x: torch.Tensor) -> torch.Tensor:
    """As Qwen3-VL lays the frequencies of three axes into the row of the first; the rows and their parts are read before and after."""
    rows = x.sin().transpose(0, 1)
    first = rows[0]
    before = first * 2.0
    for row in (1, 2):
        first[..., row::3] = rows[row, ..., row::3]
    return torch.stack([before, first, rows[0], rows[1]]) + rows.sum()


def _a_row_that_is_seen_after_its_change(x: torch.Tensor) -> torch.Tensor:
    rows = x.sin()
    first, same = rows[0], rows[0]
    first[1:] = x[0, 1:]
    return same * 2.0


def _change_of_a_transposed_tensor_that_is_read(x: torch.Tensor) -> torch.Tensor:
    base = x.sin()
    turned = base.transpose(0, 1)
    turned += 1.0
    return base * 2.0


def _change_seen_through_a_view(x: torch.Tensor) -> torch.Tensor:
    base = x.sin()
    view = base.reshape(-1)
    base += 1.0
    return view * 2.0


def _fill_of_a_part_that_is_seen(x: torch.Tensor) -> torch.Tensor:
    base = x.sin()
    same = base[:1]
    base[:1].fill_(3.0)
    return same * base


def _change_of_a_view(x: torch.Tensor) -> torch.Tensor:
    base = x.sin()
    base.reshape(-1).mul_(2.0)
    return base


def _change_through_an_equal_dtype(x: torch.Tensor) -> torch.Tensor:
    base = x.sin()
    same = base.to(torch.float32)
    same += 1.0
    return base


def _change_through_a_dropout(x: torch.Tensor) -> torch.Tensor:
    base = x.sin()
    same = torch.nn.functional.dropout(base, 0.5, training=False)
    same += 1.0
    return base


def _copy_that_broadcasts(x: torch.Tensor) -> torch.Tensor:
    result = x.sin()
    result.copy_(x[0])
    return result + 0.5


def _change_of_a_view_in_disguise(x: torch.Tensor) -> torch.Tensor:
    base = x.sin()
    first = torch.unsafe_split(base, 1, 0)[0]
    first += 1.0
    return base * 1.5


def _change_seen_in_a_result(x: torch.Tensor) -> torch.Tensor:
    result = x.sin().to(torch.float32)
    view = result.view(-1)
    view += 1.0
    return result


_TRANSLATED = (
    _add_to_a_product,
    _normalise_a_read_tensor,
    _change_behind_a_norm_and_a_dropout,
    _fill_two_slices,
    _fill_a_column,
    _conversions_and_logic,
    _fill_slices_of_a_row,
    _change_of_what_was_read_through_a_view,
    _products,
    _write_by_index,
    _norm_with_statistics,
    _weights_with_a_norm,
    _a_number_that_nobody_reads,
)
_ALIASED = (
    _change_of_a_transposed_tensor_that_is_read,
    _a_row_that_is_seen_after_its_change,
    _change_seen_through_a_view,
    _change_of_a_view,
    _fill_of_a_part_that_is_seen,
    _change_through_an_equal_dtype,
    _change_through_a_dropout,
    _copy_that_broadcasts,
    _change_of_a_view_in_disguise,
    _change_seen_in_a_result,
)


@pytest.mark.parametrize("function", [*_TRANSLATED, *_ALIASED])
def test_the_program_still_computes_the_same(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.linspace(-1.0, 1.0, 9).reshape(3, 3)
    program = _traced(function, x)
    decompose_only_where_needed(program)
    torch.testing.assert_close(program.module()(x.clone()), function(x.clone()))


# torch's own functionalization takes the results of unsafe_split and of dropout in eval mode for new memory.
@pytest.mark.parametrize(
    "function",
    [
        *_TRANSLATED,
        *(each for each in _ALIASED if each not in (_change_through_a_dropout, _change_of_a_view_in_disguise)),
    ],
)
def test_the_translation_computes_the_same(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.linspace(-1.0, 1.0, 9).reshape(3, 3)
    program = _traced(function, x)
    decompose_only_where_needed(program)
    with quiet_exporter():
        converted = to_onnx(program, ONNX_OPSET)
    session = ort.InferenceSession(onnx_ir.to_proto(converted.model).SerializeToString())
    (result,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), function(x.clone()))


@pytest.mark.parametrize("function", _TRANSLATED)
def test_what_torchlib_translates_is_not_traced_again(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    program = _traced(function, torch.zeros(3, 3))
    decompose_only_where_needed(program)
    assert program.run_decompositions({}) is program


@pytest.mark.parametrize(
    "function",
    [
        _a_row_that_is_seen_after_its_change,
        _change_of_a_transposed_tensor_that_is_read,
        _change_seen_through_a_view,
        _change_of_a_view,
        _change_through_a_dropout,
    ],
)
def test_a_change_that_is_seen_elsewhere_is_left_to_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    program = _traced(function, torch.zeros(3, 3))
    ((result,),) = program.graph.output_node().args
    if function is _change_through_a_dropout and result.target is torch.ops.aten.add_.Tensor:
        pytest.skip("the trace returns what was changed, as that of torch 2.15 does")
    decompose_only_where_needed(program)
    with quiet_exporter():
        assert program.run_decompositions({}) is not program


def test_an_operator_of_the_table_is_decomposed() -> None:
    program = _traced(torch.sin, torch.zeros(3, 3))
    decompose_only_where_needed(program)
    table = {torch.ops.aten.sin.default: lambda x: torch.ops.aten.cos.default(x - torch.pi / 2)}
    with quiet_exporter():
        assert program.run_decompositions(table) is not program


def _traced(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.export.ExportedProgram:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    with quiet_exporter(), torch.no_grad():
        return torch.export.export(Module(), (x,), strict=False)
