"""What users must be told wherever speed could be read off the simulator."""

from __future__ import annotations

SIMULATOR_NOTE = "HTP simulator on the CPU: its speed says nothing about the device's"
