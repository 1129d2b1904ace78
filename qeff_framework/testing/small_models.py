"""Models of the public interface whose export is a small program: no checkpoint and no tracing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.auto import QEFFAutoModelForCausalLM
from qeff_framework.plans import ExportPlan
from qeff_framework.testing.programs import CHUNK, CTX_LEN, ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qeff_framework.contracts import CompiledModel, ExportedModel
    from qeff_framework.relay import Relay
    from qeff_framework.testing.programs import SmallProgram
    from qeff_framework.testing.subject import Subject

#: Sizes with the specializations of a small program.
SIZES = {"prefill_seq_len": CHUNK, "ctx_len": CTX_LEN, "batch_size": ROWS}


class _Source:
    name = "conformance"

    def config(self) -> dict[str, Any]:
        return {}


class SmallModel(QEFFAutoModelForCausalLM):
    """A causal LM that is exported already."""

    def __init__(self, exported: ExportedModel, identity: str) -> None:
        super().__init__(_Source())  # type: ignore[arg-type]
        self._exported, self._identity = exported, identity

    def _plan_export(
        self,
        relay: Relay,
        options: object,  # noqa: ARG002
        *,
        extra_inputs: tuple[str, ...] = (),
        extra_outputs: tuple[str, ...] = (),
        program: str = "",
        program_inputs: Mapping[str, Any] | None = None,
        use_onnx_subfunctions: bool = False,
    ) -> ExportPlan:
        return ExportPlan(
            relay=relay,
            transforms=(),
            extra_inputs=extra_inputs,
            extra_outputs=extra_outputs,
            program=program,
            program_inputs=program_inputs or {},
            use_onnx_subfunctions=use_onnx_subfunctions,
            identity={},
            tokenizer_problem=None,
            takes_part=False,
            parts={},
            key=self._identity,
        )

    def _export(self, *_: Any, **__: Any) -> ExportedModel:
        return self._exported


def compile_publicly(subject: Subject, program: SmallProgram, home: Path, **changes: Any) -> CompiledModel:
    """``model.compile(backend, ...)`` with the artifact store at `home`; `changes` are options and sizes."""
    model = SmallModel(subject.export(program), program.name)
    with subject.store(home), subject.available("compile"):
        return model.compile(backend=subject.asked, **{**SIZES, **subject.settings.options, **changes})
