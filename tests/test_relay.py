"""One relay per backend: what pluggy lets pass and we refuse, and that nobody else can answer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from qeff_framework.contracts import (
    Capabilities,
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExportedModel,
    ExportRequest,
    TransformRequest,
)
from qeff_framework.errors import (
    BackendError,
    BackendIncompatibleError,
    CompileError,
    ExportError,
    ExtensionError,
    UnsupportedModelError,
)
from qeff_framework.extensions.timing import TimingExtension
from qeff_framework.hookspecs import hookimpl
from qeff_framework.plugin_api import Backend
from qeff_framework.relay import Relay
from tests.recording_backend import Pass


class Acme(Backend):
    name = "acme"
    capabilities = Capabilities(tasks=frozenset({"causal-lm"}))
    implementation = "unused:Unused"


def relay_of(implementation: object, **extensions: object) -> Relay:
    return Relay(Acme(), implementation=implementation, extensions=extensions, origin="qeff-acme 1.0")


def compile_request(directory: Path) -> CompileRequest:
    (directory / "program").touch()
    exported = ExportedModel(directory=directory, task="causal-lm", model_file="model.onnx", inputs=(), outputs=())
    unused: Any = None
    return CompileRequest(
        exported=exported, model=unused, transforms=(), specializations=(), options=None, output_dir=directory
    )


def compiled(request: CompileRequest, backend: str = "acme") -> CompiledModel:
    return CompiledModel(
        directory=request.output_dir, backend=backend, task="causal-lm", specializations=(), inputs=(), outputs=()
    )


def test_the_backend_answers(tmp_path: Path) -> None:
    class Hooks:
        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            return compiled(request)

    assert relay_of(Hooks()).compile(compile_request(tmp_path)).directory == tmp_path


def with_default(self: Any, request: CompileRequest, level: int = 1) -> None: ...
def keyword_only(self: Any, *, request: CompileRequest) -> None: ...
def anything(self: Any, **kwargs: Any) -> None: ...
def other_name(self: Any, requets: CompileRequest) -> None: ...


@pytest.mark.parametrize("method", [with_default, keyword_only, anything, other_name])
def test_signatures_that_pluggy_would_call_wrongly_are_refused(method: Callable[..., None]) -> None:
    hooks = type("Hooks", (), {"compile": hookimpl(method)})
    with pytest.raises(
        BackendIncompatibleError, match=r"'acme' \(qeff-acme 1\.0\).*one plain argument named 'request'"
    ):
        relay_of(hooks())


def test_unknown_hook_and_forgotten_mark_are_refused() -> None:
    class Hooks:
        @hookimpl
        def complie(self, request: CompileRequest) -> None: ...

        def execute(self, request: object) -> None: ...

    with pytest.raises(BackendIncompatibleError, match=r"unknown hook 'complie'.*execute\(\) .* not marked"):
        relay_of(Hooks())


def test_a_wrapper_whose_result_would_pass_unchecked_is_refused() -> None:
    class Hooks:
        @hookimpl(hookwrapper=True)
        def compile(self, request: CompileRequest) -> Generator[None, Any, None]:
            yield

    with pytest.raises(ExtensionError, match="compile.. is marked with hookwrapper=True; mark it with wrapper=True"):
        Relay(None, implementation=None, extensions={"old": Hooks()}, origin="core")


def test_implementation_without_hooks_is_refused() -> None:
    with pytest.raises(BackendIncompatibleError, match="no method marked with @hookimpl"):
        relay_of(object())


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda request: None, "does not answer compile"),
        (lambda request: {"directory": request.output_dir}, "returned dict from compile, not CompiledModel"),
        (lambda request: compiled(request, backend="beta"), "for backend 'beta'"),
    ],
)
def test_wrong_answers_are_errors(
    tmp_path: Path, answer: Callable[[CompileRequest], CompiledModel], complaint: str
) -> None:
    class Hooks:
        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            return answer(request)

    with pytest.raises(BackendError, match=complaint):
        relay_of(Hooks()).compile(compile_request(tmp_path))


def test_a_missing_hook_is_told(tmp_path: Path) -> None:
    class Hooks:
        @hookimpl
        def transform(self, request: TransformRequest) -> list[Any]:
            return []

    with pytest.raises(BackendError, match="does not answer compile"):
        relay_of(Hooks()).compile(compile_request(tmp_path))


def test_transforms_of_extensions_come_before_the_backends() -> None:
    def a_pass(title: str) -> object:
        return type("Pass", (), {"name": title, "version": "1", "__call__": lambda self, subject: False})()

    def hooks_with(title: str) -> object:
        class Hooks:
            @hookimpl
            def transform(self, request: TransformRequest) -> list[Any]:
                return [a_pass(title)]

        return Hooks()

    relay = relay_of(hooks_with("backend"), extra=hooks_with("extension"))
    names = [item.name for item in relay.transform(TransformRequest(stage="onnx", task="causal-lm", options=None))]
    assert names == ["extension", "backend"]


def test_transform_must_return_transforms() -> None:
    class Hooks:
        @hookimpl
        def transform(self, request: TransformRequest) -> Any:
            return ["FuseEverything"]

    with pytest.raises(BackendError, match="expected a list of objects with name, version"):
        relay_of(Hooks()).transform(TransformRequest(stage="onnx", task="causal-lm", options=None))


def test_timing_wraps_every_stage_and_keeps_failures(tmp_path: Path) -> None:
    class Hooks:
        @hookimpl
        def export(self, request: ExportRequest) -> ExportedModel:
            raise ValueError("no")

        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            return compiled(request)

    timing = TimingExtension()
    relay = relay_of(Hooks(), timing=timing)
    module: Any = None
    with pytest.raises(ExportError, match="acme.*failed to export: ValueError: no"):
        relay.export(ExportRequest(module=module, task="causal-lm", output_dir=tmp_path))
    relay.compile(compile_request(tmp_path))
    assert [(record.stage, record.failed_with) for record in timing.records] == [
        ("export", "ExportError"),
        ("compile", ""),
    ]
    assert all(record.seconds >= 0 for record in timing.records)


def test_an_extension_can_wrap_and_replace(tmp_path: Path) -> None:
    class Hooks:
        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            return compiled(request)

    class Marker:
        @hookimpl(wrapper=True)
        def compile(self, request: CompileRequest) -> Generator[None, CompiledModel, CompiledModel]:
            result = yield
            return CompiledModel(**{**result.__dict__, "metadata": {"marked": True}})

    assert relay_of(Hooks(), marker=Marker()).compile(compile_request(tmp_path)).metadata == {"marked": True}


def test_a_bad_extension_is_told_as_such() -> None:
    class Hooks:
        @hookimpl
        def compile(self, request: CompileRequest) -> None: ...

    with pytest.raises(ExtensionError, match="extension 'odd'"):
        relay_of(Hooks(), odd=object())


def test_an_exception_is_blamed_on_the_plugin_that_raised_it(tmp_path: Path) -> None:
    class Hooks:
        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            raise ZeroDivisionError("of the backend")

    class Passing:
        @hookimpl(wrapper=True)
        def compile(self, request: CompileRequest) -> Generator[None, CompiledModel, CompiledModel]:
            return (yield)

    class Failing:
        @hookimpl(wrapper=True)
        def compile(self, request: CompileRequest) -> Generator[None, CompiledModel, CompiledModel]:
            yield
            raise ZeroDivisionError("of the extension")

    class Fine:
        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            return compiled(request)

    with pytest.raises(CompileError, match=r"^backend 'acme' \(qeff-acme 1\.0\) failed to compile: .*of the backend"):
        relay_of(Hooks(), passing=Passing()).compile(compile_request(tmp_path))
    with pytest.raises(CompileError, match=r"^extension 'failing' \(.*\) failed to compile: .*of the extension"):
        relay_of(Fine(), failing=Failing()).compile(compile_request(tmp_path))


def test_a_wrong_result_is_blamed_on_the_plugin_that_returned_it(tmp_path: Path) -> None:
    """Also where an extension damages what the backend has written, and returns the backend's own result."""

    class Hooks:
        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            return compiled(request)

        @hookimpl
        def transform(self, request: TransformRequest) -> list[Any]:
            return [Pass("Lower")]

        @hookimpl
        def execute(self, request: ExecuteRequest) -> Any:
            return Session(request.compiled)

    class Session:
        info: Mapping[str, str] = MappingProxyType({})

        def __init__(self, compiled: CompiledModel) -> None:
            self.compiled = compiled

        def run(self, inputs: Mapping[str, Any]) -> Any:
            return {}

        def reset(self) -> None: ...
        def close(self) -> None: ...

    class Wrong(Session):
        def run(self, inputs: Mapping[str, Any]) -> Any:
            return None

    def wrapped(hook: str, change: Callable[[Any, Any], Any]) -> Relay:
        def around(self: object, request: Any) -> Generator[None, Any, Any]:
            return change((yield), request)

        return relay_of(
            Hooks(), timing=TimingExtension(), odd=type("Odd", (), {hook: hookimpl(wrapper=True)(around)})()
        )

    def emptied(result: CompiledModel, request: CompileRequest) -> CompiledModel:
        (request.output_dir / "program").unlink()
        return result

    odd = r"^extension 'odd' \(an unknown package\) returned "
    other = wrapped("compile", lambda result, request: dataclasses.replace(result, backend="beta"))
    with pytest.raises(ExtensionError, match=rf"{odd}a program .*for backend 'beta'"):
        other.compile(compile_request(tmp_path))
    with pytest.raises(ExtensionError, match=rf"{odd}a program .*no file"):
        wrapped("compile", emptied).compile(compile_request(tmp_path))
    with pytest.raises(BackendError, match=r"does not answer compile.*dropped its result \(timing, odd\)"):
        wrapped("compile", lambda result, request: None).compile(compile_request(tmp_path))
    transforms = TransformRequest(stage="onnx", task="causal-lm", options=None)
    with pytest.raises(ExtensionError, match=rf"{odd}.*from transform"):
        wrapped("transform", lambda result, request: [["Lower"]]).transform(transforms)

    program = compiled(compile_request(tmp_path))
    execute = ExecuteRequest(compiled=program, options=None)
    with pytest.raises(ExtensionError, match=rf"{odd}int from execute"):
        wrapped("execute", lambda result, request: 3).execute(execute)
    session = wrapped("execute", lambda result, request: Wrong(request.compiled)).execute(execute)
    with pytest.raises(BackendError, match=rf"{odd}NoneType from a step"):
        session.run({})
    assert wrapped("execute", lambda result, request: result).execute(execute).run({}) == {}


def test_errors_of_the_core_are_not_blamed_on_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UnsupportedModelError("no graph for this model")

    # The real module would import torch for nothing.
    monkeypatch.setitem(sys.modules, "qeff_framework.export.portable", SimpleNamespace(export_portable=refuse))

    class Hooks:
        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            return compiled(request)

    module: Any = None
    with pytest.raises(UnsupportedModelError, match=r"^no graph for this model$"):
        relay_of(Hooks(), timing=TimingExtension()).export(
            ExportRequest(module=module, task="causal-lm", output_dir=tmp_path)
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda subject: 1 / 0, r"\(qeff-acme 1\.0\) failed in transform 'Lower': ZeroDivisionError"),
        (lambda subject: None, r"returned None from transform 'Lower', not whether it changed anything"),
    ],
)
def test_a_transform_that_fails_or_says_nothing_names_the_backend(change: Callable[[Any], Any], said: str) -> None:
    class Hooks:
        @hookimpl
        def transform(self, request: TransformRequest) -> list[Any]:
            return [Pass("Lower", change=change)]

    [transform] = relay_of(Hooks()).transform(TransformRequest(stage="onnx", task="causal-lm", options=None))
    with pytest.raises((BackendError, CompileError), match=said):
        transform(None)


def test_a_class_is_no_transform() -> None:
    class Lower:
        name, version = "Lower", "1"

        def __call__(self, subject: Any) -> bool:
            return True

    class Hooks:
        @hookimpl
        def transform(self, request: TransformRequest) -> list[Any]:
            return [Lower]

    with pytest.raises(BackendError, match="a class is no such object"):
        relay_of(Hooks()).transform(TransformRequest(stage="onnx", task="causal-lm", options=None))


def test_an_extension_may_answer_a_hook_and_wrap_it(tmp_path: Path) -> None:
    """As a store does that is read before something is built and written afterwards."""
    told: list[str] = []

    class Hooks:
        @hookimpl
        def compile(self, request: CompileRequest) -> CompiledModel:
            told.append("built")
            return compiled(request)

    class Store:
        kept: CompiledModel | None = None

        @hookimpl(tryfirst=True)
        def compile(self, request: CompileRequest) -> CompiledModel | None:
            return self.kept

        @hookimpl(wrapper=True, specname="compile")
        def keep(self, request: CompileRequest) -> Generator[None, CompiledModel, CompiledModel]:
            self.kept = yield
            told.append("kept")
            return self.kept

    relay = relay_of(Hooks(), store=Store())
    for _ in range(2):
        assert relay.compile(compile_request(tmp_path)).directory == tmp_path
    assert told == ["built", "kept", "kept"]
