"""The exporter without its repeated work gives what the exporter gives."""

from __future__ import annotations

import pytest
import torch
from onnxscript.values import TracedOnnxFunction
from torch.onnx._internal.exporter import _core, _fx_passes, _schemas
from torch.onnx._internal.fx.passes import type_promotion

from qeff_framework.dialect.names import ONNX_OPSET
from qeff_framework.export import translations
from qeff_framework.export.decompose import decompose_only_where_needed
from qeff_framework.export.trace import quiet_exporter


class Promotes(torch.nn.Module):
    def forward(self, counts: torch.Tensor, half: torch.Tensor, flags: torch.Tensor) -> tuple[torch.Tensor, ...]:
        share = counts / 3  # integers that are divided
        mixed = torch.where(flags, half, counts)  # two types of tensors
        return (
            share * 2 + 1,  # a float and integers of Python
            mixed - half.float() * counts.shape[0],  # a size
            flags.sum(-1) + (counts > half).any(),
            half * 0.5 + half,  # nothing is promoted
            torch.cat([counts, half], 0).pow(2),
        )


def traced() -> torch.export.ExportedProgram:
    arguments = (torch.arange(6).reshape(2, 3), torch.ones(2, 3, dtype=torch.float16), torch.ones(2, 3) > 0)
    rows = torch.export.Dim("rows")
    shapes = ({0: rows}, {0: rows}, {0: rows})
    with quiet_exporter():
        program = torch.export.export(Promotes(), arguments, dynamic_shapes=shapes)
    decompose_only_where_needed(program)
    return program


def text(program: torch.export.ExportedProgram) -> str:
    with quiet_exporter():
        return str(translations.to_onnx(program, ONNX_OPSET).model)


def test_the_graph_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = text(traced())
    assert _fx_passes.insert_type_promotion_nodes.__module__ == _fx_passes.__name__
    monkeypatch.setattr(translations, "translations", lambda opset: None)
    theirs = text(traced())
    assert "Cast" in theirs
    assert ours == theirs


def test_signatures_are_those_that_the_exporter_reads() -> None:
    """A release of onnxscript may read them in another way than torch does."""
    table = translations.translations(ONNX_OPSET).functions
    entries = [
        entry for entries in table.values() for entry in entries if isinstance(entry.onnx_function, TracedOnnxFunction)
    ]
    read = [_schemas.op_signature_from_function(entry.onnx_function, "", "") for entry in entries]
    assert len(read) > 400
    differing = [
        entry.signature.name
        for entry, expected in zip(entries, read, strict=True)
        if (entry.signature.params, entry.signature.outputs) != (expected.params, expected.outputs)
    ]
    assert differing == []


def test_a_version_of_torch_without_these_parts_exports_through_its_public_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = text(traced())
    monkeypatch.delattr(_core, "export")
    monkeypatch.delattr(type_promotion, "TypePromotionTable")
    translations.translations.cache_clear()
    translations._promotion.cache_clear()
    try:
        assert translations.translations(ONNX_OPSET) is None
        assert translations._promotion() is None
    finally:
        monkeypatch.undo()
        translations.translations.cache_clear()
        translations._promotion.cache_clear()
    assert text(traced()) == expected
