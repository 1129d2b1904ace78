"""Loaded programs that read what a processor returns."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError
from qeff_framework.runtime.runner import CompiledRunner

if TYPE_CHECKING:
    from qeff_framework.single_pass.signal_runner import SignalRunner


class ProcessedRunner(CompiledRunner):
    """A loaded program with a processor that prepares sound or images for it."""

    @cached_property
    def processor(self) -> Any:
        """The processor that the artifact carries. Needs Transformers, and what the processor itself needs."""
        directory = self.compiled.directory / "processor"
        if not directory.is_dir():
            raise InputError(f"{self.compiled.directory} carries no processor; pass processor=..., or what one returns")
        from transformers import AutoProcessor

        load: Any = AutoProcessor.from_pretrained
        return load(directory)

    @cached_property
    def _signals(self) -> SignalRunner:
        from qeff_framework.single_pass.signal_runner import SignalRunner

        return SignalRunner(self.session)


def check_mapping(inputs: object, name: str) -> None:
    """Raises `InputError` for anything but a mapping, such as the sound or the image itself; `name` is what one should hold."""
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"the program takes what the model's processor returns: a mapping with {name}; got {type(inputs).__name__}"
        )


def processor_output(inputs: Mapping[str, Any] | None, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a processor returned, given as one argument or as keywords."""
    given = {name: value for name, value in tensors.items() if value is not None}
    if inputs is not None and given:
        raise InputError(f"inputs and {', '.join(given)} were given; give the processor's output once")
    if inputs is None and not given:
        raise InputError("no inputs were given; give what the model's processor returns")
    return inputs if inputs is not None else given
