"""The contract: four hooks, called once per stage and never per token.

A backend implements any of them as methods of one class, marked with `hookimpl`, each taking exactly one argument named
``request``. Requests and results are the frozen dataclasses of `qeff_framework.contracts`; new fields come with
defaults, so that an older backend keeps working. What the framework does around each hook is said there step by step.

The whole protocol, for ``model.compile(backend="acme", ...)`` followed by ``model.generate(...)``:

1. The options are checked against the backend's options class. Nothing has been loaded so far.
2. `transform` is called with ``stage="torch"``; the transforms are applied to the module.
3. `export` is called, unless the artifact store has this export.
4. `transform` is called with ``stage="onnx"``; the transforms are applied to the portable graph, weights memory-mapped.
5. `compile` is called, unless the artifact store has this program.
6. `execute` is called; the generation loop calls the session's `run()`, a plain method.
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from qeff_framework.contracts import (
    CompiledModel,
    CompileRequest,
    ExecuteRequest,
    ExecutionSession,
    ExportedModel,
    ExportRequest,
    Transform,
    TransformRequest,
)

#: Name under which hook specifications and implementations find each other.
PROJECT = "qeff_framework"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class BackendHooks:
    """The hook specifications. Every backend gets a plugin manager of its own, so no hook can answer for another
    backend.
    """

    @hookspec
    def transform(self, request: TransformRequest) -> Sequence[Transform]:
        """Names the passes of one stage. All implementations are asked; the results are joined, the backend's own last.

        Called with ``stage="torch"`` before the export and with ``stage="onnx"`` after it. Return the transforms in
        the order in which they must run, or an empty list. Their names and versions enter the cache keys, so decide
        from the request alone what to return. The framework calls each transform once, in order, and records those
        that changed something.

        A backend that needs no torch-stage transform shares the export of a model with every other such backend.

        Example::

            class AcmeHooks:
                @hookimpl
                def transform(self, request: TransformRequest) -> list[Transform]:
                    return [FuseAcmeAttention()] if request.stage == "onnx" else []


            class FuseAcmeAttention:
                name = "FuseAcmeAttention"
                version = "1"

                def __call__(self, model: onnx_ir.Model) -> bool:
                    nodes = [node for node in model.graph if (node.domain, node.op_type) == ("qeff", "Attention")]
                    for node in nodes:
                        ...
                    return bool(nodes)
        """
        raise AssertionError("a specification is not called")

    @hookspec(firstresult=True)
    def export(self, request: ExportRequest) -> ExportedModel:
        """Turns the torch module into portable ONNX in ``request.output_dir``. The core answers when nobody else does.

        Implement it only for a model or a format that the core's export cannot carry. The framework calls it inside the
        artifact store: the directory is published when the hook returns and removed when it raises. After it the
        framework adds the model's config, generation config and tokenizer. ``request.unloaded`` names weights of the
        module that its checkpoint did not hold: raise `ExportError`, naming it, if the graph reads one.

        Example, an extension that measures the core's own export::

            class Stopwatch:
                @hookimpl(wrapper=True)
                def export(self, request: ExportRequest) -> Generator[None, ExportedModel, ExportedModel]:
                    start = time.perf_counter()
                    exported = yield
                    print(f"export took {time.perf_counter() - start:.1f} s")
                    return exported
        """
        raise AssertionError("a specification is not called")

    @hookspec(firstresult=True)
    def compile(self, request: CompileRequest) -> CompiledModel:
        """Builds the program in ``request.output_dir`` for all of ``request.specializations``.

        `request.model` is the portable graph after the backend's ``"onnx"`` transforms. Write every file into
        ``request.output_dir``, intermediates included, and return a `CompiledModel` whose ``directory`` is that
        folder. Raise `CompileError` when the compiler refuses; the framework then removes the directory. Returning
        `None` is an error.

        Afterwards the framework adds tokenizer, generation config and ``qconfig.json``, writes the manifest, and
        publishes the directory with one rename. It must therefore not contain absolute paths of itself.

        Example::

            @hookimpl
            def compile(self, request: CompileRequest) -> CompiledModel:
                onnx_ir.save(request.model, request.output_dir / "model.onnx", external_data="model.onnx.data")
                run_acme_compiler(request.output_dir / "model.onnx", cores=request.options.num_cores)
                return request.result(backend="acme", program={"file": "model.acme"})
        """
        raise AssertionError("a specification is not called")

    @hookspec(firstresult=True)
    def execute(self, request: ExecuteRequest) -> ExecutionSession:
        """Loads the program and returns a session. The framework has verified the files against the manifest.

        Read everything from ``request.compiled``: the checkpoint and the export may be gone. Its `path` gives the full path of a
        file that `program` names, and refuses names that lead out of the artifact. Neither torch nor
        transformers may be imported here, so that a compiled artifact starts at once. Raise `ExecutionError` or
        `BackendUnavailableError` when the device is not there. Never run on something else than what was asked for.

        Example::

            @hookimpl
            def execute(self, request: ExecuteRequest) -> ExecutionSession:
                return AcmeSession(request.compiled, request.compiled.path(request.compiled.program["file"]))
        """
        raise AssertionError("a specification is not called")
