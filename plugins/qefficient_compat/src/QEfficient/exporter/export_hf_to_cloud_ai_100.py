"""Exporting a model by its name."""

from __future__ import annotations

from QEfficient._compat.old_api import qualcomm_efficient_converter

__all__ = ["qualcomm_efficient_converter"]
