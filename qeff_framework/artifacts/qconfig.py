"""``qconfig.json``: what a compiled artifact was made from, for people and tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

from qeff_framework.artifacts.json_values import Json, to_json_value
from qeff_framework.contracts import Specialization
from qeff_framework.errors import ArtifactError

QCONFIG_FILE = "qconfig.json"

#: Options under the names that readers of this file know from the Qualcomm stack, in addition to their own.
_KNOWN_AS = {"num_cores": "aic_num_cores", "num_devices": "mdp_ts_num_devices"}


def create_and_dump_qconfigs(
    directory: Path,
    *,
    huggingface_config: Mapping[str, object],
    export_dir: Path | str | None,
    compile_dir: Path | str | None,
    torch_transforms: Iterable[object],
    onnx_transforms: Iterable[object],
    specializations: Iterable[Specialization | Mapping[str, object]],
    compiler_options: Mapping[str, object],
    backend: Mapping[str, object],
    sdk_versions: Mapping[str, object],
    onnx_path: Path | str | None = None,
    qpc_config: Mapping[str, object] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Path:
    """Writes ``qconfig.json`` into `directory` and returns its path.

    The file is information: no key and no later stage depends on it.

    The paths are those of the file of that name that QEfficient writes for Cloud AI 100:

    ==================================================  ============================================================
    ``huggingface_config``                              the model's configuration
    ``qpc_config.QEff_config.pytorch_transforms``       names of the transforms of the torch module, in order
    ``qpc_config.QEff_config.onnx_transforms``          names of the transforms of the ONNX graph, in order
    ``qpc_config.QEff_config.onnx_path``                the portable ONNX file; null when `onnx_path` is not given
    ``qpc_config.QEff_config.export_dir``               the directory of the export
    ``qpc_config.compiler_config.compile_dir``          the directory of the program
    ``qpc_config.compiler_config.specializations``      flat list; a `Specialization`'s name is under ``_graph_name``
    ``qpc_config.compiler_config.<option>``             each compile option; ``num_cores`` and ``num_devices`` also as
                                                        ``aic_num_cores`` and ``mdp_ts_num_devices``
    ``qpc_config.aic_sdk_config``                       `sdk_versions`, of whichever SDK the backend uses
    ``qpc_config.<name>``                               the entries of `qpc_config`, which the backend adds
    ``backend``                                         name, distribution, version and fingerprint
    ``<name>``                                          the entries of `extra`
    ==================================================  ============================================================

    Indented by 4, keys sorted, sets as sorted lists, dataclasses as objects, paths as given, classes and functions by
    name. Raises `ArtifactError`, and writes nothing, for NaN, for objects that JSON cannot express, and when an option
    or an entry of `qpc_config` or `extra` has the name of something else in its place.
    """
    options = dict(compiler_options)
    aliases = {alias: options[name] for name, alias in _KNOWN_AS.items() if name in options and alias not in options}
    own = {"compile_dir": compile_dir, "specializations": [_flat(item) for item in specializations]}
    program = {
        "QEff_config": {
            "pytorch_transforms": _ordered(torch_transforms),
            "onnx_transforms": _ordered(onnx_transforms),
            "onnx_path": onnx_path,
            "export_dir": export_dir,
        },
        "compiler_config": _joined(own, {**options, **aliases}, "compiler option"),
        "aic_sdk_config": sdk_versions,
    }
    content = {
        "huggingface_config": huggingface_config,
        "qpc_config": _joined(program, qpc_config or {}, "entry of `qpc_config`"),
        "backend": backend,
    }
    value = to_json_value(_joined(content, extra or {}, "entry of `extra`"), _informative)
    text = json.dumps(value, indent=4, sort_keys=True, separators=(",", ":"), allow_nan=False)
    path = directory / QCONFIG_FILE
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _flat(specialization: Specialization | Mapping[str, object]) -> Mapping[str, object]:
    if isinstance(specialization, Specialization):
        return {**specialization.dims, "_graph_name": specialization.name}
    return specialization


def _ordered(transforms: Iterable[object]) -> object:
    """Keeps the order of sequences; sets are left for `plain` to sort."""
    return transforms if isinstance(transforms, (set, frozenset)) else list(transforms)


def _joined(own: Mapping[str, object], added: Mapping[str, object], what: str) -> dict[str, object]:
    if clash := sorted(own.keys() & added.keys()):
        raise ArtifactError(
            f"{QCONFIG_FILE} cannot hold the {what} '{clash[0]}': that name stands for something else there. Rename it"
        )
    return {**own, **added}


def _informative(value: object, place: str) -> Json:
    if isinstance(value, (PurePath, os.PathLike)):
        return os.fspath(value)
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):  # a class or a function; its repr would contain an address
        return name
    raise ArtifactError(
        f"{QCONFIG_FILE} cannot hold '{place}': "
        f"JSON has no form for {type(value).__module__}.{type(value).__qualname__}"
    )
