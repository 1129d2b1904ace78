"""Writing the static graphs for the compiler. Their weights are one file, however many graphs read them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from qeff_framework.lowering import content_key, write_tensors

#: Smaller initializers stay inside the model file; the compiler's shape inference reads shapes and axes there.
_INLINE_BYTES = 1024


def write_graphs(graphs: Mapping[str, ir.Model], folder: Path) -> dict[str, Path]:
    """Writes ``<name>.onnx`` for each graph, and weights that are not in `folder` yet. The graphs read them there afterwards.

    Raises:
        ArtifactError: the disk has too little space, before anything is written.
    """
    large = {
        content_key(value.const_value): value.const_value
        for model in graphs.values()
        for value in model.graph.initializers.values()
        if value.const_value is not None and not _is_written(value.const_value, folder)
        # A small tensor that lies in a file of the export would not be found from `folder`.
        if value.const_value.nbytes > _INLINE_BYTES or isinstance(value.const_value, ir.ExternalTensor)
    }
    # One tensor may have a name in each graph; external data needs one.
    weights = f"weights_{len(list(folder.glob('weights_*.bin')))}.bin"
    external = write_tensors(list(large.values()), folder, weights)
    by_identity = dict(zip(large, external, strict=True))
    files = {}
    for name, model in graphs.items():
        for value in model.graph.initializers.values():
            tensor = value.const_value
            replacement = None if tensor is None else by_identity.get(content_key(tensor))
            if replacement is not None:
                own = copy.copy(replacement)
                own.name = str(value.name)
                value.const_value = own
        files[name] = folder / f"{name}.onnx"
        ir.save(model, files[name])
    return files


def _is_written(tensor: ir.TensorProtocol, folder: Path) -> bool:
    return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).parent == folder
