"""One artifact of programs that several backends have compiled: each keeps its own, and the artifact is complete in itself."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qeff_framework.artifacts import Manifest, Store, cache_key, hard_link, shared_digests
from qeff_framework.contracts import COMPANIONS, PACKAGE, CompiledModel

#: Part of every key. Change it whenever such an artifact gets other contents for the same programs.
_FORMAT = 1


def joined(
    parts: Sequence[CompiledModel], name: str, *, destination: Path | None, on_wait: Callable[[], None], rebuild: bool
) -> CompiledModel:
    """The artifact of all programs of `parts`, which are artifacts of several programs each; the last is the main one.

    Files are linked where the file system can. `name`: of the model, for people.
    """
    keys = [[part.backend, Manifest.load(part.directory).key] for part in parts]
    described = {"format": _FORMAT, "parts": keys}

    def build(output_dir: Path) -> Mapping[str, str]:
        places: dict[str, str] = {}
        for part in parts:
            for program, place in part.programs.items():
                _copied(part.directory / place, output_dir / place)
                _name_package(output_dir / place, part)
                places[program] = place
        main = parts[-1]
        for companion in (*COMPANIONS, "qconfig.json"):
            if (main.directory / companion).exists():
                _copied(main.directory / companion, output_dir / companion)
        for part in parts[:-1]:
            # Parts of one backend differ in their options.
            alike = sum(each.backend == part.backend for each in parts) > 1
            told = f"{part.backend}-{'-'.join(part.programs)}" if alike else part.backend
            _copied(part.directory / "qconfig.json", output_dir / f"qconfig-{told}.json")
        dataclasses.replace(main, directory=output_dir, programs=places).save()
        return shared_digests(output_dir, [part.directory for part in parts])

    label = f"{'-'.join(dict.fromkeys(backend for backend, _ in keys))}-{name}"
    key = cache_key(described)
    stored = Store().get_or_build(
        "compiled", label, key, described, build, destination=destination, on_wait=on_wait, rebuild=rebuild
    )
    return CompiledModel.load(stored.path)


def _copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_linked)
    else:
        _linked(os.fspath(source), os.fspath(target))


def _linked(source: str, target: str) -> None:
    if not hard_link(Path(source), Path(target)):
        shutil.copy2(source, target)


def _name_package(place: Path, part: CompiledModel) -> None:
    """A program says which package has compiled it, which the artifact of one backend says once for all."""
    program = CompiledModel.load(place)
    # The file has another name in the artifact that it is from.
    (place / CompiledModel.FILE).unlink()
    dataclasses.replace(program, metadata={**program.metadata, PACKAGE: part.metadata.get(PACKAGE)}).save()
