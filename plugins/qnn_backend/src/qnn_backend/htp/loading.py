"""Whether a program fits this machine, asked before it is loaded: the simulator accepts programs for any chip without a word."""

from __future__ import annotations

from qeff_framework.plugin_api import CompiledModel, ExecutionError
from qnn_backend import targets
from qnn_backend.htp import provider
from qnn_backend.htp.options import HtpRuntimeOptions
from qnn_backend.versions import version_of

#: Index of the chip's id in the compatibility record ``v2:6:2.51.0:5.51.0:<arch>:<soc>:<vtcm>:0`` of a compiled model.
_SOC_FIELD = 5


def check_program(compiled: CompiledModel, options: HtpRuntimeOptions, *, simulated: bool) -> targets.Soc:
    """The chip that the program was made for.

    Raises:
        ExecutionError: it was made by another version, for another chip than asked for, or nothing here can run it.
    """
    program = compiled.program
    if "graphs" not in program:
        raise ExecutionError(
            f"{compiled.directory} comes from a dry run: it holds graphs, but no program. Compile it first"
        )
    made = targets.find_soc(program["soc"])
    if made is None:
        raise ExecutionError(
            f"the program was made for {program['soc']}, which this version of the backend does not know"
        )
    if options.target is not None and targets.find_soc(options.target) != made:
        raise ExecutionError(
            f"the program was made for {made.name}, not for {options.target}: compile it with target={options.target!r}"
        )
    for name, graph in program["graphs"].items():
        fields = graph["compatibility"].split(":")
        if len(fields) > _SOC_FIELD and fields[_SOC_FIELD] != str(made.id):
            raise ExecutionError(
                f"the binary of {name} was made for the chip with id {fields[_SOC_FIELD]}, but the artifact says {made.name} "
                f"({made.id}): compile the model again"
            )
    for table in program["host_tables"]:
        compiled.path(table["file"])  # raises for a name that leads out of the artifact
    _check_versions(program["versions"])
    if simulated and not provider.has_simulator():
        raise ExecutionError("no NPU was found, and the simulator exists for x86-64 only; see `qeff doctor qnn`")
    return made


def _check_versions(made_with: dict[str, str]) -> None:
    wanted, found = made_with["onnxruntime-qnn"], version_of("onnxruntime-qnn")
    if wanted.split(".")[:2] != found.split(".")[:2]:
        raise ExecutionError(
            f"the program was compiled with onnxruntime-qnn {wanted}, installed is {found}: compile it again, or install "
            f"onnxruntime-qnn=={wanted}"
        )
