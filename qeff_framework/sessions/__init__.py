"""What sessions of every backend have in common: choosing a step, checking its inputs, retained states, and a base class.

Part of the surface that backends may import, versioned with `qeff_framework.plugin_api`. Importing it loads NumPy and nothing
heavier.
"""

from __future__ import annotations

from qeff_framework.sessions.base import BaseSession
from qeff_framework.sessions.buffers import allocate, padding_inputs, state_buffers, write_tokens
from qeff_framework.sessions.checks import check_positions, check_rows, check_step
from qeff_framework.sessions.host_graph import HostGraph
from qeff_framework.sessions.selection import StepSelector
from qeff_framework.sessions.shapes import Shape, describe_shapes, host_inputs, host_outputs, resolve_shape
from qeff_framework.sessions.specializations import check_distinct_shapes, check_specializations

__all__ = [
    "BaseSession",
    "HostGraph",
    "Shape",
    "StepSelector",
    "allocate",
    "check_distinct_shapes",
    "check_positions",
    "check_rows",
    "check_specializations",
    "check_step",
    "describe_shapes",
    "host_inputs",
    "host_outputs",
    "padding_inputs",
    "resolve_shape",
    "state_buffers",
    "write_tokens",
]
