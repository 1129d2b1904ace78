"""The hooks of one plugin, called through functions that name the plugin when it fails.

pluggy calls the hooks of the core, of extensions and of the backend in one chain. Each is guarded on its own, so that an
exception is blamed on the plugin that raised it, and on nobody that it passes; a wrong result on the one that returned it.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from qeff_framework.contracts import Transform, TransformRequest
from qeff_framework.errors import BackendError, CompileError, ExecutionError, ExportError, ExtensionError, QEFFError
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


class CheckResult(Protocol):
    """Checks what one plugin has returned from a hook."""

    def __call__(self, hook: str, result: object, request: Any, told: str) -> object:
        """Returns what takes the place of `result`. Raises `BackendError` for a result that does not answer the request."""


@dataclass(frozen=True, kw_only=True)
class _Plugin:
    #: How messages call it; `None` for the core.
    told: str | None
    error_type: type[QEFFError]
    check: CheckResult

    @contextmanager
    def unchanged(self, request: Any, hook: str) -> Iterator[None]:
        """Raises an error of the plugin where its hook has changed what the request says.

        The result is compared with the request, and the export is the next backend's as well: a size that was changed in place
        would be published as the one that was asked for.
        """
        before = _said(request) if self.told is not None else {}
        yield
        changed = [name for name, value in before.items() if repr(getattr(request, name)) != value]
        if changed:
            error_type = self.error_type if issubclass(self.error_type, ExtensionError) else BackendError
            raise error_type(
                f"{self.told} changed {', '.join(changed)} of the request in {hook}, which others read as well; a plugin returns "
                "what it changes, in copies (dataclasses.replace, dict(...))"
            )

    def checked(self, hook: str, result: object, request: Any) -> object:
        """The result, once it is known to be right: what comes after this plugin is not to blame for it."""
        try:
            return self.check(hook, result, request, self.told or "the core")
        except BackendError as error:
            if not issubclass(self.error_type, ExtensionError):
                raise
            raise self.error_type(str(error)) from error


#: Parts of requests that are mappings, or hold some.
_READ_ONLY = ("specializations", "exported", "compiled", "options", "program_inputs")


def _said(request: Any) -> dict[str, str]:
    return {name: repr(getattr(request, name)) for name in _READ_ONLY if hasattr(request, name)}


def guarded_hooks(plugin: object, told: str | None, error_type: type[QEFFError], check: CheckResult) -> object:
    """Returns an object with the hooks of `plugin`.

    Args:
        plugin: an object whose hooks are marked with `hookimpl`.
        told: how messages call it, ``"backend 'acme' (qeff-acme-backend 1.0)"``; `None` for the core.
        error_type: raised for an answer that breaks the contract of `transform`, and for every wrong one of an extension.
        check: looks at what the other hooks return.
    """
    owner = _Plugin(told=told, error_type=error_type, check=check)
    guarded = _Hooks()
    for method_name, marks in marked_methods(plugin):
        name = hook_name(method_name, marks)
        method = getattr(plugin, method_name)
        function = (_wrapper if marks.get("wrapper") else _answer)(method, name, owner)
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


def _wrapper(method: Any, name: str, owner: _Plugin) -> Any:
    # pluggy recognises a wrapper by its being a generator function.
    def hook(request: Any) -> Generator[Any, Any, Any]:
        with owner.unchanged(request, name), blamed(owner.told, *_STAGES[name]):
            result = yield from method(request)
        if name != "transform":
            # With `None` nobody has answered, which is not this plugin's fault.
            return None if result is None else owner.checked(name, result, request)
        if not isinstance(result, Sequence):
            raise _no_transforms(result, owner)
        return [_transforms(each, request, owner) for each in result]

    return hook


def _answer(method: Any, name: str, owner: _Plugin) -> Any:
    def hook(request: Any) -> Any:
        with owner.unchanged(request, name), blamed(owner.told, *_STAGES[name]):
            result = method(request)
        if name == "transform":
            return _transforms(result, request, owner)
        # With `None` it leaves the answer to another one.
        return None if result is None else owner.checked(name, result, request)

    return hook


def _transforms(result: object, request: TransformRequest, owner: _Plugin) -> list[GuardedTransform]:
    if not isinstance(result, Sequence) or not all(_is_transform(item) for item in result):
        raise _no_transforms(result, owner)
    told = owner.told or "the core"
    return [
        item if isinstance(item, GuardedTransform) else GuardedTransform(item, told, request.stage) for item in result
    ]


def _no_transforms(result: object, owner: _Plugin) -> QEFFError:
    return owner.error_type(
        f"{owner.told or 'the core'} returned {printable(repr(result), longest=100)} from transform, expected a list of objects "
        "with name, version and __call__; a class is no such object, its instance is"
    )


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
