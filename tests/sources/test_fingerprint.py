"""What a digest of code and state tells apart, and what it does not."""

from __future__ import annotations

import collections
import functools
import logging
import os
import random
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

from qeff_framework.sources.fingerprint import (
    NotIdentifiableError,
    fingerprint,
    patches_fingerprint,
    structure_fingerprint,
    tensors_fingerprint,
)
from tests.tiny_models import tiny_causal_lm, tiny_encoder

FACTOR = 2.0


def of(value: object) -> str:
    return fingerprint(value, "it")


def defined(source: str, name: str = "it", **namespace: object) -> object:
    """What `source` defines as `name`, in a module of its own that no file holds."""
    module = types.ModuleType("one_s_own")
    vars(module).update(torch=torch, functools=functools, random=random, os=os, **namespace)
    exec(textwrap.dedent(source), vars(module))
    return vars(module)[name]


def function(body: str, **namespace: object) -> object:
    return defined(f"def it(hidden, mask):\n    {body}", **namespace)


def closing_over(value: object) -> object:
    def pooling(hidden, mask):
        return hidden * value

    return pooling


class Scale:
    """A callable with state."""

    limit = 3

    def __init__(self, factor: object) -> None:
        self.factor = factor

    def __call__(self, hidden, mask):
        return hidden * self.factor

    def pool(self, hidden, mask):
        return hidden * self.factor


class Raising:
    __slots__ = ()

    def __getattr__(self, name):
        raise ValueError("no")


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: object) -> None:
        self.factor = factor


def subclass_of_dict(**items: object) -> object:
    made = type("Settings", (dict,), {})(items)
    made.extra = 1
    return made


Sizes = collections.namedtuple("Sizes", "rows columns")  # noqa: PYI024 - its own class is what is tested


def reading_helpers(factor: float) -> object:
    module = types.ModuleType("helpers")
    module.inner = types.ModuleType("helpers.inner")
    module.inner.factor = factor
    return function("return hidden * helpers.inner.factor", helpers=module)


def decorated(k: int) -> object:
    """A function in the closure of a decorator of a library."""

    def pooling(hidden, mask):
        return hidden * k

    return torch.no_grad()(pooling)


def nested(text: str) -> object:
    return defined(f"""
        def it(hidden, mask):
            def inner(x):
                return x {text}
            return inner(hidden)
        """)


def with_class(forward: str) -> object:
    return defined(
        f"""
        class it(Base):
            def forward(self, x):
                return {forward}
        """,
        Base=torch.nn.Linear,
    )


DIFFERENT = {
    "closure": (lambda: closing_over(2), lambda: closing_over(7)),
    "closure over a tensor": (lambda: closing_over(torch.ones(2)), lambda: closing_over(torch.zeros(2))),
    "closure over an array": (lambda: closing_over(np.ones(2)), lambda: closing_over(np.ones(2, np.float32))),
    "closure over a list": (lambda: closing_over([1, 2]), lambda: closing_over([2, 1])),
    "closure over a module": (lambda: closing_over(linear(0)), lambda: closing_over(linear(1))),
    "kinds of numbers": (lambda: closing_over(1), lambda: closing_over(True)),
    "code": (lambda: function("return hidden + 1"), lambda: function("return hidden + 2")),
    "called function": (lambda: function("return hidden.sum(1)"), lambda: function("return hidden.amax(1)")),
    "nested function": (lambda: nested("+ 1"), lambda: nested("- 1")),
    "string that is also the docstring": (
        lambda: defined("def it():\n    'a'\n    return 'a'"),
        lambda: defined("def it():\n    'b'\n    return 'b'"),
    ),
    "default": (lambda: defined("def it(h, m, k=2): return h * k"), lambda: defined("def it(h, m, k=7): return h * k")),
    "keyword default": (
        lambda: defined("def it(h, m, *, k=2): return h * k"),
        lambda: defined("def it(h, m, *, k=7): return h * k"),
    ),
    "partial": (
        lambda: functools.partial(closing_over(1), mask=2),
        lambda: functools.partial(closing_over(1), mask=3),
    ),
    "lambda": (lambda: defined("it = lambda h, m: h + 1"), lambda: defined("it = lambda h, m: h + 2")),
    "bound method": (lambda: Scale(2).pool, lambda: Scale(7).pool),
    "callable object": (lambda: Scale(2), lambda: Scale(7)),
    "object with slots": (lambda: Slotted(2), lambda: Slotted(7)),
    "global number": (lambda: function("return hidden * k", k=2), lambda: function("return hidden * k", k=7)),
    "global function": (
        lambda: function("return f(hidden)", f=closing_over(2)),
        lambda: function("return f(hidden)", f=closing_over(7)),
    ),
    "attribute of a module": (lambda: reading_helpers(2.0), lambda: reading_helpers(7.0)),
    "wrapped by a library": (lambda: decorated(2), lambda: decorated(7)),
    "lru_cache": (lambda: functools.cache(closing_over(2)), lambda: functools.cache(closing_over(7))),
    "class attribute": (
        lambda: defined("class K:\n    k = 2\n    def __call__(self, h, m): return h * self.k\nit = K()"),
        lambda: defined("class K:\n    k = 7\n    def __call__(self, h, m): return h * self.k\nit = K()"),
    ),
    "base class": (
        lambda: defined("class B:\n    def f(self): return 2\nclass K(B): pass\nit = K()"),
        lambda: defined("class B:\n    def f(self): return 7\nclass K(B): pass\nit = K()"),
    ),
    "property": (
        lambda: defined("class K:\n    @property\n    def k(self): return 2\nit = K()"),
        lambda: defined("class K:\n    @property\n    def k(self): return 7\nit = K()"),
    ),
    "dictionary of a class of one's own": (lambda: subclass_of_dict(k=2), lambda: subclass_of_dict(k=7)),
    "class of a dictionary": (
        lambda: defined("class K(dict):\n    def f(self): return 2\nit = K(k=1)"),
        lambda: defined("class K(dict):\n    def f(self): return 7\nit = K(k=1)"),
    ),
    "named tuple": (lambda: closing_over(Sizes(1, 2)), lambda: closing_over(Sizes(1, 3))),
    "state of compiled code": (lambda: random.Random(2), lambda: random.Random(7)),
    "forward of one name": (lambda: with_class("x + 1"), lambda: with_class("x + 2")),
}


@pytest.mark.parametrize("pair", DIFFERENT)
def test_what_changes_the_result_changes_the_digest(pair: str) -> None:
    first, second = DIFFERENT[pair]
    assert of(first()) == of(first())
    assert of(first()) != of(second())


SAME = {
    "name": (lambda: function("return hidden + 1"), lambda: defined("def f(hidden, mask): return hidden + 1", "f")),
    "docstring": (
        lambda: function("return hidden + 1"),
        lambda: defined("def it(hidden, mask):\n    'Adds.'\n    return hidden + 1"),
    ),
    "comments and lines": (
        lambda: function("return hidden + 1"),
        lambda: defined("\n\n# one more\ndef it(hidden, mask):\n    # adds\n\n    return hidden + 1"),
    ),
    "globals that are not read": (
        lambda: function("return hidden", k=2),
        lambda: function("return hidden", k=7),
    ),
    "what is logged": (
        lambda: function("log.info('a')\n    return hidden", log=logging.getLogger("one")),
        lambda: function("log.info('a')\n    return hidden", log=logging.getLogger("two")),
    ),
    "a lock": (lambda: closing_over(threading.Lock()), lambda: closing_over(threading.Lock())),
    "order of a set": (lambda: closing_over({"a", "b", "c"}), lambda: closing_over({"c", "b", "a"})),
}


@pytest.mark.parametrize("pair", SAME)
def test_what_changes_nothing_does_not(pair: str) -> None:
    first, second = SAME[pair]
    assert of(first()) == of(second())


def test_a_path_stands_for_what_the_file_contains(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("a")
    before = of(closing_over(one))
    assert of(closing_over(two)) == before
    one.write_text("b")
    assert of(closing_over(one)) != before


UNKNOWABLE = {
    "an open file": (lambda: closing_over(sys.__stderr__), "variable 'value' of it"),
    "a generator": (lambda: closing_over(x for x in ()), "generator"),
    "the file system": (lambda: function("return open('k').read()"), r"open\(\)"),
    "the environment": (lambda: function("return hidden * float(os.environ['K'])"), "os.environ"),
    "weights that are loaded when it runs": (lambda: function("return torch.load('w')"), "torch.load"),
    "chance": (lambda: function("return hidden * random.random()"), "random.random"),
    "a module that is imported when it runs": (lambda: function("import one_s_own_code"), "one_s_own_code"),
    "an attribute that raises": (lambda: closing_over(Raising()), "ValueError: no"),
    "a tensor without values": (lambda: closing_over(torch.empty(2, device="meta")), "meta"),
}


@pytest.mark.parametrize("case", UNKNOWABLE)
def test_what_cannot_be_told_apart_has_no_digest(case: str) -> None:
    make, reason = UNKNOWABLE[case]
    with pytest.raises(NotIdentifiableError, match=reason):
        of(make())


# --- modules --------------------------------------------------------------------------------------------------------------


def linear(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(2, 2)


class Doubled(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, weight):
        return weight * self._factor


def named_alike(forward: str) -> type:
    """A subclass of a library's class whose name and place say nothing about what it does."""
    return defined(
        f"""
        class it(Base):
            def forward(self, x):
                return super().forward(x) {forward}
        """,
        Base=type(tiny_encoder("bert").encoder.layer[0].output.dense),
    )


def patch_class(attention, monkeypatch):
    monkeypatch.setattr(type(attention), "forward", lambda self, hidden, **_: (hidden, None))


def patch_namespace(attention, monkeypatch):
    namespace = sys.modules[type(attention).__module__]
    monkeypatch.setattr(namespace, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k))


#: Changes to a Llama's first attention layer that change what it computes.
CHANGES = {
    "attribute": lambda attention, patch: setattr(attention, "scaling", attention.scaling * 2),
    "own attribute": lambda attention, patch: setattr(attention, "k", 3),
    "config of one layer": lambda attention, patch: setattr(
        attention, "config", type(attention.config)(**{**attention.config.to_dict(), "rms_norm_eps": 0.1})
    ),
    "forward of the object": lambda attention, patch: setattr(attention, "forward", closing_over(3)),
    "forward of the class": patch_class,
    "function of the namespace": patch_namespace,
    "hook": lambda attention, patch: attention.register_forward_hook(closing_over(2)),
    "hook with another closure": lambda attention, patch: attention.register_forward_hook(closing_over(3)),
    "hook before": lambda attention, patch: attention.register_forward_pre_hook(closing_over(3)),
    "parametrization": lambda attention, patch: parametrize.register_parametrization(
        attention.q_proj, "weight", Doubled(2.0)
    ),
    "parametrization with another number": lambda attention, patch: parametrize.register_parametrization(
        attention.q_proj, "weight", Doubled(3.0)
    ),
    "part": lambda attention, patch: setattr(attention, "q_proj", torch.nn.Sequential(attention.q_proj)),
    "class of a part": lambda attention, patch: setattr(attention.q_proj, "__class__", named_alike("+ 1")),
    "class of the same name": lambda attention, patch: setattr(attention.q_proj, "__class__", named_alike("+ 2")),
}


def test_every_change_of_a_module_is_another_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    def structure(change) -> str:
        with monkeypatch.context() as patch:
            module = tiny_causal_lm("llama")[0]
            change(module.model.layers[0].self_attn, patch)
            return structure_fingerprint(module, "llama")

    unchanged = structure(lambda attention, patch: None)
    found = {name: structure(change) for name, change in CHANGES.items()}
    assert unchanged == structure(lambda attention, patch: None)
    assert len({unchanged, *found.values()}) == len(CHANGES) + 1, found


def test_replaced_functions_of_a_family_are_known_before_its_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_causal_lm("gemma3_text"), tiny_encoder("bert")
    namespace = sys.modules["transformers.models.gemma3.modeling_gemma3"]
    found = [patches_fingerprint(["gemma3_text"])]
    for owner, name, replacement in (
        (namespace.Gemma3MLP, "forward", lambda self, x: x),
        (namespace.Gemma3RMSNorm, "forward", torch.no_grad()(lambda self, x: x)),
        (namespace, "rotate_half", lambda x: -x),
    ):
        monkeypatch.setattr(owner, name, replacement)
        found.append(patches_fingerprint(["gemma3_text"]))
    assert found[0] is None
    assert len(set(found)) == len(found)
    assert patches_fingerprint(["llava", "bert"]) is None
    assert patches_fingerprint(["llava", "gemma3_text"]) == found[-1], "a part of a larger model"

    monkeypatch.setitem(sys.modules["transformers.activations"].ACT2FN, "silu", torch.nn.Identity)
    assert patches_fingerprint(["bert"]) is None, "a class of the library"
    monkeypatch.setitem(sys.modules["transformers.activations"].ACT2FN, "silu", type("Own", (torch.nn.Identity,), {}))
    assert patches_fingerprint(["bert"]) is not None


def test_what_a_library_does_with_a_module_does_not_change_its_structure(tmp_path: Path) -> None:
    module = tiny_causal_lm("llama")[0]
    before = structure_fingerprint(module, "llama"), tensors_fingerprint(module)
    module.save_pretrained(tmp_path)
    loaded = type(module).from_pretrained(tmp_path, attn_implementation="sdpa")
    with torch.no_grad():
        loaded(torch.tensor([[1, 2]]), output_hidden_states=True)
    loaded.train().requires_grad_(False)
    assert (structure_fingerprint(loaded, "llama"), tensors_fingerprint(loaded)) == before


def test_buffers_that_no_state_dict_holds_count() -> None:
    module = tiny_causal_lm("llama")[0]
    before = tensors_fingerprint(module)
    assert "model.rotary_emb.inv_freq" not in module.state_dict()
    module.model.rotary_emb.inv_freq *= 3
    assert tensors_fingerprint(module) != before


def test_digests_are_those_of_another_process() -> None:
    """Neither the order of sets, which differs between processes, nor addresses are in them."""
    code = """if True:
        from qeff_framework.sources.fingerprint import fingerprint
        words = {"a", "b", "c", "d"}
        class Counted:
            k = frozenset(words)
            def __call__(self, x):
                return x in words or x in {"e", "f", "g"}
        print(fingerprint(Counted(), "it"))
    """
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64
