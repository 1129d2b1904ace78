"""From ONNX to the DLC (rows N2 and N5)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from ....qaic.qaic_standin.compiler.bound_graph import bind_graph
from ....qaic.qaic_standin.compiler.graph_walk import real_inputs, subgraphs
from ....qaic.qaic_standin.compiler.model_file import read_model
from ....qaic.qaic_standin.compiler.operators import check_operators
from ....qaic.qaic_standin.compiler.specializations import Specialization
from ....qaic.qaic_standin.invocation_log import InvocationRecord
from ..dlc_file import Dlc, Graph, Tensor, write_dlc
from ..profiles import Profile
from .io_config import IoConfig, Shape, failed, read_io_config


def convert(values: argparse.Namespace, profile: Profile, record: InvocationRecord) -> Path:
    """Check everything, write the DLC, return its path.

    Raises:
        ToolError, CompileError: what is wrong.
    """
    source = Path(values.input_network)
    if not source.is_file():
        raise failed(f"--input_network {source} does not exist")
    output = Path(values.output_path) if values.output_path else source.with_suffix(".dlc")
    if not output.parent.is_dir():
        raise failed(f"the folder of --output_path {output} does not exist")
    output.unlink(missing_ok=True)
    record.read(source)
    model = read_model(source).model
    check_operators(model, sub_functions=False)
    config = None
    if values.config:
        if not Path(values.config).is_file():
            raise failed(f"--config {values.config} does not exist")
        record.read(Path(values.config))
        config = read_io_config(Path(values.config), model, profile.data_types)
    graphs = _graphs(model, config, values, output.stem)
    for graph in graphs:
        bind_graph(model, [Specialization(name=graph.name, symbols=graph.symbols)])
    tensors = _tensors(model, config, values.preserve_io_datatype)
    whole = onnx.load_model(str(source))
    names = _rename_io(whole)
    dlc = Dlc(
        graphs=graphs,
        tensors=tuple(
            Tensor(name=names[t.name], data_type=t.data_type, scale=t.scale, offset=t.offset) for t in tensors
        ),
        float_bitwidth=values.float_bitwidth,
        target_backend=values.target_backend or "CPU",
    )
    write_dlc(output, dlc, whole)
    record.wrote(output)
    return output


def _graphs(
    model: onnx.ModelProto, config: IoConfig | None, values: argparse.Namespace, stem: str
) -> tuple[Graph, ...]:
    defined = _defined_symbols(model, values)
    if config is None:
        return (Graph(name=stem, symbols=defined),)
    if defined:
        raise failed(
            "shapes come from --config or from --onnx_define_symbol and --source_model_input_shape, not from both"
        )
    count = config.configurations
    symbols = [
        _symbols(model, {name: shapes[min(index, len(shapes) - 1)] for name, shapes in config.shapes.items()})
        for index in range(count)
    ]
    names = [stem] if count == 1 else [f"{stem}_configuration_{index + 1}" for index in range(count)]
    return tuple(Graph(name=name, symbols=bound) for name, bound in zip(names, symbols, strict=True))


def _defined_symbols(model: onnx.ModelProto, values: argparse.Namespace) -> dict[str, int]:
    result: dict[str, int] = {}
    for name, number in values.onnx_define_symbol:
        if not number.isdecimal():
            raise failed(f"--onnx_define_symbol {name}: '{number}' is not a number")
        result[name] = int(number)
    given = {
        name: tuple(int(size) for size in re.findall(r"\d+", shape)) for name, shape in values.source_model_input_shape
    }
    return result | _symbols(model, given)


def _symbols(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Symbol -> value, from the inputs' shapes; one symbol has one value."""
    result: dict[str, int] = {}
    for value in real_inputs(model):
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, (None,) * len(dims)), strict=True):
            if not dim.dim_param or size is None:
                continue
            if result.setdefault(dim.dim_param, size) != size:
                raise failed(f"symbol '{dim.dim_param}' is {result[dim.dim_param]} and, in '{value.name}', {size}")
    return result


def _tensors(model: onnx.ModelProto, config: IoConfig | None, preserved: Sequence[str] | None) -> list[Tensor]:
    """`--config` wins over `--preserve_io_datatype`."""
    values = [*real_inputs(model), *model.graph.output]
    unknown = sorted(set(preserved or ()) - {value.name for value in values})
    if unknown:
        raise failed(f"--preserve_io_datatype: no input or output is called {', '.join(unknown)}")
    result = []
    for value in values:
        graph_type = str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        data_type = config.data_types.get(value.name) if config else None
        if data_type is None:
            keeps = preserved is not None and (not preserved or value.name in preserved)
            if not keeps and graph_type != "float32":
                raise failed(f"'{value.name}' is {graph_type}: the stand-in does not say what it becomes; preserve it")
            data_type = graph_type
        scale, offset = config.quantisation.get(value.name, (0.0, 0)) if config else (0.0, 0)
        result.append(Tensor(name=value.name, data_type=data_type, scale=scale, offset=offset))
    return result


def _rename_io(model: onnx.ModelProto) -> dict[str, str]:
    """Tensor names of a QNN graph are C identifiers: other characters become underscores. Renames in place."""
    names = {
        value.name: re.sub(r"\W", "_", value.name, flags=re.ASCII)
        for value in (*model.graph.input, *model.graph.output)
    }
    if len(set(names.values())) != len(names):
        raise failed("two inputs or outputs have the same name when every special character is an underscore")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.name = names.get(value.name, value.name)
    pending = list(model.graph.node)
    while pending:
        node = pending.pop()
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for graph in subgraphs(node):
            pending.extend(graph.node)
    return names
