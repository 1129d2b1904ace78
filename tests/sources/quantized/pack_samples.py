"""Packs one matrix with the libraries of the formats, and keeps what they make of it: the files in ``samples/``.

It is no test of the suite, which reads the files that it has written. Run it with the libraries on the path, none of which needs
its own dependencies or a GPU::

    pip install --no-deps --target libraries compressed-tensors==0.20.1 bitsandbytes==0.50.2 torchao==0.18.0 loguru \\
        nvidia-modelopt==0.47.0 omegaconf antlr4-python3-runtime pulp
    # and, unpacked into the same folder, the packages `awq` of autoawq 0.2.9 and `auto_gptq` of auto-gptq 0.7.1
    PYTHONPATH=libraries python tests/sources/quantized/pack_samples.py FORMAT ...
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SAMPLES = Path(__file__).parent / "samples"
OUTPUTS, INPUTS = 32, 64
GROUP = 32


def matrix(outputs: int = OUTPUTS, inputs: int = INPUTS) -> torch.Tensor:
    """Rows of different size, so that a scale in the wrong place is seen."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    return weight * torch.linspace(0.5, 2, outputs).unsqueeze(1) + 0.3


def keep(
    name: str,
    settings: dict[str, Any],
    packed: dict[str, torch.Tensor],
    weight: torch.Tensor,
    header: dict[str, str] | None = None,
) -> None:
    """Writes the packed tensors of a module "proj", every eighth row of what the library makes of them, and the settings."""
    tensors = {(key if key.startswith("proj") else f"proj.{key}"): value.contiguous() for key, value in packed.items()}
    tensors["expected"] = weight[::8].float().contiguous()
    metadata = {"quantization_config": json.dumps(settings), "shape": json.dumps(list(weight.shape))} | (header or {})
    save_file(tensors, SAMPLES / f"{name}.safetensors", metadata)


def grouped(bits: int, *, symmetric: bool, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix that lies on the levels, its scales ``[out, groups]`` and zero points. One zero point is 0."""
    weight, count, highest = matrix(), int(groups.max()) + 1, 2**bits - 1
    parts = [weight[:, groups == group] for group in range(count)]
    if symmetric:
        scales = torch.stack([part.abs().amax(1) * 2 / highest for part in parts], 1).half().float()
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low = torch.stack([part.amin(1).clamp(max=0) for part in parts], 1)
        high = torch.stack([part.amax(1).clamp(min=0) for part in parts], 1)
        scales = ((high - low) / highest).half().float()
        zeros = (-low / scales).round().clamp(0, highest)
        zeros[0, 0] = 0
        zeros[1, 0] = highest
    spread, offsets = scales[:, groups], zeros[:, groups]
    return ((weight / spread + offsets).round().clamp(0, highest) - offsets) * spread, scales, zeros


def awq() -> None:
    """AutoAWQ's two layouts."""
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.modules.linear.gemv import WQLinear_GEMV

    weight, scales, zeros = grouped(4, symmetric=False, groups=torch.arange(INPUTS) // GROUP)
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = weight
    for name, kind in (("gemm", WQLinear_GEMM), ("gemv", WQLinear_GEMV)):
        given = (scales.T.contiguous(), zeros.T.contiguous()) if name == "gemm" else (scales, zeros)
        packed = kind.from_linear(linear, 4, GROUP, scales=given[0], zeros=given[1])
        settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": name}
        keep(f"awq_{name}", settings, dict(packed.state_dict()), weight)


def gptq() -> None:
    """AutoGPTQ's layout, with its own reading of it."""
    _without_package_files("auto_gptq")
    _without_package_files("auto_gptq.nn_modules")
    from auto_gptq.nn_modules.qlinear import qlinear_cuda as library

    order = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(1)) // GROUP
    for bits in (2, 3, 4, 8):
        for acts, symmetric in ((False, True), (True, False)):
            groups = order if acts else torch.arange(INPUTS) // GROUP
            weight, scales, zeros = grouped(bits, symmetric=symmetric, groups=groups)
            # This version of the library does not take a zero point back that was 0, and wrote as -1.
            zeros = zeros.clamp(min=1)
            spread, offsets = scales[:, groups], zeros[:, groups]
            weight = ((weight / spread + offsets).round().clamp(0, 2**bits - 1) - offsets) * spread
            linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
            linear.weight.data = weight
            layer = library.QuantLinear(bits, GROUP, INPUTS, OUTPUTS, bias=False, weight_dtype=torch.float32)
            layer.pack(linear, scales, zeros, groups.int())
            expected = layer(torch.eye(INPUTS)).T
            settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": acts, "sym": symmetric}
            keep(f"gptq_{bits}bit{'_act_order' if acts else ''}", settings, dict(layer.state_dict()), expected)


def compressed_tensors() -> None:
    """The compressors of compressed-tensors."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    cases: dict[str, dict[str, Any]] = {
        "float-quantized_tensor": {"num_bits": 8, "type": "float", "strategy": "tensor"},
        "float-quantized_channel": {"num_bits": 8, "type": "float", "strategy": "channel"},
        "float-quantized_block": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [24, 16]},
        "int-quantized_channel": {"num_bits": 8, "type": "int", "strategy": "channel"},
        "naive-quantized_channel": {"num_bits": 8, "type": "int", "strategy": "channel"},
        "pack-quantized_group": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
        "pack-quantized_channel": {"num_bits": 8, "type": "int", "strategy": "channel"},
        "pack-quantized_3bit": {
            "num_bits": 3,
            "type": "int",
            "strategy": "group",
            "group_size": 16,
            "symmetric": False,
        },
        "pack-quantized_asymmetric": {
            "num_bits": 4,
            "type": "int",
            "strategy": "group",
            "group_size": 32,
            "symmetric": False,
        },
        "nvfp4-pack-quantized": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        "mxfp4-pack-quantized": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
    }
    for name, arguments in cases.items():
        layout = name.partition("_")[0]
        weights = QuantizationArgs(**arguments)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        weight = matrix()
        blocks = weight
        rows, columns = arguments.get("block_structure", (1, arguments.get("group_size", INPUTS)))
        if arguments["strategy"] == "tensor":
            rows = OUTPUTS
        padded = torch.nn.functional.pad(weight, (0, -INPUTS % columns, 0, -OUTPUTS % rows))
        blocks = padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
        global_scale = None
        if layout.startswith("nvfp4"):
            global_scale = (448 * 6 / weight.abs().max()).reshape(1)
        scale, zero = calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), weights, global_scale=global_scale)
        state = {"weight": weight, "weight_scale": scale if arguments["strategy"] != "tensor" else scale.reshape(1)}
        if not weights.symmetric:
            state["weight_zero_point"] = zero
        if global_scale is not None:
            state["weight_global_scale"] = global_scale
        compressor = BaseCompressor.get_value_from_registry(layout)
        packed = compressor.compress(state, scheme)
        expected = compressor.decompress(dict(packed), scheme)["weight"]
        group = {"targets": ["Linear"], "weights": json.loads(weights.model_dump_json())}
        settings = {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}
        keep(f"compressed-tensors_{name}", settings, packed, expected)


def bitsandbytes() -> None:
    """The CPU functions of bitsandbytes; enough rows for a second block of the scales' scales."""
    from bitsandbytes import functional

    weight = matrix(96, 192)
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            packed, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
            tensors = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
            settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
            name = f"bitsandbytes_{kind}{'_nested' if nested else ''}"
            keep(name, settings, {"weight": packed, **tensors}, functional.dequantize_4bit(packed, state))
    numbers, scales, _ = functional.int8_vectorwise_quant(matrix().half())
    expected = torch.ops.bitsandbytes.int8_vectorwise_dequant(numbers, scales)
    state = {"weight": numbers, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    keep("bitsandbytes_8bit", {"quant_method": "bitsandbytes", "load_in_8bit": True}, state, expected)


def torchao() -> None:
    """The classes of torchao that a CPU makes."""
    from torchao import quantization
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    grouped = {"weight_dtype": torch.int4, "granularity": quantization.PerGroup(GROUP)}
    cases = {
        "int8": quantization.Int8WeightOnlyConfig(version=2),
        "float8": quantization.Float8WeightOnlyConfig(),
        "intx": quantization.IntxWeightOnlyConfig(**grouped),
        "intx_asymmetric": quantization.IntxWeightOnlyConfig(
            **grouped, mapping_type=quantization.MappingType.ASYMMETRIC
        ),
    }
    for name, config in cases.items():
        model = torch.nn.Sequential(torch.nn.Linear(INPUTS, OUTPUTS, bias=False))
        model[0].weight.data = matrix()
        quantization.quantize_(model, config)
        weight = model[0].weight.data
        tensors, header = flatten_tensor_state_dict({"proj.weight": weight})
        keep(f"torchao_{name}", {"quant_method": "torchao"}, tensors, weight.dequantize(), header)


def modelopt() -> None:
    """Model Optimizer's own tensors."""
    for package in (".torch", *(f".torch.quantization{part}" for part in ("", ".qtensor", ".backends"))):
        _without_package_files(f"modelopt{package}")
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    weight = matrix()
    packed, scales, whole = NVFP4QTensor.quantize(weight.clone(), 16)
    tensors = {"weight": packed._quantized_data, "weight_scale": scales, "weight_scale_2": whole}
    expected = packed.dequantize(torch.float32, scale=scales, double_scale=whole, block_sizes={-1: 16})
    keep("modelopt_nvfp4", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, tensors, expected)


def _without_package_files(name: str) -> None:
    """Lets modules of a package be imported whose ``__init__`` wants more than they do."""
    inside = name.replace(".", "/")
    folder = next((Path(path) / inside for path in sys.path if (Path(path) / inside).is_dir()), None)
    if folder is not None:
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


if __name__ == "__main__":
    SAMPLES.mkdir(exist_ok=True)
    _without_package_files("awq")
    for chosen in sys.argv[1:] or ("awq", "gptq", "compressed_tensors", "bitsandbytes", "torchao", "modelopt"):
        globals()[chosen]()
