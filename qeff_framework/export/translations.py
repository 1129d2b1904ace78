"""ONNX translations of torch ops that the exporter's own library lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table that `torch.onnx.export` takes."""
    return {torch.ops.aten.erfinv.default: _erfinv}


def _erfinv(y: Any) -> Any:
    """Inverse error function: Winitzki's approximation (relative error 2e-3), then Newton steps, each squaring the error.

    Transformers computes activation thresholds from quantiles of the normal distribution with it.
    """
    a = 0.147
    logarithm = op.Log(op.Sub(1.0, op.Mul(y, y)))
    t = op.Add(op.Mul(logarithm, 0.5), 2.0 / (math.pi * a))
    radicand = op.Sub(op.Mul(t, t), op.Mul(logarithm, 1.0 / a))
    start = op.Mul(op.Sign(y), op.Sqrt(op.Sub(op.Sqrt(radicand), t)))
    x = start
    for _ in range(2):
        error = op.Mul(op.Sub(op.Erf(x), y), op.Exp(op.Mul(x, x)))
        x = op.Sub(x, op.Mul(error, math.sqrt(math.pi) / 2.0))
    return op.Where(op.Less(op.Abs(y), 1.0), x, start)  # at +-1 the value is infinite and has no Newton step
