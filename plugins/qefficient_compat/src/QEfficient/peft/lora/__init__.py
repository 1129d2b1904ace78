"""LoRA adapters that each prompt chooses among."""

from __future__ import annotations

from QEfficient._compat.models import QEffAutoLoraModelForCausalLM

__all__ = ["QEffAutoLoraModelForCausalLM"]
