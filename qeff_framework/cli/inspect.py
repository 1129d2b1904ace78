"""``qeff inspect``: what an export or a compiled artifact consists of."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import add_subcommand, add_verify
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.cli.tables import facts, size
from qeff_framework.errors import ArtifactError

if TYPE_CHECKING:
    from qeff_framework.artifacts import Problem
    from qeff_framework.cli.progress import ProgressHandler
    from qeff_framework.contracts import CompiledModel, ExportedModel


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "inspect",
        run,
        summary="describe an export or a compiled artifact",
        description="Describes an export or a compiled artifact and checks its files. The exit code is 1 if they are damaged.",
        examples=["qeff inspect gpt2-compiled", "qeff inspect gpt2-compiled --verify full --json"],
    )
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a directory that `qeff export` or `qeff compile` has written"
    )
    add_verify(parser)
    parser.add_argument("--full", dest="verify", action="store_const", const="full", help="the same as --verify full")


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Describes one directory."""
    from qeff_framework.artifacts import verify
    from qeff_framework.progress import report

    subject = _load(args.path)
    files = {
        path.relative_to(args.path).as_posix(): path.stat().st_size
        for path in sorted(args.path.rglob("*"))
        if path.is_file()
    }
    report(f"checking {len(files)} files ({size(sum(files.values()))})")
    problems = verify(args.path, full=args.verify == "full")
    document = {
        **_description(subject),
        **_provenance(args.path, problems),
        "files": [{"name": name, "size": count} for name, count in files.items()],
        "size": sum(files.values()),
        "check": args.verify,
        "intact": not problems,
        "problems": [{"file": item.file, "kind": item.kind.value, "detail": item.detail} for item in problems],
    }
    return CommandResult(
        document=document,
        text=_text(document),
        failure=f"{args.path} is damaged: {problems[0]}; delete the directory and build it again" if problems else "",
    )


def _load(path: Path) -> ExportedModel | CompiledModel:
    from qeff_framework.contracts import CompiledModel, ExportedModel

    if not path.is_dir():
        raise ArtifactError(f"{path} is not a directory; give one that `qeff export` or `qeff compile` has written")
    kinds: Sequence[type[CompiledModel | ExportedModel]] = (CompiledModel, ExportedModel)
    for kind in kinds:
        if (path / kind.FILE).is_file():
            return kind.load(path)
    raise ArtifactError(
        f"{path} holds neither {CompiledModel.FILE} nor {ExportedModel.FILE}; give a directory that `qeff export` or "
        "`qeff compile` has written"
    )


def _description(subject: ExportedModel | CompiledModel) -> dict[str, Any]:
    from qeff_framework.cli.compile import named_specializations
    from qeff_framework.contracts import CompiledModel
    from qeff_framework.runtime.loading import holds_no_program

    compiled = subject if isinstance(subject, CompiledModel) else None
    qconfig = _qconfig(subject.directory)
    parts: Mapping[str, ExportedModel | CompiledModel] = {"": subject} if compiled is None else compiled.parts()
    return {
        "kind": "compiled" if compiled else "export",
        "directory": str(subject.directory),
        "backend": {**qconfig.get("backend", {}), "name": compiled.backend, **_other_backends(compiled)}
        if compiled
        else None,
        "task": subject.task,
        "model": subject.metadata.get("model_name", ""),
        "architecture": subject.metadata.get("architecture", ""),
        "dry_run": any(holds_no_program(part) for part in parts.values() if isinstance(part, CompiledModel)),
        "specializations": [{"name": name, "dims": dict(item.dims)} for name, item in named_specializations(compiled)]
        if compiled
        else [],
        "windows": _windows(parts),
        **_interface(parts),
        "transforms": {
            "torch": _torch_transforms(qconfig) if compiled else list(subject.transforms),
            "onnx": list(subject.transforms) if compiled else [],
        },
        "packed_weights": _packed_weights(parts.values()),
        "options": dict(compiled.options) if compiled else {},
        "program": dict(compiled.program) if compiled else {},
        "metadata": dict(subject.metadata),
    }


def _windows(parts: Mapping[str, ExportedModel | CompiledModel]) -> list[dict[str, Any]]:
    """The programs of a model that is cut between its layers, in the order of a step, and what each hands on to later ones."""
    from qeff_framework.contracts import CompiledModel
    from qeff_framework.sessions import host_outputs

    found = []
    for program, part in parts.items():
        if isinstance(part, CompiledModel):
            own = {spec.name for spec in part.outputs}
            for name, window in part.windows().items():
                handed_on = [asdict(spec) for spec in host_outputs(window) if spec.name not in own]
                found.append({"name": f"{program}/{name}" if program else name, "handed_on": handed_on})
    return found


def _interface(parts: Mapping[str, ExportedModel | CompiledModel]) -> dict[str, Any]:
    """Inputs, outputs and states; where there are several programs, with the program's name in front."""

    def named(program: str, item: Mapping[str, Any], *fields: str) -> dict[str, Any]:
        return {**item, **{field: f"{program}/{item[field]}" for field in fields if program}}

    return {
        "inputs": [named(name, asdict(item), "name") for name, part in parts.items() for item in part.inputs],
        "outputs": [named(name, asdict(item), "name") for name, part in parts.items() for item in part.outputs],
        "states": [
            named(name, asdict(item), "input", "output") for name, part in parts.items() for item in part.states
        ],
    }


def _packed_weights(parts: Iterable[ExportedModel | CompiledModel]) -> dict[str, Any]:
    """Bits and size of blocks of the weights that stay as the checkpoint has packed them, by name."""
    found: dict[str, Any] = {}
    for part in parts:
        found |= part.metadata.get("packed_weights", {})
    return found


def _qconfig(directory: Path) -> Mapping[str, Any]:
    """The artifact's ``qconfig.json``, as far as it can be read: it only adds to the picture."""
    try:
        content = json.loads((directory / "qconfig.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _torch_transforms(qconfig: Mapping[str, Any]) -> Any:
    return qconfig.get("qpc_config", {}).get("QEff_config", {}).get("pytorch_transforms", [])


def _provenance(path: Path, problems: Iterable[Problem]) -> dict[str, Any]:
    """Key, time and versions from the manifest; nothing when the manifest itself is the problem."""
    from qeff_framework.artifacts import Manifest

    if any(problem.file == Manifest.FILE for problem in problems):
        return {"key": "", "created": "", "versions": {}}
    manifest = Manifest.load(path)
    versions: dict[str, Any] = {"qeff-framework": manifest.core_version}
    for part in ("libraries", "fingerprint"):
        found = manifest.key_parts.get(part)
        versions |= found if isinstance(found, dict) else {}
    return {"key": manifest.key, "created": manifest.created.isoformat(), "versions": versions}


def _text(document: Mapping[str, Any]) -> str:
    problems = [f"{item['file']} {item['detail']}" for item in document["problems"]]
    intact = "intact" if document["intact"] else "\n".join(["DAMAGED", *problems])
    states = {item["input"]: item for item in document["states"]}
    shown = {
        "kind": f"{document['kind']}{', dry run' if document['dry_run'] else ''}",
        "directory": document["directory"],
        "backend": _backend_line(document["backend"]) if document["backend"] else "",
        "model": " ".join(str(document[name]) for name in ("model", "architecture") if document[name]),
        "task": document["task"],
        "programs": "\n".join(f"{item['name']}: {_pairs(item['dims'])}" for item in document["specializations"]),
        "windows": "\n".join(_window_line(item) for item in document["windows"]),
        "inputs": _tensor_lines(item for item in document["inputs"] if item["name"] not in states),
        "outputs": _tensor_lines(
            item for item in document["outputs"] if item["name"] not in {state["output"] for state in states.values()}
        ),
        "states": _state_lines(document["inputs"], states),
        "torch transforms": "\n".join(document["transforms"]["torch"]),
        "onnx transforms": "\n".join(document["transforms"]["onnx"]),
        "packed weights": _packed_lines(document["packed_weights"]),
        "options": "\n".join(f"{name}={value}" for name, value in document["options"].items()),
        "note": document["program"].get("note", ""),
        "versions": "\n".join(f"{name} {version}" for name, version in document["versions"].items()),
        "created": document["created"],
        "key": document["key"],
        "files": "\n".join(f"{size(item['size']):>10}  {item['name']}" for item in document["files"]),
        "size": size(document["size"]),
        f"check ({document['check']})": intact,
    }
    return facts(shown)


def _other_backends(compiled: CompiledModel) -> dict[str, dict[str, str]]:
    """The backend of each program, where they have several."""
    found = {name: part.backend for name, part in compiled.parts().items()}
    return {"programs": found} if len(set(found.values())) > 1 else {}


def _backend_line(backend: Mapping[str, Any]) -> str:
    origin = backend.get("distribution")
    main = f"{backend['name']} ({origin})" if origin else str(backend["name"])
    return "\n".join([main, *(f"{name}: {each}" for name, each in backend.get("programs", {}).items())])


def _window_line(window: Mapping[str, Any]) -> str:
    handed_on = ", ".join(_tensor_line(item["name"], item) for item in window["handed_on"])
    return f"{window['name']}{f' hands on {handed_on}' if handed_on else ''}"


def _tensor_lines(tensors: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(_tensor_line(item["name"], item) for item in tensors)


def _tensor_line(name: str, tensor: Mapping[str, Any]) -> str:
    return f"{name} {tensor['dtype']} [{', '.join(map(str, tensor['shape']))}]"


def _state_lines(inputs: Iterable[Mapping[str, Any]], states: Mapping[str, Mapping[str, Any]]) -> str:
    """States of the same kind, type and shape in one line: a decoder has two per layer."""
    counted = Counter(
        _tensor_line(f"{states[item['name']]['kind']} state", item) for item in inputs if item["name"] in states
    )
    return "\n".join(f"{count} x {line}" for line, count in counted.items())


def _packed_lines(weights: Mapping[str, Mapping[str, int]]) -> str:
    """Weights of the same place in several layers in one line."""
    counted = Counter(
        (re.sub(r"\b\d+\b", "*", name), form["bits"], form["block_size"], form.get("experts", 0))
        for name, form in weights.items()
    )
    return "\n".join(
        f"{count} x {name} in blocks of {size} with {bits} bits{f', {experts} experts' if experts else ''}"
        for (name, bits, size, experts), count in counted.items()
    )


def _pairs(dims: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in dims.items())
