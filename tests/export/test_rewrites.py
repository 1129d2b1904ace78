from __future__ import annotations

import torch

from qeff_framework.export.rewrites import rewrite_untranslatable


class Rotation(torch.nn.Module):
    def forward(self, pairs, angles):
        turns = torch.polar(torch.ones_like(angles), angles)
        turned = torch.view_as_complex(pairs) * turns.unsqueeze(1) * turns.unsqueeze(-1).squeeze(-1).unsqueeze(-2)
        return torch.view_as_real(turned.flatten(0, 1))


class InverseError(torch.nn.Module):
    def forward(self, x):
        return torch.special.erfinv(x)


def _targets(program):
    return [str(node.target) for node in program.graph.nodes]


def test_complex_numbers_get_an_axis_through_their_parts():
    arguments = (torch.randn(2, 4, 3, 2), torch.randn(2, 3))
    program = torch.export.export(Rotation(), arguments)
    rewrite_untranslatable(program)
    assert "aten.view_as_real.default" in _targets(program)
    for node in program.graph.nodes:
        if str(node.target) == "aten.unsqueeze.default":
            assert not node.meta["val"].is_complex()
    torch.testing.assert_close(program.module()(*arguments), Rotation()(*arguments))


def test_the_inverse_of_erf_is_exact_to_rounding():
    x = torch.cat([torch.linspace(-0.9999, 0.9999, 2001), torch.tensor([0.0, 1e-6, -1e-6])])
    program = torch.export.export(InverseError(), (x,))
    rewrite_untranslatable(program)
    assert "aten.erfinv.default" not in _targets(program)
    result = program.module()(x)
    # Near 1 erfinv magnifies rounding without bound; what can be asked for everywhere is the way back.
    assert (torch.erf(result) - x).abs().max() <= 2e-7
    middle = x.abs() < 0.9
    torch.testing.assert_close(result[middle], torch.special.erfinv(x)[middle], rtol=1e-6, atol=1e-7)


class SqueezesRows(torch.nn.Module):
    def forward(self, x):
        return x.squeeze(0) + x.unsqueeze(1).squeeze(1)


def test_an_axis_of_symbolic_size_stays():
    x = torch.randn(2, 3)
    program = torch.export.export(SqueezesRows(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    rewrite_untranslatable(program)
    assert [node.args[1] for node in program.graph.nodes if "squeeze.dim" in str(node.target)] == [1]
    torch.testing.assert_close(program.module()(x), 2 * x)


class ProductsOverUnwrittenMemory(torch.nn.Module):
    def forward(self, unwritten, left, right):
        row, matrix, many = unwritten[0, 0], unwritten[0], unwritten
        changed = torch.zeros(2, 2)
        changed.copy_(matrix)
        return (
            torch.baddbmm(many, left, right, beta=0, alpha=0.5),
            torch.addbmm(matrix, left, right, beta=0),
            torch.addmm(matrix, left[0], right[0], beta=0, alpha=2),
            torch.addmv(row, left[0], right[0, :, 0], beta=0),
            torch.addr(matrix, left[0, 0, :2], right[0, 0], beta=0),
            changed.addmm_(left[0], right[0], beta=0),
            torch.addmm(right[0, :2], left[0], right[0], beta=2),
        )


def test_what_is_multiplied_by_nothing_is_not_read():
    # Attention of early diffusers adds to uninitialised memory with a factor of 0.
    arguments = (torch.full((3, 2, 2), torch.nan), torch.randn(3, 2, 4), torch.randn(3, 4, 2))
    expected = ProductsOverUnwrittenMemory()(*arguments)
    program = torch.export.export(ProductsOverUnwrittenMemory(), arguments)
    rewrite_untranslatable(program)
    assert [name for name in _targets(program) if name.startswith(("aten.add", "aten.badd"))] == ["aten.addmm.default"]
    torch.testing.assert_close(program.module()(*arguments), expected)
