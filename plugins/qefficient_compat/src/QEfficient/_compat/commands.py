"""What the commands of `QEfficient.cloud` share: flags in both spellings, compiler options, errors in one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from qeff_framework.plugin_api import QEFFError
from QEfficient._compat.notices import logger


class Command(argparse.ArgumentParser):
    """A parser whose flags are spelt with underscores and with hyphens."""

    def flag(self, name: str, *others: str, **options: Any) -> None:
        """Adds ``--name`` and further names."""
        spellings = dict.fromkeys(
            spelling for each in (name, *others) for spelling in (f"--{each}", f"--{each.replace('_', '-')}")
        )
        self.add_argument(*spellings, dest=name, **options)

    def switch(self, name: str, *others: str, help: str) -> None:
        """Adds a flag without a value."""
        self.flag(name, *others, action="store_true", help=help)

    def loading(self, *, trust: bool = False) -> None:
        """Adds flags about where the model comes from."""
        self.flag("model_name", required=True, help="hub id or folder of the model")
        self.flag("local_model_dir", help="folder of weights and configs, in place of the model's name")
        self.flag("cache_dir", help="folder for downloads")
        self.flag("hf_token", help="token for private models")
        if trust:
            self.switch("trust_remote_code", help="run code that the checkpoint brings along")

    def compiling(self, *, device_group_required: bool = False) -> None:
        """Adds flags about sizes and devices."""
        self.flag("num_cores", type=int, required=True, help="cores of a device")
        self.flag("batch_size", type=int, default=1, help="prompts that are run together")
        self.flag("full_batch_size", type=int, help="continuous batching: prompts that decode together")
        self.flag("prompt_len", type=int, default=32, help="tokens of a prompt that one step reads")
        self.flag("ctx_len", type=int, default=128, help="tokens of prompt and answer together")
        self.switch("mxfp6", "mxfp6_matmul", help="store weights of matrix products as MXFP6")
        self.switch("mxint8", "mxint8_kv_cache", help="store the cache as MXINT8")
        self.switch("aic_enable_depth_first", help="schedule depth first")
        self.switch("allow_mxint8_mdp_io", help="compress traffic between devices")
        self.flag("mos", type=int, default=1, help="effort to save on-chip memory")
        self.devices(required=device_group_required)
        self.flag(
            "enable_qnn",
            nargs="?",
            const=True,
            default=False,
            help="compile with the QAIRT tools, with a config if one is given",
        )
        self.flag("backend", help="of this package alone: the backend by name")

    def devices(self, *, required: bool = False) -> None:
        """Adds the flag for devices."""
        self.flag("device_group", type=_numbers, required=required, help="devices, such as [0,1]")

    def prompting(self) -> None:
        """Adds flags about prompts."""
        self.flag("prompt", type=lambda text: text.split("|"), help="prompts with | between them")
        self.flag("prompts_txt_file_path", help="file with a prompt on each line")
        self.flag("generation_len", type=int, help="new tokens of a prompt at most")

    def parsed(self, arguments: Sequence[str] | None, *, options: bool = False) -> dict[str, Any]:
        """The flags by name; with `options` also those that the command does not know, as options of the compiler."""
        self.add_argument("-v", "--verbose", action="store_true", help="tell what is done")
        if options:
            known, others = self.parse_known_args(arguments)
            values = {**vars(known), **_options(others, self)}
        else:
            values = vars(self.parse_args(arguments))
        if values.pop("verbose"):
            logging.basicConfig(level=logging.INFO)
            logger.setLevel(logging.INFO)
        if isinstance(values.get("enable_qnn"), str):
            values["qnn_config"], values["enable_qnn"] = values["enable_qnn"], True
        return values


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.strip("[] ").split(",")]


def _options(arguments: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("-"):
            parser.error(f"unexpected argument '{name}'")
        name, equals, value = name.lstrip("-").partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("-") else "true"
        found[name.replace("-", "_")] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        return text


def run(command: Callable[[], None]) -> int:
    """Runs a command; an error on purpose is one line on standard error and the exit code 1."""
    try:
        command()
    except QEFFError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
