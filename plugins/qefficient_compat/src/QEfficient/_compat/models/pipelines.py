"""Pictures and videos, with pipelines of diffusers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import qeff_framework
from qeff_framework.plugin_api import Backend, InputError, OptionError
from QEfficient._compat.backends import choose_backend, descriptor
from QEfficient._compat.execution import runtime_options
from QEfficient._compat.keywords import PIPELINE_MODULE
from QEfficient._compat.notices import NotSupportedError, say_once
from QEfficient._compat.translation import simulated, translate

#: Modules of a configuration that are components under other names.
_COMPONENTS = {
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "transformer_high": "transformer",
    "transformer_low": "transformer_2",
}
#: What the lengths of prompts are called in a configuration, in the denoiser's module.
_LENGTHS = ("seq_len", "sequence_length")
_SIZES = ("height", "width", "num_frames", "max_sequence_length")
#: A pipeline makes so many pictures of a prompt: its programs are for that number.
_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")


class QEffDiffusionPipeline:
    """What the pipelines share. A call compiles for its sizes where that has not been done.

    Args:
        model: a pipeline of diffusers in memory, on the CPU.
        enable_first_block_cache: compile the cache of the first block; calls then take ``cache_threshold``.
        **kwargs: ``height`` and ``width`` that a call without them is for; what else QEfficient takes has no effect.
    """

    #: Sizes of a call, and of `compile`, where none are given.
    default_sizes: ClassVar[Mapping[str, int]] = {"height": 512, "width": 512}

    def __init__(self, model: Any, enable_first_block_cache: bool = False, **kwargs: Any) -> None:
        core_type = qeff_framework.QEFFDiffusionPipeline
        self._core = model if isinstance(model, core_type) else core_type(model)
        self._caches = enable_first_block_cache
        given = {name: kwargs[name] for name in self.default_sizes if kwargs.get(name) is not None}
        self._sizes: dict[str, Any] = {**self.default_sizes, **given}
        self._config: dict[str, Any] = {}
        #: What the programs were compiled with.
        self._compiled: tuple[Any, ...] = ()
        self._device_ids: Sequence[int] | None = None
        #: The artifact's directory, once `compile` has run.
        self.qpc_path: Path | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Takes a hub id or a folder, and arguments of the class and of diffusers' ``from_pretrained``."""
        own = {name: kwargs.pop(name) for name in ("enable_first_block_cache", "height", "width") if name in kwargs}
        if kwargs.pop("first_block_cache_downsample_factor", None) is not None:
            say_once("from_pretrained: first_block_cache_downsample_factor has no effect: all numbers are compared")
        for name in ("torch_dtype", "device_map"):
            kwargs.pop(name, None)
        return cls(qeff_framework.QEFFDiffusionPipeline.from_pretrained(pretrained_model_name_or_path, **kwargs), **own)

    @property
    def scheduler(self) -> Any:
        """The scheduler of diffusers; another one is for the next call."""
        return self._core.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._core.scheduler = scheduler

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r})"

    def compile(
        self,
        compile_config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        parallel: bool = False,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        use_onnx_subfunctions: bool = False,
        *,
        backend: str | None = None,
    ) -> Path:
        """Compiles every component, or finds the programs; returns the artifact's directory.

        Args:
            compile_config: a configuration of QEfficient with ``modules``, as a file or a mapping; it stays for later calls.
            parallel: compile components at the same time.
            height: pixels, as `width`; by default those of the class.
            width: see `height`.
            num_frames: of a video.
            use_onnx_subfunctions: layers that are alike are calls of one function in what the compiler reads.
            backend: the backend by name. `None`: ``QEFF_COMPAT_BACKEND``, ``QEFF_BACKEND``, the Cloud AI SDK, else a simulator.
        """
        sizes = {"height": height, "width": width, "num_frames": num_frames}
        given = {name: value for name, value in sizes.items() if value is not None}
        self._sizes |= given
        return self._compile(
            compile_config, self._sizes, {}, backend, parallel=parallel, functions=use_onnx_subfunctions
        )

    def __call__(
        self,
        *args: Any,
        custom_config_path: str | os.PathLike[str] | None = None,
        parallel_compile: bool = False,
        use_onnx_subfunctions: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Makes pictures or videos, after compiling for this call's sizes where that is necessary.

        Args:
            *args: as the pipeline of diffusers takes them.
            custom_config_path: see `compile`.
            parallel_compile: see `compile`.
            use_onnx_subfunctions: see `compile`.
            **kwargs: what the pipeline of diffusers takes, and ``cache_threshold``.

        Returns:
            The output of diffusers; a video stands in its ``images`` too.
        """
        thresholds = {kwargs.pop(name) for name in ("cache_threshold_high", "cache_threshold_low") if name in kwargs}
        if len(thresholds) > 1:
            raise NotSupportedError(
                "generate: cache_threshold_high and cache_threshold_low that differ are not supported; give cache_threshold"
            )
        if thresholds:
            kwargs.setdefault("cache_threshold", thresholds.pop())
        if not self._caches and kwargs.pop("cache_threshold", None) is not None:
            say_once("generate: cache_threshold has no effect without enable_first_block_cache=True")
        prompts = args[0] if args else kwargs.get("prompt")
        sizes = {**self._sizes, **{name: kwargs[name] for name in _SIZES if kwargs.get(name) is not None}}
        if isinstance(prompts, (list, tuple)):
            sizes["batch_size"] = len(prompts)
        counts = {name: kwargs[name] for name in _COUNTS if kwargs.get(name, 1) not in (None, 1)}
        self._compile(
            custom_config_path, sizes, counts, None, parallel=parallel_compile, functions=use_onnx_subfunctions
        )
        output = self._core(*args, **{**kwargs, **{name: sizes[name] for name in self.default_sizes}})
        if not hasattr(output, "images") and hasattr(output, "frames"):
            output.images = output.frames
        return output

    generate = __call__

    def _compile(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any] | None,
        sizes: Mapping[str, Any],
        counts: Mapping[str, int],
        backend: str | None,
        *,
        parallel: bool,
        functions: bool,
    ) -> Path:
        modules = self._config if config is None else _modules_of(config)
        name = choose_backend(backend) if backend is not None or not self._compiled else self._compiled[0]
        asked = (name, dict(sizes), dict(counts), json.dumps(modules), functions)
        if self.qpc_path is not None and asked == self._compiled:
            return self.qpc_path
        chosen = descriptor(name)
        options: dict[str, Any] = {}
        for module, told in modules.items():
            found = _options_of(module, told, chosen)
            component = _COMPONENTS.get(module, "denoiser" if module == "transformer" else module)
            if options.setdefault(component, found) != found:
                raise NotSupportedError(
                    f"compile: {module} and {component} are one component; give both the same options"
                )
        # The pipelines of QEfficient let the host run what has no module.
        options = {part: each for part, each in options.items() if part in (*self._core.component_names, "denoiser")}
        of_config, devices = _sizes_of(modules), _devices_of(modules)
        common = translate("compile", PIPELINE_MODULE, {"use_onnx_subfunctions": functions}, backend=chosen)
        artifact = self._core.compile(
            name,
            call=dict(counts),
            compile_config=options,
            parallel=parallel,
            enable_first_block_cache=self._caches,
            **simulated(chosen),
            **common,
            **{**of_config, **sizes},
        )
        self._core.load(**runtime_options(list(artifact.parts().values())[-1], devices))
        self.qpc_path, self._compiled, self._config = artifact.directory, asked, modules
        return self.qpc_path


class QEffFluxPipeline(QEffDiffusionPipeline):
    """Pictures from texts, with Flux."""


class QEffWanPipeline(QEffDiffusionPipeline):
    """Videos from texts, with Wan."""

    default_sizes: ClassVar[Mapping[str, int]] = {"height": 480, "width": 832, "num_frames": 81}


class QEffWanImageToVideoPipeline(QEffWanPipeline):
    """Videos that begin with a picture, with Wan."""


def _modules_of(config: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(config, Mapping):
        found: Any = config
    else:
        try:
            found = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"compile: the configuration {os.fspath(config)} cannot be read as JSON: {error}"
            ) from error
    modules = found.get("modules") if isinstance(found, Mapping) else None
    if not isinstance(modules, Mapping) or not all(isinstance(each, Mapping) for each in modules.values()):
        raise OptionError('compile: a configuration is {"modules": {"transformer": {"compilation": {...}}, ...}}')
    return dict(modules)


def _options_of(module: str, told: Mapping[str, Any], backend: Backend) -> dict[str, Any]:
    """Options of the backend for one module."""
    if (told.get("execute") or {}).get("qpc_path") is not None:
        raise NotSupportedError(
            f"compile: qpc_path of {module} is not supported: the store finds programs that were compiled before; leave it out"
        )
    given = {name.replace("-", "_"): value for name, value in (told.get("compilation") or {}).items()}
    for name in ("onnx_path", "compile_dir"):
        if given.pop(name, None) is not None:
            raise NotSupportedError(
                f"compile: {name} of {module} is not supported: a pipeline is one artifact; leave it out"
            )
    return translate("compile", PIPELINE_MODULE, given, backend=backend)


def _sizes_of(config: Mapping[str, Any]) -> dict[str, int]:
    """The length of prompts, and how many are run together, as far as a configuration says."""
    batches: set[int] = set()
    lengths: set[int] = set()
    for module, told in config.items():
        entries = told.get("specializations") or []
        for entry in [entries] if isinstance(entries, Mapping) else entries:
            batches |= {int(entry["batch_size"])} if "batch_size" in entry else set()
            if module.startswith("transformer"):
                lengths |= {int(entry[name]) for name in _LENGTHS if name in entry}
    sizes = {"batch_size": batches, "max_sequence_length": lengths}
    for name, found in sizes.items():
        if len(found) > 1:
            raise NotSupportedError(
                f"compile: modules of different {name} ({sorted(found)}) are not supported; give one"
            )
    return {name: next(iter(found)) for name, found in sizes.items() if found}


def _devices_of(config: Mapping[str, Any]) -> Sequence[int] | None:
    asked = {
        tuple(told["execute"]["device_ids"])
        for told in config.values()
        if (told.get("execute") or {}).get("device_ids") is not None
    }
    if len(asked) > 1:
        raise NotSupportedError("compile: modules of different device_ids are not supported; give all of them the same")
    return asked.pop() if asked else None
