"""The typed values that pass between the stages. Frozen, keyword-only, readable from JSON; nothing heavy is imported.

    ExportedModel  --(compile)-->  CompiledModel  --(execute)-->  ExecutionSession

A later stage never reaches back into an earlier one: what it needs is written in the earlier stage's result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum, StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from qeff_framework.deprecation import deprecate, deprecated_property, renamed_keywords
from qeff_framework.errors import ArtifactCorruptError, ArtifactError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir
    import torch
    from numpy.typing import NDArray

    #: NumPy array of any dtype, as sessions take and return them.
    Array = NDArray[np.generic]

#: A kind of work that a model can do, by its name in the table `qeff_framework.tasks`: ``"causal-lm"``, ``"encoder"``,
#: ``"sequence-classification"``, ``"token-classification"``, ``"question-answering"``, ``"seq2seq-lm"``. A backend declares the
#: ones it carries. A string, because a backend may carry tasks that the installed core does not have yet.
Task = str

#: Inputs that a causal LM's graph has when it is asked for them. ``batch_index [B, 1]`` (continuous batching): the cache row of
#: each row of the step. ``comp_ctx_lengths [L]`` (compute context): only its length counts, the first L slots of the cache are
#: read. ``num_logits_to_keep [K, 1]`` (speculative target): only its length counts, the logits of the last K tokens are returned.
EXTRA_INPUTS = ("batch_index", "comp_ctx_lengths", "num_logits_to_keep")

#: Input of a causal LM's graph whose rotary frequencies depend on the length of the text: LongRoPE, dynamic NTK. It follows those
#: of `EXTRA_INPUTS` when the model needs it. ``prompt_lengths [B, 1]``: tokens of each row's prompt, however many steps read it.
#: Where an export's metadata names `reread_lengths`, a text that has grown to one of them is read anew, as a prompt.
PROMPT_LENGTHS = "prompt_lengths"

#: Input of a causal LM's graph with several adapters, behind all others that are no states: ``lora_ids [B, 1]``, the adapter of
#: each row. 0 is the model alone; the metadata's ``adapters`` has the id of each by its name.
LORA_IDS = "lora_ids"
#: Input of the graph of a pipeline's component with several adapters: ``lora_scales [A]``, what each of the A adapters that the
#: artifact holds is multiplied with; 0 leaves it out. The metadata's ``adapters`` has their numbers by name, the first is 1.
LORA_SCALES = "lora_scales"
#: What a compiled program's metadata calls the package whose backend has compiled it. Empty for a backend without a package.
PACKAGE = "backend_package"
#: What stands for the model alone among the names of adapters.
BASE_ADAPTER = "base"

#: Inputs of a causal LM's graph that ends in a sampler: it has all of them, in this order, and returns ``next_tokens [B, 1, 1]``
#: instead of logits. ``last_accepted_output_tokens [B, S]``: the tokens of the step that belong to the answer, -1 elsewhere.
#: ``[B, 1]``: ``repetition_penalties`` (1: none), ``presence_penalties`` (0: none), ``temperatures`` (0: the most likely token),
#: ``top_ks`` (int32), ``top_ps`` (1: all), ``min_ps`` (0: all). ``random_numbers [B, candidates]``: uniform between 0 and 1.
SAMPLER_INPUTS = (
    "last_accepted_output_tokens",
    "repetition_penalties",
    "presence_penalties",
    "temperatures",
    "top_ks",
    "top_ps",
    "min_ps",
    "random_numbers",
)
#: Input of a sampler that takes masks, behind `SAMPLER_INPUTS`: ``token_bitmasks [B, V]``, bool, True for the tokens that may be
#: chosen. Hosts of this platform feed one byte for each token, not packed bits.
TOKEN_BITMASKS = "token_bitmasks"  # noqa: S105 - a name of an input
#: Output of a sampler that returns probabilities, behind ``next_tokens``: ``probs [B, 1, V]``, of each token after masks,
#: penalties, temperature, top-k, top-p and min-p. Where the temperature is 0 they are those of the temperature 1.
PROBABILITIES = "probs"
#: Tokens that a sampler chooses among at most: the most likely ones.
SAMPLER_CANDIDATES = 512

#: Names of the ways in which the core turns an encoder's token vectors into one embedding.
POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")

#: Files and folders that an artifact carries so that it runs without the checkpoint.
COMPANIONS = ("config.json", "generation_config.json", "tokenizer", "processor", "pipeline")

#: ``transform`` is called once for each of these.
TransformStage = Literal["torch", "onnx"]


# --- graph interface ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A graph input or output. `shape` holds an int for a fixed dimension and a symbol name for a dynamic one."""

    name: str
    #: NumPy dtype name, e.g. ``"int64"`` or ``"float32"``.
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """A retained state: output `output` of one step is input `input` of the next one and stays with the session."""

    input: str
    output: str
    #: ``"kv"`` for attention caches, ``"window"`` where a compiler keeps the last tokens of one alone, which cannot be taken
    #: back; ``"cross"`` for those of an encoder's output, which only steps with tokens for the encoder
    #: write; ``"conv"`` and ``"recurrent"`` for state-space and linear-attention layers; ``"sampler"`` for the marks of a
    #: sampler; ``"adapter"`` for matrices of adapters, which the host writes, a step leaves as they are, and `reset` keeps.
    kind: str = "kv"


@dataclass(frozen=True, kw_only=True)
class Specialization:
    """One static shape set of a program: a value for every symbolic dimension of the graph."""

    name: str
    dims: Mapping[str, int]


class _JsonFile:
    """Writing to and reading from one JSON file in the value's own directory, and the paths of the files beside it."""

    FILE: ClassVar[str]
    directory: Path

    def path(self, name: str) -> Path:
        """Full path of the file or folder `name` of the directory, which need not exist.

        Use it for every name that was read from a file: an artifact may come from somebody else.

        Raises:
            ArtifactCorruptError: `name` leads out of the directory, as ``..``, as an absolute path or through a link.
        """
        if not _is_inner_name(name) or not Path(os.path.realpath(self.directory / name)).is_relative_to(
            os.path.realpath(self.directory)
        ):
            raise self._damaged(self.directory, f"names {name!r}, which leads out of the directory")
        return self.directory / name

    def save(self) -> Path:
        """Writes the value beside the files that it describes."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "directory"}  # type: ignore[arg-type]
        target = self.directory / self.FILE
        target.write_text(json.dumps(content, indent=2, default=_jsonable) + "\n", encoding="utf-8")
        return target

    @classmethod
    def _read(cls, directory: Path) -> dict[str, Any]:
        try:
            content = json.loads((directory / cls.FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(
                f"{directory} holds no {cls.FILE}: it is not a directory that `qeff` has written"
            ) from None
        except OSError as error:
            raise ArtifactError(f"{directory / cls.FILE} cannot be read: {error}") from error
        except (ValueError, RecursionError) as error:
            raise cls._damaged(directory, f"cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise cls._damaged(directory, "is not a JSON object")
        return content

    @classmethod
    def _damaged(cls, directory: Path, what: str) -> ArtifactCorruptError:
        return ArtifactCorruptError(f"{directory / cls.FILE} {what}. Delete the directory and build the artifact again")


def _is_inner_name(name: object) -> bool:
    if not isinstance(name, str) or not name or set(name) & {"\\", "\0"}:
        return False
    parts = PurePosixPath(name)
    return not (parts.is_absolute() or ".." in parts.parts or PureWindowsPath(name).drive)


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (TensorSpec, StateSpec, Specialization)):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    # Options may hold these: a key has the same forms for them.
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _tensor(value: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=value["name"], dtype=value["dtype"], shape=tuple(value["shape"]))


@dataclass(frozen=True, kw_only=True)
class ExportedModel(_JsonFile):
    """Portable ONNX on disk: the result of the export stage, shared by every backend.

    `directory` also holds what a compiled artifact must carry so that it runs without the checkpoint: ``config.json``,
    ``generation_config.json`` and ``tokenizer/``, each only if the checkpoint has it.
    """

    FILE: ClassVar[str] = "exported.json"

    directory: Path
    task: Task
    #: File name of the ONNX model inside `directory`; its weights lie in an external data file beside it.
    model_file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()
    #: Names of the transforms that were applied to the torch module, in order, as ``name@version``.
    transforms: tuple[str, ...] = ()
    #: Facts about the model: ``architecture``, ``model_type``, ``model_name``, ``vocab_size``, ...
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_path(self) -> Path:
        """Full path of the ONNX model."""
        return self.path(self.model_file)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads what `save` wrote. Raises `ArtifactError` when `directory` is not an export."""
        content = cls._read(directory)
        try:
            return cls(
                directory=directory,
                task=content["task"],
                model_file=content["model_file"],
                inputs=tuple(_tensor(item) for item in content["inputs"]),
                outputs=tuple(_tensor(item) for item in content["outputs"]),
                states=tuple(StateSpec(**item) for item in content["states"]),
                transforms=tuple(content["transforms"]),
                metadata=content["metadata"],
            )
        except (KeyError, TypeError) as error:
            raise cls._damaged(directory, f"lacks or misnames a field: {error}") from error


_BUNDLE_RESULT = deprecate(
    "CompiledModel.bundle_result", instead="CompiledModel.dry_run_result", since="0.1", removal="0.3"
)
_QPC_CONFIG = deprecate("CompiledModel.qpc_config", instead="CompiledModel.qconfig", since="0.1", removal="0.3")


@renamed_keywords({"bundle_result": ("dry_run_result", _BUNDLE_RESULT), "qpc_config": ("qconfig", _QPC_CONFIG)})
@dataclass(frozen=True, kw_only=True)
class CompiledModel(_JsonFile):
    """A program for one backend on disk: the result of the compile stage.

    The backend fills it in; the core adds tokenizer, generation config, ``qconfig.json`` and the manifest, and
    publishes the directory. `program` belongs to the backend: file names (relative to `directory`) and whatever else
    its `execute` needs. It must be JSON.
    """

    FILE: ClassVar[str] = "compiled.json"

    directory: Path
    backend: str
    task: Task
    specializations: tuple[Specialization, ...]
    #: Graph inputs and outputs that the host feeds and reads, retained states included.
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()
    #: Compile options with defaults filled in.
    options: Mapping[str, Any] = field(default_factory=dict)
    program: Mapping[str, Any] = field(default_factory=dict)
    #: An artifact of several programs: the directory of each by its name, relative to `directory`. Each holds a compiled model of
    #: its own, with specializations, inputs, outputs and states. Empty for an artifact that is one program.
    programs: Mapping[str, str] = field(default_factory=dict)
    #: The programs are windows of layers: a step runs all of them, in this order. Specializations, inputs, outputs and states are
    #: those of the whole model; each program has further inputs and outputs, by which one hands on to the next.
    chained: bool = False
    #: Of a dry run: the file that is there once somebody has run the compiler on its inputs, relative to `directory`. "" for a
    #: backend whose dry runs cannot be completed in place.
    dry_run_result: str = ""
    #: What the backend adds to the description of the program in ``qconfig.json``, for people and tools. It must be JSON.
    qconfig: Mapping[str, Any] = field(default_factory=dict)
    #: Names of the transforms that were applied to the ONNX graph, in order, as ``name@version``.
    transforms: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    bundle_result: ClassVar[Any] = deprecated_property(_BUNDLE_RESULT, lambda compiled: compiled.dry_run_result)
    qpc_config: ClassVar[Any] = deprecated_property(_QPC_CONFIG, lambda compiled: compiled.qconfig)

    @classmethod
    def from_request(cls, request: CompileRequest, *, program: Mapping[str, Any], **changed: Any) -> Self:
        """The answer to `request`, with the interface of the export and everything else as the request says.

        Args:
            request: what the compile hook was called with.
            program: see `program` of this class.
            **changed: other fields that differ from the request, for instance `states` that the compiler has renamed.
        """
        exported = request.exported
        answer: dict[str, Any] = {
            "directory": request.output_dir,
            "backend": request.backend,
            "task": exported.task,
            "specializations": request.specializations,
            "inputs": exported.inputs,
            "outputs": exported.outputs,
            "states": exported.states,
            "options": asdict(request.options),
            "program": program,
            "transforms": request.transforms,
            # A plugin adds entries to its own.
            "metadata": dict(exported.metadata),
        }
        return cls(**answer | changed)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads what `save` wrote. Raises `ArtifactError` when `directory` is not a compiled artifact."""
        content = cls._read(directory)
        for name, kind in {
            "backend": str,
            "task": str,
            "options": dict,
            "program": dict,
            "programs": dict,
            "metadata": dict,
        }.items():
            if not isinstance(content.get(name, kind()), kind):
                raise cls._damaged(directory, f"lacks or misnames a field: {name!r} is not {kind.__name__}")
        try:
            return cls(
                directory=directory,
                backend=content["backend"],
                task=content["task"],
                specializations=tuple(Specialization(**item) for item in content["specializations"]),
                inputs=tuple(_tensor(item) for item in content["inputs"]),
                outputs=tuple(_tensor(item) for item in content["outputs"]),
                states=tuple(StateSpec(**item) for item in content["states"]),
                options=content["options"],
                program=content["program"],
                programs=content.get("programs", {}),
                chained=content.get("chained", False),
                dry_run_result=content.get("dry_run_result", ""),
                qconfig=content.get("qconfig", {}),
                transforms=tuple(content["transforms"]),
                metadata=content["metadata"],
            )
        except (KeyError, TypeError) as error:
            raise cls._damaged(directory, f"lacks or misnames a field: {error}") from error

    def parts(self) -> dict[str, CompiledModel]:
        """The compiled model of each program that is run by itself, by name; itself under "" where there is one, or a chain."""
        return (
            {"": self} if self.chained or not self.programs else {name: self.program_of(name) for name in self.programs}
        )

    def windows(self) -> dict[str, CompiledModel]:
        """Of a chained artifact the programs of a step by name, in their order; empty for others."""
        return {name: self.program_of(name) for name in self.programs} if self.chained else {}

    def program_of(self, name: str) -> CompiledModel:
        """One program of an artifact that has several. Raises `ArtifactError` where it has none of this name."""
        if name not in self.programs:
            raise ArtifactError(f"{self.directory} has no program '{name}', only {', '.join(self.programs) or 'one'}")
        return type(self).load(self.path(self.programs[name]))


# --- requests: the single argument of each hook ---------------------------------------------------------------------


def _sizes(specializations: Sequence[Specialization], dimension: str) -> tuple[int, ...]:
    return tuple(sorted({item.dims[dimension] for item in specializations if dimension in item.dims}))


@dataclass(frozen=True, kw_only=True)
class TransformRequest:
    """Asks for the transforms of one stage. `stage` ``"torch"``: before the export; ``"onnx"``: lowering, after it."""

    stage: TransformStage
    task: Task
    #: The backend's compile options; `None` when the model is exported without a backend.
    options: Any
    #: Empty for stage ``"torch"``.
    specializations: tuple[Specialization, ...] = ()

    def sizes(self, dimension: str) -> tuple[int, ...]:
        """The values of a dimension, such as ``"ctx_len"``, over the specializations: ascending, each once."""
        return _sizes(self.specializations, dimension)


@dataclass(frozen=True, kw_only=True)
class PackedMatrix:
    """A matrix in blocks of adjacent inputs, as the dialect's op ``QuantizedMatMul`` takes it, or one for each of E experts.

    Experts' arrays have E in front, as ``QuantizedMoE`` takes them.
    """

    #: ``[N, K]``: outputs and inputs; of experts ``[E, N, K]``.
    shape: tuple[int, ...]
    #: 4 or 8.
    bits: int
    #: Inputs with one scale, a power of two; the last block may reach beyond K.
    block_size: int
    #: Returns levels uint8 ``[N, blocks, bytes]``, scales float32 ``[N, blocks]`` and zero points uint8 ``[N, blocks]``.
    read: Callable[[], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]


@dataclass(frozen=True, kw_only=True)
class LowRankDelta:
    """What an adapter adds to a matrix: ``up @ down``, scaled already."""

    #: float32 ``[rank, in]``; of a convolution ``[rank, in, height, width]``.
    down: NDArray[Any]
    #: float32 ``[out, rank]``; of a convolution ``[out, rank, 1, 1]``.
    up: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class AdapterRoom:
    """Places in a program for adapters that the host writes into its states, after it was compiled."""

    #: Adapters that it holds at once.
    slots: int
    #: Of an adapter at most.
    rank: int
    #: Parameters of the module that an adapter may add to, by name.
    weights: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Asks for portable ONNX. `output_dir` exists and is empty; everything that is written there is kept."""

    #: In eval mode, on the CPU; torch-stage transforms are applied.
    module: torch.nn.Module
    task: Task
    output_dir: Path
    #: Encoders: how the last hidden state ``[B, S, H]`` becomes an embedding ``[B, E]`` in the graph: a name of `POOLINGS`, or a
    #: function of it and the attention mask ``[B, S]``, which may be a torch module with weights; `None` leaves it as it is.
    pooling: str | Callable[..., Any] | None = None
    #: Causal LMs: inputs of the graph beside tokens, positions and states, from `EXTRA_INPUTS` and in that order, and all of
    #: `SAMPLER_INPUTS` behind them when the graph ends in a sampler, and `TOKEN_BITMASKS` behind those when it takes masks.
    extra_inputs: tuple[str, ...] = ()
    #: Causal LMs that end in a sampler: further outputs of the graph. `PROBABILITIES` is the only one.
    extra_outputs: tuple[str, ...] = ()
    #: Names of parameters and buffers of `module` that its checkpoint did not hold. They contain random values: a graph that
    #: reads one must be refused by an error that names it.
    unloaded: frozenset[str] = frozenset()
    #: Models of several programs: which one this is, such as ``"vision"`` or ``"language"``. "" for a model of one program.
    program: str = ""
    #: What the graph of this program is made for: the tensors of one image by name (``"vision"``), the form of the features that
    #: come from another program (``"language"``), the call of a pipeline's part as JSON (``"call"``), or, of models that read
    #: sound or images alone, ``name`` and ``shape`` of their main input behind the batch, `None` for the axis of several lengths.
    program_inputs: Mapping[str, Any] = field(default_factory=dict)
    #: Layers that are alike are calls of one ONNX function for each kind, see `lowering.LayerFunctions`.
    use_onnx_subfunctions: bool = False
    #: Key of the export in the artifact store: what has the same key is the same.
    key: str = ""
    #: Parameters of `module` that are to stay in the blocks of their checkpoint, by name; the module holds their numbers as well.
    packed_matrices: Mapping[str, PackedMatrix] = field(default_factory=dict)
    #: Causal LMs: adapters that the rows of a step choose among, by name, each as what it adds to parameters of `module` by their
    #: names. The graph then has the input `LORA_IDS`, in which the first of them is 1. Of a pipeline's component: `LORA_SCALES`.
    adapters: Mapping[str, Mapping[str, LowRankDelta]] = field(default_factory=dict)
    #: Causal LMs: the same for adapters that come later. For each weight the graph has two states of kind ``"adapter"``,
    #: ``lora_down.WEIGHT [slots + 1, K, rank]`` and ``lora_up.WEIGHT [slots + 1, rank, N]``; `adapters` is empty then. Of a
    #: pipeline's component ``lora_down.WEIGHT [K, slots * rank]`` and ``lora_up.WEIGHT [slots * rank, N]``.
    adapter_room: AdapterRoom | None = None
    #: Called with a short text when a long step starts.
    progress: Callable[[str], None] = lambda message: None


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """Asks for a program. `output_dir` exists and is empty; everything that is written there becomes the artifact."""

    exported: ExportedModel
    #: The portable graph after the backend's own ``"onnx"`` transforms. Weights are memory-mapped from the export.
    model: onnx_ir.Model
    #: ``name@version`` of the transforms that changed `model`.
    transforms: tuple[str, ...]
    specializations: tuple[Specialization, ...]
    #: An instance of the backend's options class.
    options: Any
    output_dir: Path
    #: Write every input file of the compiler, run nothing. Only for backends that declare the capability.
    dry_run: bool = False
    #: Name of the backend that is asked.
    backend: str = ""
    #: Key of the program in the artifact store: what has the same key is the same.
    key: str = ""
    #: Where the log of a compiler that failed is kept, since `output_dir` is removed then. It may not exist yet.
    log_dir: Path | None = None
    progress: Callable[[str], None] = lambda message: None

    def sizes(self, dimension: str) -> tuple[int, ...]:
        """The values of a dimension, such as ``"ctx_len"``, over the specializations: ascending, each once."""
        return _sizes(self.specializations, dimension)

    def result(self, *, program: Mapping[str, Any], **changed: Any) -> CompiledModel:
        """The answer to this request, see `CompiledModel.from_request`."""
        return CompiledModel.from_request(self, program=program, **changed)


@dataclass(frozen=True, kw_only=True)
class ExecuteRequest:
    """Asks for a session. The core has verified the artifact's files against its manifest."""

    compiled: CompiledModel
    #: An instance of the backend's runtime options class.
    options: Any


# --- what backends implement ----------------------------------------------------------------------------------------


@runtime_checkable
class Transform(Protocol):
    """A pass over a torch module or an ONNX graph."""

    #: Unique within the backend; part of cache keys together with `version`.
    name: str
    #: Change it whenever the result changes.
    version: str

    def __call__(self, subject: Any, /) -> object:
        """Changes `subject` (a `torch.nn.Module` or an `onnx_ir.Model`) in place; says whether it changed anything.

        Returns a bool, or what a pass of onnx_ir returns: a result with the attribute ``modified``.
        """


def has_changed(result: object) -> bool:
    """What a transform says by its result."""
    return bool(getattr(result, "modified", result))


@runtime_checkable
class ExecutionSession(Protocol):
    """A loaded program with its retained state. Not thread-safe: one thread at a time.

    `qeff_framework.sessions.BaseSession` implements all of it but the step.
    """

    compiled: CompiledModel
    #: Where it runs, for people: ``{"device": "CPU", "simulator": "yes", ...}``.
    info: Mapping[str, str]

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs one step and returns the outputs that are not retained states.

        `inputs` holds every input that is not a retained state. Their shapes choose the specialization: all dimensions
        must fit one compiled specialization, otherwise `InputError` names the allowed ones. Retained states are updated
        in place and never leave the session. Returned arrays are valid until the next call.

        `InputError`: nothing has changed. `ExecutionError`: the retained states are undefined until `reset`.
        """

    def reset(self) -> None:
        """Forgets the retained state: as after loading."""

    def close(self) -> None:
        """Releases the device and memory. Idempotent; every other call afterwards raises `ExecutionError`."""


class Status(StrEnum):
    """Verdict of one check of a probe."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a probe looked at. `remedy` says what to do when the status is not ok."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a backend can do on this machine at this moment, with its default options."""

    can_compile: bool
    can_execute: bool
    #: `True` when `execute` would use the real hardware, `False` for a simulator.
    hardware: bool
    #: Order among backends of the same sort when none is named: higher first.
    rank: int
    checks: Sequence[Check] = ()
    #: What it can do with other options, in words: ``"target=aic can compile"``. For `qeff doctor`; no backend is chosen for it.
    other_options: str = ""

    @property
    def reason(self) -> str:
        """The first failed check, or the summary that all is well."""
        for check in self.checks:
            if check.status is Status.FAILED:
                return f"{check.name}: {check.detail}"
        return "can compile and execute" if self.can_compile and self.can_execute else "cannot compile and execute here"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can be asked for. It gates early errors and the conformance kit."""

    tasks: frozenset[Task]
    #: ``full_batch_size``: slots that are refilled while others go on.
    continuous_batching: bool = False
    #: ``num_devices > 1``.
    multi_device: bool = False
    #: ``mxfp6_matmul``, for a backend whose options derive from `MicroscalingOptions`.
    mxfp6_matmul: bool = False
    #: ``mxint8_kv_cache``, likewise.
    mxint8_kv_cache: bool = False
    #: ``num_speculative_tokens``.
    speculative_decoding: bool = False
    #: ``comp_ctx_lengths_prefill`` and ``comp_ctx_lengths_decode``.
    compute_contexts: bool = False
    #: ``include_sampler``.
    on_device_sampling: bool = False
    #: `CompileRequest.dry_run`.
    dry_run: bool = False
    #: What these hold for, when it is not the whole backend: ``"target SM8650"``. For messages.
    scope: str = ""
