"""The compile stage from request to artifact."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qeff_framework.lowering import specialized_graphs, take_out_angles, writing_memory
from qeff_framework.plugin_api import (
    BackendUnavailableError,
    CompiledModel,
    CompileError,
    CompileRequest,
    announce_memory,
)
from qeff_framework.sessions import check_specializations
from qeff_framework.toolchains import LOG_FILE, Toolchain
from qnn_backend import targets
from qnn_backend.htp.compiling import describe
from qnn_backend.htp.graph_files import write_graphs
from qnn_backend.htp.host_tables import save_table
from qnn_backend.htp.lowering import updated_states
from qnn_backend.htp.lowering.compressed_products import compressed_products
from qnn_backend.htp.lowering.host_embeddings import take_out_embeddings
from qnn_backend.htp.lowering.residual_scaling import (
    LIMIT,
    ScaledWeights,
    factor_for,
    normed_values,
    scale_residual,
)
from qnn_backend.htp.notes import SIMULATOR_NOTE
from qnn_backend.htp.probe import INSTALL, WHEELS
from qnn_backend.htp.prompts import token_rows
from qnn_backend.versions import version_of, versions

#: Least cosine to float32 that the verification asks for. Measured: float16 0.99999, a16w8 0.998.
MIN_COSINE = {"fp16": 0.999, "a16w8": 0.98, "w8": 0.999, "w4": 0.999}
#: See `verification.verify_graphs`.
TIE_MARGIN = {"fp16": 0.02, "a16w8": 0.1, "w8": 0.02, "w4": 0.02}
#: Weights in fewer bits and float16 otherwise. The programs are compared with a graph that has the same weights.
COMPRESSED = ("w8", "w4")

#: What runs in a child process: the function, and what it is called in messages.
_JOBS = {
    "compile": ("compiling:compile_graphs", "the HTP compiler"),
    "share": ("compiling:compile_graphs", "the HTP compiler with shared weights"),
    "measure": ("measuring:measure", "measuring the residual stream"),
    "quantise": ("quantising:quantise", "the quantisation"),
    "dlc": ("dlc:write_dlc", "writing .dlc files"),
    "verify": ("verification:verify_graphs", "the verification"),
}

GRAPHS_FOLDER = "graphs"
SHARED_FOLDER = "shared"


def compile_model(request: CompileRequest) -> CompiledModel:
    """Compiles each static graph for the NPU, completely unless `allow_partial`, and verifies it in the simulator.

    Raises:
        BackendUnavailableError: the compiler is not installed.
        CompileError: the compiler failed or crashed, nodes cannot run on the NPU, or a program computes something else.
    """
    options = request.options
    soc = targets.find_soc(options.target)
    if soc is None:
        raise CompileError(f"unknown target {options.target!r}; the targets are {targets.describe_targets()}")
    check_specializations(request.exported, request.specializations, backend="qnn")
    if not request.dry_run:
        check_installed()
    run = _Compilation(request, soc)
    announce_memory(f"writing the static graphs for {request.backend}", writing_memory(request.model))
    request.progress("writing the static graphs")
    run.write()
    if not request.dry_run:
        run.scale_residual()
        run.take_out_angles()
        run.take_out_embeddings()
        run.quantise()
    if request.dry_run:
        run.keep_graphs()
        return run.result({})
    request.progress(f"compiling for {soc.name} with the HTP compiler")
    program = run.compile()
    if options.weight_sharing and len(program["graphs"]) > 1:
        request.progress("compiling once more with shared weights, for the device")
        program["shared"] = run.share()
    if options.dlc:
        request.progress("writing .dlc files")
        program["dlc"] = run.dlc()
    if options.verify:
        request.progress("verifying the programs in the simulator against float32 on the CPU")
        program["verification"] = run.verify()
    run.clean_up()
    return run.result(program)


def check_installed() -> None:
    """Raises `BackendUnavailableError` with the remedy when the compiler is not there."""
    if version_of("onnxruntime-qnn") == "none":
        raise BackendUnavailableError(
            f"backend 'qnn' cannot compile for a chip with an NPU: onnxruntime-qnn is not installed. {INSTALL}; there are "
            f"wheels for {WHEELS}. See `qeff doctor qnn`"
        )


class _Compilation:
    """The steps of one compilation; they share the folder with the graphs and the time limit."""

    def __init__(self, request: CompileRequest, soc: targets.Soc) -> None:
        self._request, self._soc, self._options = request, soc, request.options
        self._work = request.output_dir / "work"
        self._work.mkdir()
        minutes = request.options.compile_timeout_minutes
        self._toolchain = Toolchain(
            request,
            name="qnn",
            time_limit_minutes=minutes,
            limit_option="compile_timeout_minutes",
            directory=self._work,
        )
        self._models = specialized_graphs(request.model)
        self._files: dict[str, Path] = {}
        self._prompts: list[list[int]] | None = None
        self._scaling: dict[str, Any] | None = None
        #: Fields of `host_tables.HostTable`.
        self._host_tables: list[dict[str, str]] = []

    def write(self) -> None:
        """The static graphs as files."""
        self._files = write_graphs(self._models, self._work)

    def scale_residual(self) -> None:
        """Measures the residual stream on the calibration prompts and makes it smaller where float16 could not hold it."""
        if "ResidualScaling" in self._options.disable_passes:
            return
        longest = max(
            self._request.specializations,
            key=lambda item: (item.dims.get("seq_len", 1), item.dims.get("encoder_seq_len", 1)),
        ).name
        values = sorted(normed_values(self._models[longest]))
        if not values:
            return
        self._request.progress("measuring the residual stream on calibration prompts")
        largest = self._job(
            "measure", graph=str(self._files[longest]), values=values, interface=self._interface(), prompts=self.prompts
        )["largest"]
        factor = factor_for(max(largest.values()))
        if factor == 1:
            return
        seeds = {name for name, size in largest.items() if size > LIMIT}
        scaled = ScaledWeights()
        for model in self._models.values():
            scale_residual(model, seeds, factor, scaled)
        self._scaling = {"factor": factor, "largest": max(largest.values())}
        self._request.progress(
            f"the residual stream reaches {max(largest.values()):.0f}; it is computed divided by {factor}"
        )
        self.write()

    def take_out_angles(self) -> None:
        """Sines of what the caller gives become inputs, which the host computes with graphs of the artifact."""
        if "HostAngles" in self._options.disable_passes:
            return
        taken = take_out_angles(self._models.values())
        for number, one in enumerate(taken):
            file = f"angles_{number}.onnx"
            ir.save(one.model, self._request.output_dir / file)
            self._host_tables.append({"input": one.input, "file": file})
        if taken:
            self.write()

    def take_out_embeddings(self) -> None:
        """Large embedding tables become files of the artifact, and their rows an input of the programs."""
        if self._options.host_embedding_mb is None:
            return
        taken = take_out_embeddings(self._models.values(), least_bytes=self._options.host_embedding_mb << 20)
        for number, one in enumerate(taken):
            file = f"embedding_{number}.npy"
            save_table(self._request.output_dir / file, one.table.numpy())
            self._host_tables.append({"input": one.input, "ids": one.ids, "file": file})
        if taken:
            self.write()

    def quantise(self) -> None:
        """Brings the weights, and for a16w8 the activations, into fewer bits."""
        precision = self._options.precision
        if precision in COMPRESSED:
            self._request.progress(f"storing weights in blocks of {self._options.weight_bits} bits")
            lowering = compressed_products(self._options.weight_bits)
            for model in self._models.values():
                lowering(model)
            self.write()
        elif precision == "a16w8":
            self._request.progress("quantising with calibration prompts")
            quantised = self._job(
                "quantise",
                portable=str(self._request.exported.model_path),
                graphs=_texts(self._files),
                interface=self._interface(),
                prompts=self.prompts,
                folder=str(self._request.output_dir),
                host_tables=self._host_tables,
            )["graphs"]
            self._files = {name: Path(path) for name, path in quantised.items()}

    def keep_graphs(self) -> None:
        """A dry run leaves the graphs that would have been compiled."""
        self._work.rename(self._request.output_dir / GRAPHS_FOLDER)

    def compile(self) -> dict[str, Any]:
        """The programs, in the artifact's directory."""
        options = self._options
        results = self._job(
            "compile",
            graphs=_texts(self._files),
            output=str(self._request.output_dir),
            soc_id=self._soc.id,
            provider_options=compile_options(options),
            allow_partial=options.allow_partial,
        )
        unsupported = {name: result["unsupported"] for name, result in results.items() if result["unsupported"]}
        for name, nodes in unsupported.items():
            self._request.progress(f"{name}: {len(nodes)} nodes stay on the CPU: {describe(nodes)}")
        return {
            "soc": self._soc.name,
            "versions": versions(),
            "graphs": {name: {"file": f"{name}_ctx.onnx", **result} for name, result in results.items()},
            "partial": unsupported,
            "host_tables": self._host_tables,
            "updated_states": updated_states(next(iter(self._models.values()))),
            "residual_scaling": self._scaling,
            "verification": None,
        }

    def share(self) -> dict[str, Any]:
        """One binary for all graphs. Only a device can load it: the simulator crashes on it, so it is not verified."""
        folder = self._request.output_dir / SHARED_FOLDER
        folder.mkdir()
        self._job(
            "share",
            graphs=_texts(self._files),
            output=str(folder),
            soc_id=self._soc.id,
            provider_options=compile_options(self._options),
            allow_partial=False,
            shared=True,
        )
        return {
            "folder": SHARED_FOLDER,
            "files": sorted(path.name for path in folder.iterdir()),
            "loadable_on_x86": False,
            "verified": False,
        }

    def dlc(self) -> dict[str, Any]:
        """Each graph as a .dlc file."""
        return self._job("dlc", graphs=_texts(self._files), output=str(self._request.output_dir), soc_id=self._soc.id)

    def verify(self) -> dict[str, Any]:
        """Golden inputs through the programs and through the portable model."""
        options = self._options
        threshold = options.verify_min_cosine
        return self._job(
            "verify",
            portable=str(self._request.exported.model_path),
            programs={name: str(self._request.output_dir / f"{name}_ctx.onnx") for name in self._files},
            interface=self._interface(),
            updated_states=updated_states(next(iter(self._models.values()))),
            prompts=self.prompts,
            soc_id=self._soc.id,
            provider_options={},
            min_cosine=MIN_COSINE[options.precision] if threshold is None else threshold,
            tie_margin=TIE_MARGIN[options.precision],
            allow_partial=options.allow_partial,
            folder=str(self._request.output_dir),
            host_tables=self._host_tables,
            compressed=_texts(self._files) if options.precision in COMPRESSED else None,
        )

    def clean_up(self) -> None:
        """Keeps the log and removes what only the compiler needed."""
        log = self._work / LOG_FILE
        if log.is_file():
            log.rename(self._request.output_dir / LOG_FILE)
        shutil.rmtree(self._work)

    def result(self, program: dict[str, Any]) -> CompiledModel:
        """What the framework publishes."""
        note = f"without the NPU it runs in the {SIMULATOR_NOTE}"
        return self._request.result(backend="qnn", program={**program, "note": note})

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids for calibration and verification."""
        if self._prompts is None:
            exported, options = self._request.exported, self._options
            self._prompts = token_rows(exported, options.calibration_prompts, options.calibration_samples)
        return self._prompts

    def _interface(self) -> dict[str, Any]:
        """The fields of `golden.Interface`."""
        exported = self._request.exported
        return {
            "inputs": [asdict(spec) for spec in exported.inputs],
            "outputs": [asdict(spec) for spec in exported.outputs],
            "states": [{"input": state.input, "output": state.output, "kind": state.kind} for state in exported.states],
            "specializations": [{"name": item.name, "dims": dict(item.dims)} for item in self._request.specializations],
        }

    def _job(self, job: str, **arguments: Any) -> dict[str, Any]:
        function, subject = _JOBS[job]
        return self._toolchain.run_job(f"qnn_backend.htp.{function}", arguments, subject=subject)


def _texts(files: dict[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in files.items()}


def compile_options(options: Any) -> dict[str, str]:
    """The provider's options; its own checks only warn, ours have refused everything that it would not take."""
    chosen = {"htp_graph_finalization_optimization_mode": str(options.optimization_mode)}
    if options.vtcm_mb is not None:
        chosen["vtcm_mb"] = str(options.vtcm_mb)
    return chosen
