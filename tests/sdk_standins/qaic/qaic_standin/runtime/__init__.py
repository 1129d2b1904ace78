"""The stand-in `qaicrt`: the runtime's Python objects over a reference execution in ONNX Runtime."""
