"""Pipelines for images and videos."""

from __future__ import annotations

from QEfficient._compat.models import QEffFluxPipeline, QEffWanImageToVideoPipeline, QEffWanPipeline

__all__ = ["QEffFluxPipeline", "QEffWanImageToVideoPipeline", "QEffWanPipeline"]
