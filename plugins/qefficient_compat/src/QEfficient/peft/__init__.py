"""LoRA adapters."""

from __future__ import annotations

from QEfficient._compat.models import QEffAutoPeftModelForCausalLM

__all__ = ["QEffAutoPeftModelForCausalLM"]
