"""Each compiled graph against ONNX Runtime in float32 on the CPU. Part of the child process.

The compiler miscompiles some patterns without a word, so a program is believed only after it has computed something right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qeff_framework.plugin_api import CompileError
from qnn_backend.htp.golden import ATTENTION_MASK, Arrays, Interface, Step, golden_steps, positions_name
from qnn_backend.htp.host_tables import HostTables
from qnn_backend.htp.provider import cpu_session, run_reference, session_options

LOGITS = "logits"
#: In a mixture of experts two experts may be nearly tied, and float16 then takes the other one. So a kind of step is tried with
#: other tokens when it fails, and counts as wrong when most of its variants do. A miscompiled graph is wrong with all of them.
_VARIANTS = 5


def verify_graphs(
    portable: str,
    programs: Mapping[str, str],
    interface: Mapping[str, Any],
    updated_states: Sequence[str],
    prompts: Sequence[Sequence[int]],
    soc_id: int,
    provider_options: Mapping[str, str],
    *,
    min_cosine: float,
    tie_margin: float,
    allow_partial: bool,
    folder: str,
    host_tables: Sequence[Mapping[str, str]],
    compressed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs golden inputs through the portable model and through each program.

    Args:
        portable: the exported model.
        programs: compiled model by graph.
        interface: fields of `golden.Interface`.
        updated_states: states of which a program returns the new part only.
        prompts: token ids.
        soc_id: the chip.
        provider_options: options that the programs are loaded with.
        min_cosine: least cosine between a program's output and the reference, over each row.
        tie_margin: logits that are this part of the largest one apart count as equal when the best token is compared.
        allow_partial: the programs may have nodes on the CPU.
        folder: where the files of `host_tables` lie.
        host_tables: fields of `host_tables.HostTable`, tables that the programs and `compressed` do not hold.
        compressed: the static graphs, when their weights were stored in fewer bits. What that costs is the choice of the user, so
            the programs are compared with these on the CPU, and the distance to the portable model is only reported.

    Returns:
        What was compared, for each kind of step: ``cosine``, ``max_error``, ``variants``.

    Raises:
        CompileError: a program computes something else than the model.
    """
    described, tables = Interface(**interface), HostTables(Path(folder), host_tables)
    reference = _Reference(Path(portable))
    steps = [list(golden_steps(described, reference.run, prompts, variant)) for variant in range(_VARIANTS)]
    reference.close()
    results: dict[str, Any] = {}
    for name, path in programs.items():
        session = _program(path, soc_id, provider_options, allow_partial=allow_partial)
        for index, first in enumerate(steps[0]):
            if first.graph != name:
                continue
            variants = [variant[index] for variant in steps]
            weights: dict[str, Any] = {}
            whole_caches = compressed is None
            if compressed is not None:
                variants, weights = _with_compressed_weights(compressed[name], variants, tables)
            check = _Check(
                interface=described,
                tables=tables,
                updated=updated_states if whole_caches else (),
                trimmed=() if whole_caches else updated_states,
                min_cosine=min_cosine,
                tie_margin=tie_margin,
            )
            results[first.kind] = {**_check_kind(session, variants, check), **weights}
        del session
    return {"min_cosine": min_cosine, "reference": "onnxruntime, CPU, float32", "steps": results}


class _Reference:
    """The portable model on the CPU."""

    def __init__(self, model: Path) -> None:
        self._session = cpu_session(model)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        return run_reference(self._session, feeds)

    @property
    def inputs(self) -> list[str]:
        return _inputs(self._session)

    def close(self) -> None:
        """Frees the weights: the program needs the memory."""
        self._session = None


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    cosine: float
    max_error: float
    #: The best token is another one, and not by a near tie.
    other_token: bool
    #: Name of the output with the smallest cosine.
    worst: str


@dataclass(frozen=True, kw_only=True)
class _Check:
    interface: Interface
    tables: HostTables
    #: States of which the program returns the new part and the reference the whole.
    updated: Sequence[str]
    #: States of which both return the new part.
    trimmed: Sequence[str]
    min_cosine: float
    tie_margin: float


def _with_compressed_weights(
    graph: str, variants: Sequence[Step], tables: HostTables
) -> tuple[list[Step], dict[str, Any]]:
    """The same steps with the outputs of the graph that has the compressed weights, and what they cost."""
    reference = _Reference(Path(graph))
    steps = [replace(step, expected=reference.run(tables.feeds_of(reference.inputs, step.feeds))) for step in variants]
    reference.close()
    if LOGITS not in steps[0].expected:
        return steps, {}
    costs = [
        _least_cosine(old.expected[LOGITS], new.expected[LOGITS]) for old, new in zip(variants, steps, strict=True)
    ]
    return steps, {"cosine_of_compressed_weights": round(min(costs), 6)}


def _check_kind(session: Any, variants: Sequence[Step], check: _Check) -> dict[str, Any]:
    failures, best = [], None
    for tried, step in enumerate(variants, start=1):
        found = _compare(session, step, check)
        if found.cosine >= check.min_cosine and not found.other_token:
            best = best or found
        else:
            failures.append(found)
        passed = tried - len(failures)
        if passed > len(failures):
            break
    if best is None or len(failures) > len(variants) // 2:
        worst = min(failures, key=lambda item: item.cosine)
        raise CompileError(
            f"the compiled graph computes something else than the model ({variants[0].kind}): output {worst.worst} has the "
            f"cosine {worst.cosine:.5f} to float32 on the CPU, at least {check.min_cosine:g} is asked for, largest error "
            f"{worst.max_error:.4g}" + (", and the best token is another one" if worst.other_token else "") + ". "
            "verify=False compiles without this check, verify_min_cosine sets the threshold"
        )
    return {
        "cosine": round(best.cosine, 6),
        "max_error": float(f"{best.max_error:.4g}"),
        "variants": tried,
        "failed_variants": len(failures),
    }


def _compare(session: Any, step: Step, check: _Check) -> _Comparison:
    names = [output.name for output in session.get_outputs()]
    feeds = check.tables.feeds_of(_inputs(session), step.feeds)
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    inputs_of_states = {state["output"]: state["input"] for state in check.interface.states}
    positions_of = {state["input"]: step.feeds[positions_name(state)] for state in check.interface.states}
    cosine, worst, error, other_token = 1.0, "", 0.0, False
    for name, actual in outputs.items():
        wanted, found = step.expected[name], actual
        state = inputs_of_states.get(name)
        if state is not None and state in check.updated:
            wanted, found = _written(wanted, positions_of[state]), _sent(found, positions_of[state])
        elif state is not None and state in check.trimmed:
            wanted, found = _sent(wanted, positions_of[state]), _sent(found, positions_of[state])
        elif state is None:
            wanted, found = _kept(wanted, step.feeds), _kept(found, step.feeds)
        least = _least_cosine(wanted, found)
        if least < cosine or not worst:
            cosine, worst = min(least, cosine), name
        if wanted.size:
            error = max(error, float(np.abs(wanted.astype(np.float64) - found).max()))
        if name == LOGITS:
            other_token = _is_other_token(wanted, found, check.tie_margin)
    return _Comparison(cosine=cosine, max_error=error, other_token=other_token, worst=worst)


def _inputs(session: Any) -> list[str]:
    return [value.name for value in session.get_inputs()]


def _written(cache: NDArray[Any], position_ids: NDArray[Any]) -> NDArray[Any]:
    """The slots of ``cache [B, H, C, D]`` that this step has written, one row each."""
    return np.concatenate([cache[row].swapaxes(0, 1)[ids[ids >= 0]] for row, ids in enumerate(position_ids)])


def _sent(new: NDArray[Any], position_ids: NDArray[Any]) -> NDArray[Any]:
    """The tokens of ``new [B, H, S, D]`` that are no padding, one row each."""
    return np.concatenate([new[row].swapaxes(0, 1)[ids >= 0] for row, ids in enumerate(position_ids)])


def _kept(output: NDArray[Any], feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Without the tokens that are padding, when the output has one entry a token."""
    mask = feeds.get(ATTENTION_MASK)
    if mask is not None and output.ndim > mask.ndim and output.shape[: mask.ndim] == mask.shape:
        kept: NDArray[Any] = output[mask.astype(bool)]
        return kept
    return output


def _least_cosine(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """The smallest cosine over the rows, which are what the first dimension counts."""
    if not expected.size:
        return 1.0
    if not np.isfinite(actual).all():
        return -1.0
    wanted, found = (array.reshape(len(array), -1).astype(np.float64) for array in (expected, actual))
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    products = np.sum(wanted * found, axis=1)
    both_zero = (np.linalg.norm(wanted, axis=1) < 1e-6) & (np.linalg.norm(found, axis=1) < 1e-3)
    return float(np.where(both_zero, 1.0, products / np.maximum(lengths, 1e-12)).min())


def _is_other_token(expected: NDArray[Any], actual: NDArray[Any], tie_margin: float) -> bool:
    wanted, found = (array.reshape(-1, array.shape[-1]) for array in (expected, actual))
    rows = np.arange(len(wanted))
    lost = wanted.max(axis=1) - wanted[rows, found.argmax(axis=1)]
    return bool((lost > tie_margin * np.abs(wanted).max(axis=1)).any())


def _program(path: str, soc_id: int, provider_options: Mapping[str, str], *, allow_partial: bool) -> Any:
    import onnxruntime as ort

    options = session_options(soc_id, provider_options, {}, allow_cpu=allow_partial)
    return ort.InferenceSession(path, options, enable_fallback=0)
