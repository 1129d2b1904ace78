"""What the classes of models share: a model of qeff_framework, its export and its program under QEfficient's names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import qeff_framework
from qeff_framework.plugin_api import ExecutionError, OptionError
from QEfficient._compat.backends import choose_backend, descriptor, has_option
from QEfficient._compat.execution import runtime_options
from QEfficient._compat.keywords import COMPILE, EXPORT, FROM_PRETRAINED
from QEfficient._compat.notices import NotSupportedError, say_once
from QEfficient._compat.translation import lengths, simulated, translate

if TYPE_CHECKING:
    import torch

_FULL_PRECISION = ("torch.float32", "float32", "auto", "None")


class ModuleView:
    """The torch module of a model, loaded when anything but its config is asked for."""

    def __init__(self, core: Any) -> None:
        self._core = core

    @property
    def config(self) -> Any:
        """The config as an object of Transformers, read without the weights."""
        import transformers

        fields = dict(self._core.config)
        model_type = fields.pop("model_type", None)
        if model_type not in transformers.CONFIG_MAPPING:
            return self._core.module.config
        return transformers.AutoConfig.for_model(model_type, **fields)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._core.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core.module, name)

    def __repr__(self) -> str:
        return repr(self._core)


class QEFFBaseModel:
    """What all classes share: a model of qeff_framework, its export and its program under QEfficient's names."""

    #: Name of the class in qeff_framework.
    core_class: ClassVar[str]
    #: Sizes that QEfficient compiles for where none are given.
    default_sizes: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, model: torch.nn.Module | Any, **kwargs: Any) -> None:
        core_type = self.core_type()
        options = self._take_options(kwargs)
        self.setup(model if isinstance(model, core_type) else core_type(model, **options))

    def setup(self, core: Any) -> None:
        self._core = core
        #: The portable graph, once `export` has run.
        self.onnx_path: Path | None = None
        #: The artifact's directory, once `compile` has run.
        self.qpc_path: Path | None = None
        self._program: Any = None
        self._runtime: dict[str, Any] = {}
        self._sizes: dict[str, Any] = {}

    @classmethod
    def core_type(cls) -> Any:
        core_type = getattr(qeff_framework, cls.core_class, None)
        if core_type is None:
            raise NotSupportedError(
                f"{cls.__name__} is not supported: the installed qeff-framework has no {cls.core_class}; upgrade it, or run the "
                "model with transformers"
            )
        return core_type

    @classmethod
    def _take_options(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keywords of the class itself, taken out of `kwargs`: arguments of the core's class."""
        kwargs.pop("pretrained_model_name_or_path", None)
        if kwargs:
            raise OptionError(f"{cls.__name__}: unknown arguments {', '.join(kwargs)}")
        return {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Self:
        """Takes a checkpoint: a hub id, a folder, or a GGUF file with ``gguf_file=``.

        Keywords are those of QEfficient, of Transformers' ``from_pretrained``, and fields of the config; see docs/migrating.md.
        """
        if args:
            raise OptionError(f"{cls.__name__}.from_pretrained: give {args[0]!r} as a keyword")
        return cls.open_checkpoint(pretrained_model_name_or_path, kwargs)

    @classmethod
    def open_checkpoint(cls, path: str | os.PathLike[str], given: dict[str, Any]) -> Self:
        core_type = cls.core_type()
        own = cls._take_own(given)
        core = core_type.from_pretrained(path, **cls._loading(given), **cls.core_arguments(own))
        model = cls.__new__(cls)
        model.setup(core)
        model.take_over(own)
        return model

    #: Keywords that the class itself takes care of.
    own_keywords: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def _take_own(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {name: given.pop(name) for name in cls.own_keywords if name in given}

    @classmethod
    def core_arguments(cls, own: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003 -- for classes that have some
        return {}

    def take_over(self, own: Mapping[str, Any]) -> None:
        """Keeps what `compile` needs to know."""

    @classmethod
    def _loading(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in ("torch_dtype", "dtype"):
            value = given.pop(name, None)
            if str(value) not in _FULL_PRECISION:
                say_once(
                    f"from_pretrained: {name}={value} has no effect: weights are read as float32, and the backend's options set "
                    "what it computes in"
                )
        for each in FROM_PRETRAINED:
            if each.treatment == "here" and not each.asks_for_nothing(given.pop(each.name, None)):
                raise NotSupportedError(
                    f"{cls.__name__}.from_pretrained: {each.name} is not for this class; leave it out"
                )
        return translate(f"{cls.__name__}.from_pretrained", FROM_PRETRAINED, given)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The torch module; its ``config`` is read without the weights."""
        return ModuleView(self._core)

    @property
    def model_name(self) -> str:
        """Name of the checkpoint."""
        return str(self._core.name)

    @property
    def get_model_config(self) -> dict[str, Any]:
        """The Hugging Face config as a dictionary."""
        return dict(self._core.config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r})"

    # --- export and compile -------------------------------------------------------------------------------------------

    def export(self, export_dir: str | os.PathLike[str] | None = None, **kwargs: Any) -> Path:
        """Exports to portable ONNX, or finds the export that exists; returns the path of the graph."""
        translated = translate("export", EXPORT, kwargs)
        unknown = [name for name in kwargs if name not in {each.name for each in EXPORT}]
        if unknown:
            raise OptionError(f"export: unknown arguments {', '.join(unknown)}")
        self.onnx_path = self._core.export(export_dir, **translated).model_path
        return self.onnx_path

    def compile(
        self,
        onnx_path: str | os.PathLike[str] | None = None,
        compile_dir: str | os.PathLike[str] | None = None,
        *,
        backend: str | None = None,
        enable_qnn: bool = False,
        qnn_config: str | os.PathLike[str] | None = None,
        device_group: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Compiles, exporting first if needed, or finds the program that exists; returns the artifact's directory.

        Args:
            onnx_path: what `export` has returned; another graph is refused.
            compile_dir: put the artifact there instead of into the artifact store.
            backend: the backend by name. `None`: ``QEFF_COMPAT_BACKEND``, ``QEFF_BACKEND``, the Cloud AI SDK, else a simulator.
            enable_qnn: compile for Cloud AI 100 with the QAIRT tools: backend ``qnn``, target ``aic``.
            qnn_config: further arguments of these tools, a JSON file.
            device_group: the program is spread over as many devices.
            **kwargs: sizes, and options under QEfficient's names or those of the backend; see docs/migrating.md.
        """
        self._check_onnx_path(onnx_path, functions=bool(kwargs.get("use_onnx_subfunctions")))
        name = choose_backend(backend, enable_qnn=enable_qnn)
        chosen = descriptor(name)
        given = {**self.default_sizes, **kwargs}
        if device_group is not None:
            given["num_devices"] = len(device_group)
        for length in ("comp_ctx_lengths_prefill", "comp_ctx_lengths_decode"):
            if length in given:
                given[length] = lengths(given[length])
        sizes = self._sized(given)
        options = simulated(chosen)
        if enable_qnn:
            options |= {"target": "aic"} if has_option(chosen.options, "target") else {}
            options |= {"qnn_config": Path(qnn_config)} if qnn_config is not None else {}
        elif qnn_config is not None:
            raise OptionError("compile: qnn_config needs enable_qnn=True")
        shapes = self.core_type().shapes
        translated = translate("compile", COMPILE, {**options, **given}, backend=chosen, sizes=shapes)
        if compile_dir is not None:
            translated["compile_dir"] = compile_dir
        self._close()
        self.qpc_path = self._core.compile(name, **translated, **sizes).directory
        if self.onnx_path is None:
            self.onnx_path = self._exported_path()
        return self.qpc_path

    def _sized(self, given: dict[str, Any]) -> dict[str, Any]:
        """Sizes that depend on how the model was opened; takes what it decides out of `given`."""
        for keyword in COMPILE:
            if keyword.treatment == "here" and keyword.asks_for_nothing(given.get(keyword.name)):
                given.pop(keyword.name, None)
        return {}

    def _check_onnx_path(self, onnx_path: str | os.PathLike[str] | None, *, functions: bool) -> None:
        if onnx_path is None:
            return
        asked = Path(onnx_path).resolve()
        if self.onnx_path is None or asked != self.onnx_path.resolve():
            # The export is found again where it exists.
            found = self._core.export(**({"use_onnx_subfunctions": True} if functions else {})).model_path
            if asked != found.resolve():
                raise NotSupportedError(
                    f"compile: onnx_path={os.fspath(onnx_path)!r} is not the export of this model ({found}); leave it "
                    "out, programs are compiled from the model's own export"
                )
            self.onnx_path = found

    def _exported_path(self) -> Path | None:
        file = Path(str(self.qpc_path)) / "qconfig.json"
        told = json.loads(file.read_text(encoding="utf-8"))["qpc_config"]["QEff_config"]["onnx_path"]
        return None if told is None else Path(told)

    # --- run ----------------------------------------------------------------------------------------------------------

    def _load(self, device_ids: Sequence[int] | int | None) -> Any:
        if self._core.compiled is None:
            raise ExecutionError(f"{type(self).__name__}.generate: there is no program; call compile() first")
        runtime = runtime_options(self._core.compiled, device_ids)
        if self._program is None or runtime != self._runtime:
            self._program, self._runtime = self._core.load(**runtime), runtime
        return self._program

    def _close(self) -> None:
        if self._program is not None:
            self._program.close()
            self._program = None
