"""Packed weights, read one matrix at a time: as the libraries of the formats read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qeff_framework.errors import CheckpointError
from qeff_framework.sources.quantized import QuantizedCheckpoint
from tests.sources.quantized.packing import GPTQ, gptq

#: What `pack_samples` has made with the libraries.
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.safetensors"))


def read_weight(path: Path, settings: dict[str, Any]) -> torch.Tensor:
    """The weight of the module "proj" in a file of packed tensors."""
    weights = QuantizedCheckpoint(settings, [path], "sample").state_dict(torch.nn.Module())
    return weights["proj.weight"][...]


def settings_of(path: Path) -> dict[str, Any]:
    """The ``quantization_config`` in the header of a sample."""
    with safe_open(path, framework="pt") as file:
        settings: dict[str, Any] = json.loads(file.metadata()["quantization_config"])
    return settings


def _compressed(scheme: dict[str, Any]) -> dict[str, Any]:
    """Settings of compressed-tensors with one group."""
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": scheme}}}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_weight_is_what_its_library_makes_of_it(path: Path) -> None:
    weight = read_weight(path, settings_of(path))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    expected = load_file(path)["expected"]
    assert list(weight.shape) == json.loads(metadata["shape"])
    assert weight.dtype == torch.float32
    # Some libraries multiply in float16; that of NVFP4 in bfloat16.
    rounding = 2**-8 if "nvfp4" in path.stem else 2**-11
    torch.testing.assert_close(weight[::8], expected, rtol=rounding, atol=1e-6)


def test_zero_points_of_gptq_in_both_forms(tmp_path: Path) -> None:
    """The first form keeps each zero point less 1, the second as it is; 0 less 1 is the highest level."""
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    zeros = torch.tensor([0, 1, 8, 15, 3, 0, 15, 7])
    levels = torch.arange(32 * 8).reshape(32, 8) % 16
    for layout, offset in (("gptq", 1), ("gptq_v2", 0)):
        tensors = {
            "proj.qweight": _words(levels.T).T.contiguous(),
            "proj.qzeros": _words((zeros - offset).unsqueeze(0) % 16),
            "proj.scales": torch.full((1, 8), 0.5).half(),
            "proj.g_idx": torch.zeros(32, dtype=torch.int32),
        }
        save_file(tensors, tmp_path / f"{layout}.safetensors")
        weight = read_weight(tmp_path / f"{layout}.safetensors", settings | {"checkpoint_format": layout})
        assert torch.equal(weight, (levels - zeros).T * 0.5)


def test_the_groups_of_gptq_where_the_file_does_not_say_them(tmp_path: Path) -> None:
    packed, expected = gptq(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
    groups = packed.pop("g_idx")
    path = tmp_path / "a.safetensors"
    for given in ({}, {"g_idx": torch.zeros_like(groups)}, {"g_idx": groups}):
        save_file({f"proj.{name}": value.contiguous() for name, value in {**packed, **given}.items()}, path)
        torch.testing.assert_close(read_weight(path, GPTQ), expected)
    save_file({f"proj.{name}": value.contiguous() for name, value in packed.items()}, path)
    with pytest.raises(CheckpointError, match=r"lacks proj\.g_idx.*desc_act=true"):
        read_weight(path, {**GPTQ, "desc_act": True})


def _words(values: torch.Tensor) -> torch.Tensor:
    """Eight levels in a word, the first one lowest."""
    numbers = [
        [sum(int(value) << (4 * place) for place, value in enumerate(word)) for word in row.split(8)] for row in values
    ]
    return torch.tensor(numbers).to(torch.int32)


def test_other_kinds_of_modelopt(tmp_path: Path) -> None:
    settings = {"quant_method": "modelopt", "quant_algo": "FP8"}
    numbers = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    tensors = {"proj.weight": numbers, "proj.weight_scale": torch.tensor(0.25), "proj.input_scale": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert torch.equal(read_weight(tmp_path / "a.safetensors", settings), numbers.float() * 0.25)
    save_file({**tensors, "proj.pre_quant_scale": torch.ones(8)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="modelopt with FP8, which scales the inputs of proj as well; give"):
        read_weight(tmp_path / "b.safetensors", settings)
    save_file({**tensors, "proj.weight": torch.zeros(3, 4, dtype=torch.uint8)}, tmp_path / "c.safetensors")
    with pytest.raises(
        CheckpointError, match="modelopt with W4A16_AWQ, whose numbers of type U8 in proj.weight are not read here"
    ):
        read_weight(tmp_path / "c.safetensors", {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"})


@pytest.mark.parametrize("suffix", ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"])
@pytest.mark.parametrize(
    ("method", "scales", "factors"),
    [
        ("fbgemm_fp8", torch.tensor([[0.5], [2.0]]), torch.tensor([[0.5], [2.0]])),
        ("fp8", torch.tensor(3.0), torch.tensor(3.0)),
        ("fp8", torch.tensor([[1.0, 4.0]]).to(torch.float8_e8m0fnu), torch.tensor([1.0] * 32 + [4.0] * 32)),
        (
            "mxfp8",
            torch.tensor([[127, 126], [129, 127]]).byte(),
            torch.tensor([[1.0, 0.5], [4, 1]]).repeat_interleave(32, 1),
        ),
    ],
    ids=["rows", "one", "exponents", "bytes"],
)
def test_scales_of_float8(
    method: str, scales: torch.Tensor, factors: torch.Tensor, suffix: str, tmp_path: Path
) -> None:
    numbers = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    save_file({"proj.weight": numbers, f"proj.{suffix}": scales}, tmp_path / "a.safetensors")
    weight = read_weight(tmp_path / "a.safetensors", {"quant_method": method})
    assert torch.equal(weight, numbers.float() * factors)


def test_blocks_of_float8_that_do_not_divide_the_matrix(tmp_path: Path) -> None:
    """Equal parts of 150 rows would be 75: the size that Transformers has by default is taken, or the stated one alone."""
    numbers = torch.randn(150, 4, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    save_file(
        {"proj.weight": numbers, "proj.weight_scale_inv": torch.tensor([[2.0], [5.0]])}, tmp_path / "a.safetensors"
    )
    factors = torch.tensor([2.0] * 128 + [5.0] * 22).unsqueeze(1)
    assert torch.equal(read_weight(tmp_path / "a.safetensors", {"quant_method": "fp8"}), numbers.float() * factors)
    with pytest.raises(CheckpointError, match=r"proj\.weight is \[150, 4\] and its scales are \[2, 1\]"):
        read_weight(tmp_path / "a.safetensors", {"quant_method": "fp8", "weight_block_size": [64, 64]})


def test_groups_and_zero_points_of_compressed_tensors(tmp_path: Path) -> None:
    """Zero points as older versions saved them, a second group of another size, and a last block that is shorter."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(16, (8, 20), generator=generator)
    scales, zeros = torch.rand(8, 3, generator=generator), torch.randint(-8, 8, (8, 3), generator=generator)
    words = torch.nn.functional.pad(levels, (0, 4)).unflatten(1, (3, 8)) << (4 * torch.arange(8))
    tensors = {
        "proj.weight_packed": words.sum(2).to(torch.int32),
        "proj.weight_scale": scales,
        "proj.weight_zero_point": zeros.to(torch.int8),
        "proj.weight_shape": torch.tensor([8, 20]),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    groups = {name: {"weights": {"num_bits": 4, "group_size": size}} for name, size in (("a", 4), ("b", 8))}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    spread = torch.arange(20) // 8
    expected = (levels - 8 - zeros[:, spread]) * scales[:, spread]
    torch.testing.assert_close(read_weight(tmp_path / "a.safetensors", settings), expected)
    # What is to be rounded while the model runs is no packed weight.
    save_file(
        {"proj.weight": torch.ones(8, 20), "proj.weight_scale": scales[:, :1].clone()}, tmp_path / "b.safetensors"
    )
    with pytest.raises(
        CheckpointError, match=r"proj\.weight as floating-point numbers beside its scale.*save_compressed"
    ):
        read_weight(tmp_path / "b.safetensors", {**settings, "format": "dense"})


@pytest.mark.parametrize(
    ("settings", "stated"),
    [
        ({"quant_method": "awq", "bits": 4, "version": "marlin"}, "AWQ.*'marlin'.*'gemm' and 'gemv'"),
        ({"quant_method": "awq", "bits": 4, "backend": "llm-awq"}, "AWQ.*'llm-awq'"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "bitblas"}, "GPTQ.*'bitblas'.*'gptq' and 'gptq_v2'"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "GPTQ.*'marlin'"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "compressed-tensors.*'marlin-24'"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"R1": {}}}}, "rotations"),
        ({"quant_method": "torchao"}, "torchao.*proj.weight is a Int4Tensor.*Int8Tensor"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes', and none of its weights is packed"),
    ],
)
def test_layouts_that_are_not_read_are_named(settings: dict[str, Any], stated: str, tmp_path: Path) -> None:
    header = {"proj.weight": '{"_type": "Int4Tensor", "_data": {}}'}
    save_file({"proj.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors", header)
    with pytest.raises(CheckpointError, match=f"sample.*{stated}.*(without quantisation|out of the config)"):
        read_weight(tmp_path / "a.safetensors", settings)


def test_parts_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [2, 2]}
    tensors = {"proj.weight": torch.ones(4, 6).to(torch.float8_e4m3fn), "proj.weight_scale_inv": torch.ones(5, 7)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"proj\.weight is \[4, 6\] and its scales are \[5, 7\]"):
        read_weight(tmp_path / "a.safetensors", settings)
    save_file({"proj.weight": tensors["proj.weight"]}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"proj\.weight as 8-bit numbers without scales"):
        read_weight(tmp_path / "b.safetensors", settings)


W8, W4 = {"num_bits": 8}, {"num_bits": 4, "group_size": 2}
ROWS = torch.ones(4, 1)


@pytest.mark.parametrize(
    ("settings", "tensors", "absent"),
    [
        ({"quant_method": "gptq"}, {"qweight": torch.ones(1, 4).int(), "scales": ROWS.T}, "qzeros"),
        ({"quant_method": "awq"}, {"qweight": torch.ones(8, 1).int(), "qzeros": torch.ones(1, 1).int()}, "scales"),
        (
            _compressed({**W8, "symmetric": False}),
            {"weight": torch.ones(4, 8).char(), "weight_scale": ROWS},
            "weight_zero_point",
        ),
        (
            _compressed(W4),
            {"weight_packed": torch.ones(4, 1).int(), "weight_shape": torch.tensor([4, 8])},
            "weight_scale",
        ),
        (
            _compressed({**W4, "actorder": "group"}),
            {
                "weight_packed": torch.ones(4, 1).int(),
                "weight_shape": torch.tensor([4, 8]),
                "weight_scale": torch.ones(4, 4),
            },
            "weight_g_idx",
        ),
        (
            _compressed(W4),
            {"weight_packed": torch.ones(4, 8).byte(), "weight_scale": ROWS.to(torch.float8_e4m3fn)},
            "weight_global_scale",
        ),
    ],
)
def test_an_absent_part_is_named_before_anything_is_read(
    settings: dict[str, Any], tensors: dict[str, torch.Tensor], absent: str, tmp_path: Path
) -> None:
    save_file({f"proj.{name}": tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"sample lacks proj\.{absent}, .*download"):
        QuantizedCheckpoint(settings, [tmp_path / "a.safetensors"], "sample")


#: What is done to a part; none of it leaves a weight that fits together.
_DAMAGE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "half of its rows": lambda part: part[: len(part) // 2],
    "its rows twice": lambda part: torch.cat([part, part]),
    "another type": lambda part: part.int() if part.is_floating_point() else part.float(),
}


_FITTING = {
    # Zero points may be of any type.
    ("proj.weight_zero_point", "another type"),
    ("proj._weight_zero_point", "another type"),
    # The inputs of AWQ are counted by this part alone: the loader compares them with the model's.
    ("awq", "proj.qweight", "half of its rows"),
    ("awq", "proj.qweight", "its rows twice"),
}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_part_that_does_not_fit_the_others_is_named_before_anything_is_read(path: Path, tmp_path: Path) -> None:
    settings, tensors = settings_of(path), load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    messages = {}
    for name, part in tensors.items():
        # One scale for all fits any number of rows.
        if name.startswith(("expected", "proj.weight.quant_state")) or part.numel() < 2 or "_tensor" in path.stem:
            continue
        for damage, change in _DAMAGE.items():
            if (path.stem.partition("_")[0], name, damage) in _FITTING or (name, damage) in _FITTING:
                continue
            save_file({**tensors, name: change(part).contiguous()}, tmp_path / "a.safetensors", header)
            try:
                QuantizedCheckpoint(settings, [tmp_path / "a.safetensors"], "sample")
                messages[f"{name}, {damage}"] = "nothing"
            except CheckpointError as error:
                messages[f"{name}, {damage}"] = str(error)
    assert not {told: message for told, message in messages.items() if "proj." not in message}


@pytest.mark.parametrize("text", [b"{", b'{"blocksize": 0, "shape": [4, 8]}', b"[]", b"\xff"])
def test_a_state_of_bitsandbytes_that_says_nothing(text: bytes, tmp_path: Path) -> None:
    state = torch.tensor(list(text), dtype=torch.uint8)
    save_file({"proj.weight.quant_state.bitsandbytes__nf4": state}, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"quant_state\.bitsandbytes__nf4, which does not say the shape.*download"
    ):
        QuantizedCheckpoint({"quant_method": "bitsandbytes"}, [tmp_path / "a.safetensors"], "sample")


@pytest.mark.parametrize("method", ["compressed-tensors", "modelopt", "bitsandbytes"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_packed_numbers_without_scales_are_no_weights(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({"proj.weight": torch.ones(4, 8).to(dtype), "norm.weight": torch.ones(8)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"sample is quantised by {method}.*proj\.weight.*without the scales"):
        QuantizedCheckpoint({"quant_method": method}, [tmp_path / "a.safetensors"], "sample")


def test_groups_of_gptq_without_scales(tmp_path: Path) -> None:
    tensors = {"qweight": torch.ones(2, 4).int(), "qzeros": torch.ones(2, 1).int(), "scales": torch.ones(2, 4)}
    tensors["g_idx"] = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    save_file({f"proj.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"proj\.g_idx with the groups 0 to 2, and scales for 2"):
        read_weight(tmp_path / "a.safetensors", {"quant_method": "gptq"})
