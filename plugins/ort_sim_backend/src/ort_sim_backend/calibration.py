"""What the products of a model read: the mean products of their inputs over calibration tokens, and the largest inputs.

The lowered model is run with the inputs of its products as further outputs, row by row, each from an empty cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ort_sim_backend.runtime import available_cpus, open_session, reason, session_options
from qeff_framework.lowering import lowered_specs, write_weights
from qeff_framework.plugin_api import CompileError, CompileRequest, ExportedModel, prompt_ids
from qeff_framework.sessions import allocate

#: Built-in texts, one a line; the characters \n stand for its line breaks.
_TEXTS = Path(__file__).with_name("calibration_texts.txt")
#: Most tokens of a row: inputs depend on what stands before them, and a text of this length has enough of that.
_ROW_TOKENS = 128
#: Rows of random tokens, where there is no tokenizer.
_RANDOM_ROWS = 8
#: Most bytes of sums at a time; the model is run as often as that takes.
SUMS_BYTES = 1 << 30

#: Inputs that `_feeds` fills, or that may stay zero; a model with any other input is not calibrated.
_TOKENS, _POSITIONS, _MASK, _LENGTHS = "input_ids", "position_ids", "attention_mask", "prompt_lengths"
_ZERO = frozenset(
    {"token_type_ids", "batch_index", "lora_ids", "num_logits_to_keep", "comp_ctx_lengths", "random_numbers"}
)
#: What a sampler is told: nothing that it chooses is looked at.
_SETTINGS = frozenset(
    {"repetition_penalties", "presence_penalties", "temperatures", "top_ks", "top_ps", "min_ps", "token_bitmasks"}
)
_ANSWER = "last_accepted_output_tokens"
#: Sizes of a run: one row, of whose logits one token's are asked for.
_ONE = ("batch_size", "full_batch_size", "num_logits_to_keep")


def calibration_rows(exported: ExportedModel, file: Path | None) -> list[list[int]]:
    """Token ids of the calibration texts: a line of `file` each, else built-in ones.

    Where no tokenizer reads these, random tokens. Raises `CompileError` when `file` cannot be used.
    """
    has_tokenizer = (exported.directory / "tokenizer").is_dir()
    if file is not None and not has_tokenizer:
        raise CompileError("calibration_prompts needs a tokenizer, and the checkpoint has none")
    if not has_tokenizer:
        return _random_rows(exported)
    texts = [text.replace("\\n", "\n") for text in _lines(_TEXTS)] if file is None else _lines(file)
    rows = [row[:_ROW_TOKENS] for row in prompt_ids(exported, texts) if row]
    if not rows and file is not None:
        raise CompileError(f"calibration_prompts={file}: the tokenizer of the checkpoint makes no token of its prompts")
    # A vocabulary of something else than texts makes no token of a sentence.
    return rows or _random_rows(exported)


class Calibration:
    """A lowered model, ready to be run on `rows`.

    Args:
        request: whose model is looked at, as it is now.
        rows: token ids.
        values: what is looked at, by name: floats ``[..., K]``.

    Raises:
        CompileError: ONNX Runtime refuses the model.
        ArtifactError: the disk has too little space for its weights.
    """

    def __init__(self, request: CompileRequest, rows: Sequence[Sequence[int]], values: Mapping[str, int]) -> None:
        self._request = request
        self._rows = rows
        self._values = values
        model, self._file = request.model, request.output_dir / "calibration.onnx"
        outputs = list(model.graph.outputs)
        weights = [value for graph in (model.graph, *model.graph.subgraphs()) for value in graph.initializers.values()]
        contents = [value.const_value for value in weights]
        known = {value.name for value in outputs}
        by_name = {value.name: value for node in model.graph for value in node.outputs}
        by_name |= {value.name: value for value in model.graph.inputs}
        try:
            for name in values:
                if name not in known:
                    by_name[name].type = by_name[name].type or ir.TensorType(ir.DataType.FLOAT)
                    model.graph.outputs.append(by_name[name])
            write_weights(model, self._file.parent, f"{self._file.name}.data")
            ir.save(model, self._file)
        finally:
            for value, content in zip(weights, contents, strict=True):
                value.const_value = content
            # Deleted by their places, the values would still be called outputs.
            while len(model.graph.outputs) > len(outputs):
                model.graph.outputs.pop()
        options = session_options(optimization_level="basic", threads=available_cpus(), pack_weights=True)
        try:
            self._session: Any = open_session(self._file, options)
        except Exception as error:
            raise CompileError(f"ONNX Runtime refuses the lowered model: {reason(error)}") from error

    def close(self) -> None:
        """Frees the session and removes its files."""
        self._session = None
        for path in (self._file, self._file.with_name(f"{self._file.name}.data")):
            path.unlink(missing_ok=True)

    def covariances(self, wanted: Collection[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """The name of each of the `wanted` values with the mean products ``[K, K]`` over all tokens."""
        for names in self._groups(wanted, lambda length: 4 * length**2):
            sums = {name: np.zeros((self._values[name],) * 2, np.float32) for name in names}
            counts = dict.fromkeys(names, 0)
            for name, tokens in self._tokens(names):
                sums[name] += tokens.T @ tokens
                counts[name] += len(tokens)
            for name in names:
                yield name, sums.pop(name) / np.float32(counts[name])

    def peaks(self, wanted: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """By name of the `wanted` values, the largest absolute number ``[K]`` of each of the K over all tokens."""
        found = {name: np.zeros(self._values[name], np.float32) for name in wanted}
        for names in self._groups(wanted, lambda length: 4 * length * _ROW_TOKENS):
            for name, tokens in self._tokens(names):
                np.maximum(found[name], np.abs(tokens).max(axis=0), out=found[name])
        return found

    def _tokens(self, names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Row by row, what the values have: ``[tokens, K]``."""
        for row in self._rows:
            feeds = _feeds(self._request, row)
            for name, found in zip(names, self._run(names, feeds), strict=True):
                yield name, _of_one_size(found.reshape(-1, self._values[name]))

    def _run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        try:
            found: Sequence[NDArray[Any]] = self._session.run(names, feeds)
        except Exception as error:
            raise CompileError(f"ONNX Runtime failed in a calibration step: {reason(error)}") from error
        return found

    def _groups(self, wanted: Collection[str], size_of: Callable[[int], int]) -> Iterator[list[str]]:
        group: list[str] = []
        size = 0
        for name in wanted:
            more = size_of(self._values[name])
            if group and size + more > SUMS_BYTES:
                yield group
                group, size = [], 0
            group.append(name)
            size += more
        if group:
            yield group


def _of_one_size(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of the mean square 1. The first token of a text often has inputs a thousand times as large as all others."""
    sizes = np.sqrt(np.square(tokens).mean(axis=1, keepdims=True))
    result: NDArray[np.float32] = np.divide(tokens, sizes, out=np.zeros_like(tokens), where=sizes > 0)
    return result


def unknown_inputs(request: CompileRequest) -> list[str]:
    """Inputs of the model that a calibration has nothing for."""
    states = (state.input for state in request.exported.states)
    filled = {_TOKENS, _POSITIONS, _MASK, _LENGTHS, _ANSWER, *_ZERO, *_SETTINGS, *states}
    return [spec.name for spec in request.exported.inputs if spec.name not in filled]


def _feeds(request: CompileRequest, row: Sequence[int]) -> dict[str, NDArray[Any]]:
    specs = lowered_specs(request.model.graph.inputs, request.exported.inputs)
    dims = dict(request.specializations[0].dims)
    row = row[: dims.get("ctx_len", len(row))]
    dims.update(dict.fromkeys((name for name in _ONE if name in dims), 1), seq_len=len(row))
    if "comp_ctx_lengths" in dims:
        dims["comp_ctx_lengths"] = dims["ctx_len"]
    feeds = allocate(specs, dims)
    for name, content in (
        (_TOKENS, row),
        (_POSITIONS, range(len(row))),
        (_MASK, [1] * len(row)),
        (_LENGTHS, [len(row)]),
        # None of them is one of an answer.
        (_ANSWER, [-1] * len(row)),
        *((name, [1]) for name in _SETTINGS),
    ):
        if name in feeds:
            feeds[name][...] = np.array(content)
    return feeds


def _lines(file: Path) -> list[str]:
    try:
        # Without a byte order mark; a line ends at \n or \r\n and at no other character of a text.
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CompileError(f"calibration_prompts={file} cannot be read: {error}") from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise CompileError(f"calibration_prompts={file} holds no prompt; write one a line")
    return lines


def _random_rows(exported: ExportedModel) -> list[list[int]]:
    """Random tokens behind the first token of a text: some models have their largest numbers there."""
    path = exported.directory / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    size = int(exported.metadata.get("vocab_size") or config.get("vocab_size") or 2)
    first = config.get("bos_token_id")
    rows = np.random.default_rng(0).integers(0, size, (_RANDOM_ROWS, _ROW_TOKENS)).tolist()
    return [[first, *row[1:]] if isinstance(first, int) and 0 <= first < size else row for row in rows]
