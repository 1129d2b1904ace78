from __future__ import annotations

import copy
import enum
import hashlib
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeff_framework.artifacts import cache_key, canonical_json
from qeff_framework.errors import ArtifactError


class Precision(enum.Enum):
    FP16 = "fp16"
    FP32 = "fp32"


@dataclass(frozen=True, kw_only=True)
class Options:
    cores: int
    precision: Precision
    tags: frozenset[str]


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
key_parts = st.dictionaries(st.text(max_size=5), values, min_size=1, max_size=4)


def reordered(value):
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


def places(value, above=()):
    """The path to every scalar, empty list and empty dict in `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [place for name, item in inner for place in places(item, (*above, name))]
    return found or [above]


def replaced(value, place, new):
    if not place:
        return new
    result = copy.copy(value)
    result[place[0]] = replaced(value[place[0]], place[1:], new)
    return result


def at(value, place):
    for step in place:
        value = value[step]
    return value


@given(key_parts)
def test_the_order_of_entries_does_not_matter(parts):
    assert cache_key(reordered(parts)) == cache_key(parts)


@given(key_parts, st.data())
def test_any_change_of_a_value_changes_the_key(parts, data):
    place = data.draw(st.sampled_from(places(parts)))
    old = at(parts, place)
    new = data.draw(scalars.filter(lambda value: repr(value) != repr(old)))
    assert cache_key(replaced(parts, place, new)) != cache_key(parts)


@given(key_parts, st.text(max_size=5), values)
def test_an_added_entry_changes_the_key(parts, name, value):
    if name not in parts:
        assert cache_key({**parts, name: value}) != cache_key(parts)


@given(key_parts, st.data())
def test_a_path_is_refused_wherever_it_stands(parts, data):
    place = data.draw(st.sampled_from(places(parts)))
    with pytest.raises(ArtifactError, match="a key must not depend on where a file lies"):
        cache_key(replaced(parts, place, data.draw(st.sampled_from([Path("a/b"), PurePosixPath("/c")]))))


def test_the_key_is_the_sha256_of_the_canonical_text():
    parts = {"b": [1, 2.5, None, True], "a": {"z": "ä", "y": "x"}}
    text = '{"a":{"y":"x","z":"\\u00e4"},"b":[1,2.5,null,true]}'
    assert canonical_json(parts) == text
    assert cache_key(parts) == hashlib.sha256(text.encode()).hexdigest()


def test_dataclasses_enums_tuples_and_sets_have_a_canonical_form():
    options = Options(cores=16, precision=Precision.FP16, tags=frozenset({"b", "a", "c"}))
    assert canonical_json({"options": options, "shape": (1, 2)}) == (
        '{"options":{"cores":16,"precision":"fp16","tags":["a","b","c"]},"shape":[1,2]}'
    )


def test_sets_give_the_same_key_in_processes_with_another_hash_seed():
    code = "from qeff_framework.artifacts import cache_key; print(cache_key({'s': {str(i) for i in range(50)}}))"
    root = Path(__file__).parents[2]
    found = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_infinity_is_a_value_of_its_own():
    assert json.loads(canonical_json({"limit": [0.0, math.inf]})) == {"limit": [0.0, {"__float__": "Infinity"}]}
    assert len({cache_key({"x": value}) for value in (math.inf, -math.inf, 0.0, None, "Infinity")}) == 5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"options\.scale\[1\] is NaN"),
        (object(), r"'options\.scale\[1\]' is a builtins\.object"),
        (b"bytes", r"'options\.scale\[1\]' is a builtins\.bytes"),
        ({1: "a", "1": "b"}, r"options\.scale\[1\] has two keys that are both written as '1'"),
        ({None: "a"}, r"options\.scale\[1\] has the key None"),
        (Options, r"'options\.scale\[1\]' is a builtins\.type"),
    ],
)
def test_what_has_no_canonical_form_is_refused_by_place(value, message):
    with pytest.raises(ArtifactError, match=message):
        cache_key({"options": {"scale": [0, value]}})


def test_importing_the_store_loads_no_heavy_library():
    code = (
        "import sys, qeff_framework.artifacts; "
        "sys.exit(str({'torch', 'numpy', 'onnx', 'onnxruntime', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "set()\n"
