"""The hooks of one plugin, called through functions that name the plugin when it fails.

pluggy calls the hooks of the core, of extensions and of the backend in one chain. Each is guarded on its own, so that an
exception is blamed on the plugin that raised it, and on nobody that it passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from qeff_framework.contracts import Transform, TransformRequest
from qeff_framework.errors import BackendError, CompileError, ExecutionError, ExportError, QEFFError
from qeff_framework.hookspecs import PROJECT
from qeff_framework.plugin_answers import blamed
from qeff_framework.plugin_metadata import printable

HOOKS = ("transform", "export", "compile", "execute")
_MARK = f"{PROJECT}_impl"
#: Hook -> what it failed to do, and the error of its stage.
_STAGES: dict[str, tuple[str, type[QEFFError]]] = {
    "transform": ("failed to name its transforms", BackendError),
    "export": ("failed to export", ExportError),
    "compile": ("failed to compile", CompileError),
    "execute": ("failed to load the program", ExecutionError),
}


class _Hooks:
    """What pluggy sees instead of the plugin."""


def guarded_hooks(plugin: object, told: str | None, error_type: type[QEFFError]) -> object:
    """Returns an object with the hooks of `plugin`.

    Args:
        plugin: an object whose hooks are marked with `hookimpl`.
        told: how messages call it, ``"backend 'acme' (qeff-acme-backend 1.0)"``; `None` for the core.
        error_type: raised for an answer that breaks the contract of `transform`.
    """
    guarded = _Hooks()
    for method_name, marks in marked_methods(plugin):
        name = hook_name(method_name, marks)
        method = getattr(plugin, method_name)
        is_wrapper = marks.get("wrapper") or marks.get("hookwrapper")
        function = _wrapper(method, name, told) if is_wrapper else _answer(method, name, told, error_type)
        setattr(function, _MARK, marks)
        setattr(guarded, method_name, function)
    return guarded


def marked_methods(plugin: object) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and marks of each method that is marked with `hookimpl`."""
    found = []
    for name in dir(type(plugin)):
        marks = getattr(inspect.getattr_static(type(plugin), name), _MARK, None)
        if isinstance(marks, Mapping):
            found.append((name, marks))
    return found


def hook_name(method_name: str, marks: Mapping[str, Any]) -> str:
    """The hook that a marked method implements: a plugin may have two for one hook, which `hookimpl(specname=...)` names."""
    return marks.get("specname") or method_name


def _wrapper(method: Any, name: str, told: str | None) -> Any:
    # pluggy recognises a wrapper by its being a generator function.
    def hook(request: Any) -> Generator[Any, Any, Any]:
        with blamed(told, *_STAGES[name]):
            return (yield from method(request))

    return hook


def _answer(method: Any, name: str, told: str | None, error_type: type[QEFFError]) -> Any:
    def hook(request: Any) -> Any:
        with blamed(told, *_STAGES[name]):
            result = method(request)
        return _transforms(result, request, told or "the core", error_type) if name == "transform" else result

    return hook


def _transforms(
    result: object, request: TransformRequest, told: str, error_type: type[QEFFError]
) -> list[GuardedTransform]:
    if not isinstance(result, Sequence) or not all(_is_transform(item) for item in result):
        raise error_type(
            f"{told} returned {printable(repr(result), longest=100)} from transform, expected a list of objects with name, "
            "version and __call__; a class is no such object, its instance is"
        )
    return [GuardedTransform(item, told, request.stage) for item in result]


def _is_transform(item: object) -> bool:
    if isinstance(item, type) or not isinstance(item, Transform):
        return False
    return isinstance(item.name, str) and isinstance(item.version, str)


class GuardedTransform:
    """Calls `transform`; a failure names the plugin, and so does an answer that says nothing about a change."""

    def __init__(self, transform: Transform, told: str, stage: str) -> None:
        self.name, self.version = transform.name, transform.version
        # Part of cache keys: the package that the transform is from.
        self.__module__ = getattr(transform, "__module__", None) or type(transform).__module__
        self._transform, self._told = transform, told
        self._error: type[QEFFError] = ExportError if stage == "torch" else CompileError

    def __call__(self, subject: Any, /) -> bool:
        """See `Transform`."""
        with blamed(self._told, f"failed in transform '{self.name}'", self._error):
            result: object = self._transform(subject)
        changed = getattr(result, "modified", result)
        if not isinstance(changed, bool):
            raise BackendError(
                f"{self._told} returned {printable(repr(result), longest=60)} from transform '{self.name}', not whether it "
                "changed anything (True or False)"
            )
        return changed
