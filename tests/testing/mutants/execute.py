"""Sessions that break one promise each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from qeff_framework.plugin_api import ExecutionError, InputError, Specialization
from tests.testing.mutants import cases, mutant
from tests.testing.toy_hooks import ToySession

PADDING = ("large", "infinite", "nan")


class Reckless(ToySession):
    """Takes steps whose numbers nobody has looked at."""

    #: Texts of refusals that are ignored.
    ignored: ClassVar[tuple[str, ...]] = ()

    def run(self, inputs: Any) -> Any:
        try:
            return super().run(inputs)
        except InputError as error:
            if not any(text in str(error) for text in self.ignored):
                raise
            step = next(item for item in self.specializations if item.dims["seq_len"] == inputs["input_ids"].shape[-1])
            return self.run_step(step, inputs)


@mutant("execute", "reset")
class StateNotReset(ToySession):
    """`reset` forgets nothing."""

    def clear_states(self) -> None:
        pass


@mutant("execute", "reset")
class OnlyKeysAreReset(ToySession):
    """`reset` forgets the keys and keeps the values."""

    def clear_states(self) -> None:
        for name in self.states:
            if "key" in name:
                self.states[name] = np.zeros_like(self.states[name])


@mutant("execute", "two_sessions")
class StatesOfTheProcess(ToySession):
    """All sessions of a program write into the same buffers."""

    common: ClassVar[dict[Any, dict[str, Any]]] = {}

    @property
    def states(self) -> dict[str, Any]:
        return self.common.setdefault(self.compiled.directory, super().states)

    def close(self) -> None:
        self.common.pop(self.compiled.directory, None)
        super().close()

    def clear_states(self) -> None:
        for name, buffer in self.states.items():
            self.states[name] = np.zeros_like(buffer)


@mutant(
    "execute",
    "states_are_retained",
    "chunks_equal_one_pass",
    "rows_are_independent",
    *cases("padding_takes_no_part", PADDING),
    "all_padding_changes_nothing",
    *cases("continuous_batching", ("large", "nan")),
    "two_sessions",
)
class StateOfAnotherRow(ToySession):
    """Rows of the cache change places after a chunk."""

    def run_step(self, specialization: Specialization, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        outputs = super().run_step(specialization, inputs)
        if specialization.dims["seq_len"] == 4:
            for name, buffer in self.states.items():
                self.states[name] = np.ascontiguousarray(buffer[::-1])
        return outputs


@mutant(
    "execute",
    "states_are_retained",
    "reset",
    "chunks_equal_one_pass",
    *cases("padding_takes_no_part", PADDING),
    "last_slot",
    *cases("continuous_batching", ("large", "nan")),
    "two_sessions",
)
class PositionOffByOne(ToySession):
    """A token is written one slot before its own."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        positions = feeds["position_ids"]
        return super().compute({**feeds, "position_ids": np.where(positions > 0, positions - 1, positions)})


@mutant(
    "execute",
    "states_are_retained",
    *cases("padding_takes_no_part", PADDING),
    "all_padding_changes_nothing",
    *cases("continuous_batching", ("large", "nan")),
    "two_sessions",
)
class PaddingWritten(ToySession):
    """Padding is written into the first slot."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return super().compute({**feeds, "position_ids": np.maximum(feeds["position_ids"], 0)})


@mutant("execute", *cases("refused_step", ("padding in front", "gap", "jump")))
class TakesPaddingAnywhere(Reckless):
    """Does not look where the padding stands."""

    ignored = ("stand in front of its padding",)


@mutant("execute", *cases("refused_step", ("beyond the context", "one token beyond the context")))
class TakesPositionsBeyondTheContext(Reckless):
    """Tokens beyond the context are dropped in silence."""

    ignored = ("does not fit into the context",)


@mutant("execute", *cases("refused_step", ("unknown input", "retained state")))
class IgnoresUnknownInputs(ToySession):
    """Inputs that it does not know are left out in silence."""

    def run(self, inputs: Any) -> Any:
        known = {"input_ids", "position_ids", "batch_index"}
        return super().run({name: array for name, array in inputs.items() if name in known})


@mutant("execute", *cases("refused_step", ("dtype",)))
class CastsInputs(ToySession):
    """Other dtypes are cast."""

    def run(self, inputs: Any) -> Any:
        return super().run({name: np.asarray(array, np.int64) for name, array in inputs.items()})


@mutant("execute", *cases("refused_step", ("length",)))
class PadsInSilence(ToySession):
    """A step of a length that was not compiled is padded."""

    def run(self, inputs: Any) -> Any:
        inputs = dict(inputs)
        if inputs.get("position_ids", np.zeros(0)).shape[1:] == (2,) and inputs["input_ids"].shape[1] == 2:
            filled = {"input_ids": 0, "position_ids": -1}
            inputs = {
                name: np.pad(array, ((0, 0), (0, 2)), constant_values=filled[name]) for name, array in inputs.items()
            }
        return super().run(inputs)


@mutant("execute", *cases("refused_cache_rows", ("named twice", "negative", "too large")))
class TakesAnyCacheRow(Reckless):
    """Two rows of a step overwrite each other."""

    ignored = ("needs a cache row of its own",)

    def run_step(self, specialization: Specialization, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        rows = inputs.get("batch_index")
        if rows is None:
            return super().run_step(specialization, inputs)
        return super().run_step(specialization, {**inputs, "batch_index": np.clip(rows, 0, 2)})


@mutant("execute", *cases("continuous_batching", ("large", "nan")))
class RowsInOrder(ToySession):
    """Row r of a step is taken for row r of the cache."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        rows = feeds.get("batch_index")
        return super().compute(feeds if rows is None else {**feeds, "batch_index": np.arange(len(rows))[:, None]})


@mutant(
    "execute",
    *cases(
        "refused_step",
        ("padding in front", "gap", "jump", "beyond the context", "one token beyond the context"),
    ),
)
class ForgetsAfterARefusal(ToySession):
    """A refused step has cleared the states."""

    def run(self, inputs: Any) -> Any:
        try:
            return super().run(inputs)
        except InputError as error:
            if "position" in str(error) and "shape" not in str(error) and "input" not in str(error).split("are")[0]:
                self.clear_states()
            raise


@mutant(
    "execute",
    *cases("refused_step", ("missing input", "unknown input", "retained state")),
)
class WrongTypeOfRefusal(ToySession):
    """Wrong names end in a `KeyError`."""

    def run(self, inputs: Any) -> Any:
        try:
            return super().run(inputs)
        except InputError as error:
            if "do not fit the model" in str(error):
                raise KeyError("input_ids") from error
            raise


@mutant("execute", "outputs_are_as_declared")
class StatesLeaveTheSession(ToySession):
    """Retained states are returned beside the outputs."""

    def run_step(self, specialization: Specialization, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**super().run_step(specialization, inputs), **self.states}


@mutant("execute", "inputs_are_left_alone")
class AssumesRowMajorInputs(ToySession):
    """Reads the memory of an array as if it were in row-major order."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        read = {
            name: array if array.flags.c_contiguous else array.ravel(order="K").reshape(array.shape)
            for name, array in feeds.items()
        }
        return super().compute(read)


@mutant("execute", "close")
class CloseTwiceFails(ToySession):
    """The second `close` finds nothing to close."""

    def close(self) -> None:
        if self._is_closed:
            raise ExecutionError("there is no device to give back")
        super().close()


@mutant("execute", "close")
class UseAfterClose(ToySession):
    """A closed session goes on."""

    def close(self) -> None:
        pass


@mutant("execute", "info")
class DoesNotSayWhereItRuns(ToySession):
    """`info` is empty."""

    @property
    def info(self) -> dict[str, str]:
        return {}

    @info.setter
    def info(self, value: dict[str, str]) -> None:
        pass


@mutant("execute", "info")
class SaysThatItIsHardware(ToySession):
    """A simulator that says it is a device."""

    @property
    def info(self) -> dict[str, str]:
        return {"device": "Toy NPU", "simulator": "no"}

    @info.setter
    def info(self, value: dict[str, str]) -> None:
        pass


@mutant("execute", "results_are_repeatable")
class NotRepeatable(ToySession):
    """Sums in another order each time."""

    def compute(self, feeds: dict[str, Any]) -> dict[str, Any]:
        outputs = super().compute(feeds)
        noise = np.random.default_rng().standard_normal(outputs["logits"].shape) * 1e-7
        return {**outputs, "logits": (outputs["logits"] + noise).astype(np.float32)}
