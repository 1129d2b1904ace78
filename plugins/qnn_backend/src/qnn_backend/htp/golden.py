"""Golden inputs: steps that visit what goes wrong when a compiler is wrong. Part of the child process.

A language model is run from an empty cache and at the end of a full one (late positions, the last slot), with padding in all rows
but the first; the caches of the later steps come from the reference. An encoder gets texts of unequal lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], Arrays]

IDS, POSITIONS, ATTENTION_MASK = "input_ids", "position_ids", "attention_mask"
#: What an encoder reads, or has read in another program; where that goes; how much of it there is.
SOURCE, SOURCE_POSITIONS, SOURCE_LENGTHS = "encoder_input_ids", "encoder_position_ids", "encoder_lengths"
#: Integer inputs of a language model that takes images: the numbers that are tried, the second one excluded.
_OF_IMAGES = {"vision_index": (-1, 1), "rope_position_ids": (0, 16), "token_type_ids": (0, 2)}


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Names, dtypes and symbolic shapes of the portable graph, and the sizes that it is compiled for."""

    #: ``{"name", "dtype", "shape"}``, retained states included.
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    #: ``{"input", "output", "kind"}``.
    states: Sequence[Mapping[str, str]]
    #: ``{"name", "dims"}``.
    specializations: Sequence[Mapping[str, Any]]

    def shape(self, spec: Mapping[str, Any], dims: Mapping[str, int]) -> tuple[int, ...]:
        """The static shape of an input or output."""
        return tuple(dim if isinstance(dim, int) else dims[dim] for dim in spec["shape"])

    @property
    def names(self) -> set[str]:
        """Of all inputs."""
        return {spec["name"] for spec in self.inputs}

    @property
    def state_inputs(self) -> set[str]:
        """Input names of the retained states."""
        return {state["input"] for state in self.states}

    @property
    def is_decoder(self) -> bool:
        """It reads tokens at positions into retained states."""
        return bool(self.states) and POSITIONS in {spec["name"] for spec in self.inputs}


def positions_name(state: Mapping[str, str]) -> str:
    """The input with the slots that a step writes of a state."""
    return SOURCE_POSITIONS if state["kind"] == "cross" else POSITIONS


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run of one graph with the reference's outputs."""

    graph: str
    #: What the step is about; variants of one kind differ in their tokens.
    kind: str
    feeds: Arrays
    expected: Arrays


def golden_steps(
    interface: Interface, reference: Run, prompts: Sequence[Sequence[int]], variant: int
) -> Iterator[Step]:
    """The steps of one variant, the longest graph first. `reference` runs the portable graph in float32."""
    tokens = [list(prompts[(variant + offset) % len(prompts)]) or [0] for offset in range(len(prompts))]
    rng = np.random.default_rng(variant)
    if interface.is_decoder:
        yield from _decoder_steps(interface, reference, tokens, rng)
    else:
        yield from _encoder_steps(interface, reference, tokens, rng)


def calibration_steps(interface: Interface, reference: Run, prompts: Sequence[Sequence[int]]) -> Iterator[Step]:
    """Steps as a session makes them: prompts in chunks, then single tokens, for as long as there is text and context."""
    if not interface.is_decoder:
        for variant in range(len(prompts)):
            yield from golden_steps(interface, reference, prompts, variant)
        return
    by_length = _longest_first(interface)
    dims = by_length[0]["dims"]
    rows, chunk, ctx_len = dims["batch_size"], dims.get("seq_len", 1), dims["ctx_len"]
    rng = np.random.default_rng(0)
    for start in range(0, len(prompts), rows):
        group = [prompts[(start + row) % len(prompts)] for row in range(rows)]
        states, used = _empty_states(interface, dims), 0
        limit = min(ctx_len, max(len(prompt) for prompt in group))
        while used < limit:
            # The second half of a text is read token by token, as text is generated.
            graph = by_length[0] if used + chunk <= limit // 2 or used == 0 else by_length[-1]
            length = graph["dims"].get("seq_len", 1)
            tokens = _tokens(group, [used] * rows, [min(length, ctx_len - used)] * rows, length)
            sources = _sources(group, graph["dims"], dims)
            feeds = {**_other_inputs(interface, graph["dims"], rng), **tokens, **sources, **states}
            feeds = {name: value for name, value in feeds.items() if name in interface.names}
            step = Step(graph=graph["name"], kind="calibration", feeds=feeds, expected=reference(feeds))
            yield step
            states = {state["input"]: step.expected[state["output"]] for state in interface.states}
            used += length


def _decoder_steps(
    interface: Interface, reference: Run, prompts: Sequence[Sequence[int]], rng: np.random.Generator
) -> Iterator[Step]:
    by_length = _longest_first(interface)
    first, states = by_length[0], _empty_states(interface, by_length[0]["dims"])
    rows, length = first["dims"]["batch_size"], first["dims"].get("seq_len", 1)
    used = [max(1, length - row % length) for row in range(rows)]

    def step(item: Mapping[str, Any], kind: str, starts: Sequence[int], lengths: Sequence[int]) -> Step:
        feeds = {
            **_other_inputs(interface, item["dims"], rng),
            **_tokens(prompts, starts, lengths, item["dims"].get("seq_len", 1)),
            **_sources(prompts, item["dims"], first["dims"]),
            **states,
        }
        feeds = {name: value for name, value in feeds.items() if name in interface.names}
        return Step(graph=item["name"], kind=f"{item['name']}, {kind}", feeds=feeds, expected=reference(feeds))

    start = step(first, "empty cache", [0] * rows, used)
    yield start
    states = {state["input"]: start.expected[state["output"]] for state in interface.states}
    for item in by_length:
        length, ctx_len = item["dims"].get("seq_len", 1), item["dims"]["ctx_len"]
        if item is not first and max(used) + length <= ctx_len:
            yield step(item, "next token", used, [length] * rows)
        if max(used) + length <= ctx_len:
            lengths = [max(1, length - row % length) for row in range(rows)]
            yield step(item, "end of the context", [ctx_len - count for count in lengths], lengths)


def _encoder_steps(
    interface: Interface, reference: Run, prompts: Sequence[Sequence[int]], rng: np.random.Generator
) -> Iterator[Step]:
    for item in _longest_first(interface):
        dims = item["dims"]
        feeds = _other_inputs(interface, dims, rng)
        if IDS in feeds:
            rows, width = feeds[IDS].shape
            feeds.update(_texts(prompts, rows, width, feeds))
        elif ATTENTION_MASK in feeds:
            # Sound: clips of unequal lengths, of which half and more is real.
            rows, width = feeds[ATTENTION_MASK].shape
            lengths = width - np.arange(rows) * width // (2 * rows)
            feeds[ATTENTION_MASK] = (np.arange(width)[None] < lengths[:, None]).astype(np.int64)
        yield Step(graph=item["name"], kind=item["name"], feeds=feeds, expected=reference(feeds))


def _longest_first(interface: Interface) -> list[Mapping[str, Any]]:
    """The graphs, those that read most at once first."""

    def length(item: Mapping[str, Any]) -> tuple[int, int]:
        dims = item["dims"]
        return dims.get("seq_len", 1), dims.get("encoder_seq_len", 1)

    return sorted(interface.specializations, key=length, reverse=True)


def _sources(prompts: Sequence[Sequence[int]], dims: Mapping[str, int], longest: Mapping[str, int]) -> Arrays:
    """What the encoder of an encoder-decoder reads in a step of these sizes; nothing in a step of the decoder alone.

    The first row fills the longest program, and so the states; the others are shorter.
    """
    if "encoder_seq_len" not in dims:
        return {}
    rows, width = dims["batch_size"], dims["encoder_seq_len"]
    ids, positions = np.zeros((rows, width), np.int64), np.full((rows, width), -1, np.int64)
    lengths = np.zeros((rows, 1), np.int64)
    for row in range(rows):
        count = max(1, (longest["encoder_seq_len"] if width == 1 else width) - row)
        lengths[row, 0] = count
        if width > 1:
            prompt = prompts[(row + 1) % len(prompts)]
            ids[row, :count] = [prompt[index % len(prompt)] for index in range(count)]
            positions[row, :count] = np.arange(count)
    return {SOURCE: ids, SOURCE_POSITIONS: positions, SOURCE_LENGTHS: lengths}


def _empty_states(interface: Interface, dims: Mapping[str, int]) -> Arrays:
    return {
        spec["name"]: np.zeros(interface.shape(spec, dims), spec["dtype"])
        for spec in interface.inputs
        if spec["name"] in interface.state_inputs
    }


def _tokens(prompts: Sequence[Sequence[int]], starts: Sequence[int], lengths: Sequence[int], width: int) -> Arrays:
    """``input_ids`` and ``position_ids`` of one step; what is left of a row is padding."""
    ids = np.zeros((len(starts), width), np.int64)
    positions = np.full((len(starts), width), -1, np.int64)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        prompt = prompts[row % len(prompts)]
        ids[row, :length] = [prompt[(start + offset) % len(prompt)] for offset in range(length)]
        positions[row, :length] = np.arange(start, start + length)
    return {IDS: ids, POSITIONS: positions}


def _texts(prompts: Sequence[Sequence[int]], rows: int, width: int, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """``input_ids`` and ``attention_mask`` of one batch of texts."""
    ids, mask = np.zeros((rows, width), np.int64), np.zeros((rows, width), np.int64)
    for row in range(rows):
        prompt = prompts[row % len(prompts)][:width]
        ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    return {name: value for name, value in ((IDS, ids), (ATTENTION_MASK, mask)) if name in feeds}


def _other_inputs(interface: Interface, dims: Mapping[str, int], rng: np.random.Generator) -> Arrays:
    """Every input that is no state: random numbers for floats, zeros for integers but those that belong to images."""
    feeds: Arrays = {}
    for spec in interface.inputs:
        if spec["name"] in interface.state_inputs:
            continue
        shape = interface.shape(spec, dims)
        is_float = np.issubdtype(np.dtype(spec["dtype"]), np.floating)
        values: NDArray[Any]
        if spec["name"] in _OF_IMAGES:
            # Tokens of text and of images side by side, at places that differ by axis.
            values = rng.integers(*_OF_IMAGES[spec["name"]], size=shape)
        else:
            values = rng.normal(size=shape) if is_float else np.zeros(shape)
        feeds[spec["name"]] = values.astype(spec["dtype"])
    return feeds
