"""Targets with a Hexagon NPU: compiled and, where there is no such chip, simulated with the ``onnxruntime-qnn`` wheel."""
