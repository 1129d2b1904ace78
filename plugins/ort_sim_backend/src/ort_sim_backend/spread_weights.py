"""Large weights in files of their own, named after what they hold.

Programs of several sizes share the files that are equal as a whole. Where the graph of a size has constants of that size among
its weights, as transforms of pictures are, no whole file would be equal.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir

#: What Winograd's algorithm makes of a kernel has this in its name.
TRANSFORMED = "_winograd_"
#: Smaller ones lie in the model: a file is shared from this size on.
_LEAST_BYTES = 1 << 20


def has_transformed_weights(model: ir.Model) -> bool:
    """Whether a convolution became products of tiles, beside whose weights lie constants of its size."""
    return any(TRANSFORMED in name for name in model.graph.initializers)


def spread_weights(file: Path, weights_file: str) -> None:
    """Takes `weights_file` beside the model `file` apart, one weight at a time; small ones come into the model."""
    model = ir.load(file)
    written: set[str] = set()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or Path(tensor.location).name != weights_file:
            continue
        content = tensor.tobytes()
        if len(content) < _LEAST_BYTES:
            value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
            continue
        name = f"{file.name}.{hashlib.sha256(content).hexdigest()[:16]}.data"
        if name not in written:
            (file.parent / name).write_bytes(content)
            written.add(name)
        value.const_value = ir.ExternalTensor(
            name, 0, len(content), tensor.dtype, shape=tensor.shape, name=tensor.name or "", base_dir=file.parent
        )
        tensor.release()
    ir.save(model, file)
    (file.parent / weights_file).unlink()
