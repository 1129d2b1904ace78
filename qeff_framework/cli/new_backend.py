"""``qeff new-backend``: a package for a backend of one's own, which works from the start."""

from __future__ import annotations

import argparse
import keyword
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.cli.arguments import add_subcommand
from qeff_framework.cli.command_result import CommandResult
from qeff_framework.errors import OptionError
from qeff_framework.plugin_metadata import is_backend_name

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from qeff_framework.cli.progress import ProgressHandler

logger = logging.getLogger(__name__)

#: Where the compiler runs -> folder of `backend_template` with the files that differ.
VARIANTS = ("external", "python")
#: They would be taken for something else where a backend is named.
_RESERVED = ("all", "auto", "core", "none")
_SUFFIX = ".tmpl"


def add_to(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = add_subcommand(
        subparsers,
        "new-backend",
        run,
        summary="write a package for a backend of your own",
        description="Writes a package that can be installed and passes its own tests at once: a backend that runs models in ONNX "
        "Runtime, whose pieces are replaced one at a time. Nothing is downloaded.",
        examples=["qeff new-backend acme", "qeff new-backend acme --compiler python --dir work/acme"],
    )
    parser.add_argument("name", metavar="NAME", help="what users will write after --backend")
    parser.add_argument(
        "--compiler",
        choices=VARIANTS,
        default="external",
        help="external (default): the compiler is a program, which runs as a child process; python: it is called in the process",
    )
    parser.add_argument("--dir", metavar="DIR", type=Path, help="the folder to make (default: qeff-NAME-backend)")


def run(args: argparse.Namespace, progress: ProgressHandler) -> CommandResult:  # noqa: ARG001 - every subcommand has this signature
    """Writes the package."""
    words = _words(args.name)
    _warn_of_namesakes(words)
    directory: Path = args.dir or Path(words["distribution"])
    files = write_package(directory, words, args.compiler)
    steps = (f"pip install -e '{directory}[test]'", f"pytest {directory}", f"qeff doctor {words['name']}")
    return CommandResult(
        document={
            "name": words["name"],
            "distribution": words["distribution"],
            "package": words["package"],
            "directory": str(directory),
            "files": files,
        },
        text="\n".join(
            [
                f"{directory}: {len(files)} files. README.md says what to replace by what. Next:",
                *(f"    {s}" for s in steps),
            ]
        ),
    )


def _warn_of_namesakes(words: dict[str, str]) -> None:
    """Of two installed backends with one name neither is chosen by it, and pip puts one package in another's place."""
    from qeff_framework.registry import list_backends, normalize

    for backend in list_backends():
        if normalize(backend.name) == words["name"]:
            logger.warning(
                "a backend named '%s' is installed, by the package %s %s: before yours is installed, uninstall that one, or give "
                "yours another name",
                backend.name,
                backend.distribution,
                backend.version,
            )


def write_package(directory: Path, words: dict[str, str], variant: str) -> list[str]:
    """Writes the files of a variant into `directory` and returns their names.

    Raises:
        OptionError: `directory` exists and is not an empty folder, or cannot be written. Nothing is left behind.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise OptionError(f"{directory} is not empty; name another folder with --dir")
    content = {_filled(name, words): _filled(text, words) for name, text in _templates(variant)}
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".qeff-new-backend-") as staging:
            whole = Path(staging, "package")
            for name, text in content.items():
                target = whole / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
            whole.rename(directory)
    except OSError as error:
        raise OptionError(
            f"cannot write the package to {directory}: {error}; name another folder with --dir"
        ) from error
    return sorted(content)


def _words(given: str) -> dict[str, str]:
    """What stands in the templates, by the name between ``@`` signs."""
    from importlib.metadata import PackageNotFoundError, version

    from qeff_framework.plugin_api import API_VERSION, BACKEND_GROUP
    from qeff_framework.registry import normalize

    name = normalize(given)
    package = f"{name}_backend"
    if not is_backend_name(given) or not package.isidentifier() or keyword.iskeyword(name) or name in _RESERVED:
        raise OptionError(
            f"'{given}' cannot be the name of a backend: it is typed on command lines and names a Python package, so it begins "
            f"with a letter, has letters, digits, - and _, and is none of {', '.join(_RESERVED)}"
        )
    try:
        major, minor = version("qeff-framework").split(".")[:2]
    except PackageNotFoundError:
        framework_range = ""
    else:
        framework_range = f">={major}.{minor},<{major}.{int(minor) + 1}"
    return {
        "name": name,
        "Name": "".join(part[:1].upper() + part[1:] for part in name.split("_")),
        "NAME": name.upper(),
        "package": package,
        "distribution": f"qeff-{name.replace('_', '-')}-backend",
        "group": BACKEND_GROUP,
        "api": API_VERSION,
        "framework_range": framework_range,
    }


def _templates(variant: str) -> Iterator[tuple[str, str]]:
    """Path and text of each template."""
    from importlib.resources import files

    root = files("qeff_framework") / "backend_template"
    for folder in ("common", variant):
        yield from _texts(root / folder, "")


def _texts(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _texts(item, f"{prefix}{'@package@' if item.name == 'package' else item.name}/")
        elif item.name.endswith(_SUFFIX):
            yield f"{prefix}{item.name.removesuffix(_SUFFIX)}", item.read_text(encoding="utf-8")


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text
