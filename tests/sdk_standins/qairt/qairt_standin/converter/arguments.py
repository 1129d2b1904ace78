"""The converter's options (row N1)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

BACKENDS = ("AIC", "CPU", "DSP", "GPU", "HTA", "HTP", "LPAI")

# Accepted by the real tool; the stand-in's DLC would not be what was asked for, so it refuses them after parsing.
_NOT_MODELLED = (
    "--onnx_override_batch",
    "--dump_config_template",
    "--quantization_overrides",
    "--op_package_config",
    "--converter_op_package_lib",
)


class _Once(argparse.Action):
    """A repeated option is a mistake of the caller, although argparse would take the last one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        seen = namespace.__dict__.setdefault("_seen", set())
        if self.dest in seen:
            parser.error(f"argument {option_string}: given twice")
        seen.add(self.dest)
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The values. Ends the process with exit code 2 and a usage line for what argparse refuses."""
    # No abbreviations: what they mean changes with each new option of the tool.
    parser = argparse.ArgumentParser(prog="qairt-converter", allow_abbrev=False)
    add = parser.add_argument
    add("--input_network", "-i", required=True, action=_Once)
    add("--output_path", "-o", action=_Once)
    add("--config", action=_Once)
    add("--preserve_io_datatype", nargs="*", action=_Once)
    add("--float_bitwidth", type=int, choices=(16, 32), default=32, action=_Once)
    add("--float_bias_bitwidth", type=int, choices=(0, 16, 32), default=0, action=_Once)
    add("--onnx_skip_simplification", "-oss", nargs=0, default=False, action=_Once)
    add("--onnx_defer_loading", nargs=0, default=False, action=_Once)
    add("--target_backend", choices=BACKENDS, action=_Once)
    add("--onnx_define_symbol", nargs=2, metavar=("NAME", "VALUE"), action="append", default=[])
    add("--source_model_input_shape", "-s", nargs=2, metavar=("NAME", "SHAPE"), action="append", default=[])
    add("--dry_run", nargs="?", const="info", action=_Once)
    add("--debug", nargs="?", type=int, const=-1, action=_Once)
    for option in _NOT_MODELLED:
        add(option, action=_Once)
    values = parser.parse_args(list(argv))
    for option in _NOT_MODELLED:
        if getattr(values, option.removeprefix("--")) is not None:
            parser.error(f"the stand-in does not model {option}")
    return values
