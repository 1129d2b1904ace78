"""Turns keywords of QEfficient into those of qeff_framework, as the map says."""

from __future__ import annotations

import ast
import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from qeff_framework.plugin_api import Backend, OptionError
from QEfficient._compat.backends import capabilities, has_option
from QEfficient._compat.keywords import NEUTRAL, QAIC_CONFIG, SAMPLING_PARAMS, Keyword
from QEfficient._compat.notices import NotSupportedError, say_once

#: Options that a backend has under their names and can do without, by the field of its capabilities.
_BY_CAPABILITY = {"mxfp6_matmul": "mxfp6_matmul", "mxint8_kv_cache": "mxint8_kv_cache", "num_devices": "multi_device"}
#: Options that a simulator has where it simulates a device alone.
_SIMULATED = ("num_kv_blocks", "replicate_kv_heads")
#: Makes ``ort_sim`` compute in the number formats of the device, without a change of the script.
SIMULATE_VARIABLE = "QEFF_COMPAT_SIMULATE"
_HARDWARE = {"2.0": "ai100", "ai100": "ai100", "ai200": "ai200"}
#: Tokens that the sampler of a program chooses among.
_CANDIDATES = 512


def translate(
    method: str,
    table: Iterable[Keyword],
    given: Mapping[str, Any],
    *,
    backend: Backend | None = None,
    sizes: type | None = None,
) -> dict[str, Any]:
    """The keywords for qeff_framework. Those that the map leaves to the method itself (``"here"``) must not be among `given`.

    Args:
        method: for messages, ``"compile"``.
        table: the map of this method.
        given: the script's keywords. Names that the map does not have are passed on, so that the core refuses misspelt ones.
        backend: for keywords about devices.
        sizes: the task's dataclass of sizes.

    Raises:
        NotSupportedError: a keyword that is not supported, with what to use instead.
    """
    known = {each.name: each for each in table}
    passed: dict[str, Any] = {}
    devices: list[tuple[Keyword, Any]] = []
    for name, value in given.items():
        keyword = known.get(name)
        if keyword is None:
            passed[name] = value
        elif keyword.treatment == "refused":
            if not keyword.asks_for_nothing(value):
                raise NotSupportedError(f"{method}: {name}={value!r} is not supported; {keyword.note}")
        elif keyword.treatment == "no effect":
            if not keyword.asks_for_nothing(value):
                say_once(f"{method}: {name} has no effect: {keyword.note}", level=logging.INFO)
        elif keyword.treatment == "device":
            if not keyword.asks_for_nothing(value) or _switches_off(backend, keyword.to or name, value):
                devices.append((keyword, value))
        elif keyword.treatment == "size":
            passed |= size(method, keyword, value, sizes)
        elif value is not None:
            passed[keyword.to or name] = value
    if backend is None:
        return {**passed, **{keyword.to or keyword.name: value for keyword, value in devices}}
    return {**passed, **_for_backend(method, devices, passed, backend)}


def _switches_off(backend: Backend | None, name: str, value: object) -> bool:
    """Whether the value is `False` for an option that is on by default."""
    if backend is None or value is not False:
        return False
    return any(field.name == name and field.default is True for field in fields(backend.options))


def size(method: str, keyword: Keyword, value: Any, sizes: type | None) -> dict[str, Any]:
    """The keyword of a size, if the installed qeff_framework has it."""
    if keyword.asks_for_nothing(value):
        return {}
    name = keyword.to or keyword.name
    if sizes is None or name not in {field.name for field in fields(sizes)}:
        told = keyword.note.removeprefix("without it: ")
        raise NotSupportedError(
            f"{method}: {keyword.name}={value!r} is not supported by the installed qeff-framework{f'; {told}' if told else ''}"
        )
    return {name: value}


def _for_backend(
    method: str, devices: Iterable[tuple[Keyword, Any]], others: Mapping[str, Any], backend: Backend
) -> dict[str, Any]:
    can = capabilities(backend, dict(others))
    simulates = not has_option(backend.options, "simulate") or others.get("simulate")
    passed = {}
    for keyword, value in devices:
        name = keyword.to or keyword.name
        capability = _BY_CAPABILITY.get(name)
        is_there = has_option(backend.options, name) and (simulates or name not in _SIMULATED)
        if is_there and (capability is None or getattr(can, capability)):
            passed[name] = _hardware(method, value) if name == "hw_version" else value
        else:
            say_once(
                f"{method}: {keyword.name}={value!r} has no meaning on backend '{backend.name}' and is left out"
                f"{_remedy(name, backend)}"
            )
    return passed


def _remedy(name: str, backend: Backend) -> str:
    if name in ("mxfp6_matmul", "mxint8_kv_cache", *_SIMULATED) and has_option(backend.options, "simulate"):
        return f"; {SIMULATE_VARIABLE}=ai100 computes as the device does"
    return ""


def _hardware(method: str, value: object) -> str:
    if str(value) not in _HARDWARE:
        raise OptionError(f"{method}: aic_hw_version={value!r} is none of {', '.join(map(repr, _HARDWARE))}")
    return _HARDWARE[str(value)]


def simulated(backend: Backend) -> dict[str, Any]:
    """The option that makes a simulator compute as a device does, where the environment asks for it."""
    asked = os.environ.get(SIMULATE_VARIABLE, "").strip()
    return {"simulate": asked} if asked and has_option(backend.options, "simulate") else {}


def lengths(value: Any) -> Any:
    """A list of lengths, which may be given as its text."""
    if not isinstance(value, str):
        return value
    try:
        return list(ast.literal_eval(value))
    except (ValueError, SyntaxError, TypeError) as error:
        raise OptionError(f"compile: {value!r} is no list of lengths such as '[64, 128]'") from error


def of_qaic_config(config: Mapping[str, Any] | None, sizes: type) -> dict[str, Any]:
    """The sizes that a ``qaic_config`` asks for, and options of the backend.

    Raises:
        OptionError: a key that QEfficient does not have.
        NotSupportedError: one that is not supported.
    """
    known = {each.name for each in QAIC_CONFIG}
    for name in config or {}:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(known))}"
            raise OptionError(f"qaic_config: unknown key '{name}'; {hint}")
    given = dict(config or {})
    mode = given.pop("blocking_mode", None)
    if given.get("num_kv_blocks", 1) not in (None, 1) and mode not in (None, "kv"):
        raise NotSupportedError(
            f"qaic_config: blocking_mode={mode!r} with num_kv_blocks is not supported; blocks are those of the cache, 'kv'"
        )
    model_type = given.pop("speculative_model_type", None)
    if model_type not in (None, "target"):
        raise NotSupportedError(
            f"qaic_config: speculative_model_type={model_type!r} is not supported; 'target' checks drafts of any origin"
        )
    candidates = given.pop("max_top_k_ids", None)
    if candidates is not None and int(candidates) > _CANDIDATES:
        raise NotSupportedError(
            f"qaic_config: max_top_k_ids={candidates} is not supported; the sampler chooses among {_CANDIDATES} tokens at most"
        )
    return translate("qaic_config", QAIC_CONFIG, given, sizes=sizes)


def of_sampling_params(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of ``generate`` for ``sampling_params``, arrays ``[N, 1]`` whose rows must be alike.

    Raises:
        NotSupportedError: rows that differ.
        OptionError: an entry that QEfficient does not have.
    """
    import numpy as np

    settings: dict[str, Any] = {}
    for name, value in (params or {}).items():
        if name not in SAMPLING_PARAMS:
            raise OptionError(f"sampling_params: unknown entry '{name}'; there are {', '.join(SAMPLING_PARAMS)}")
        setting = SAMPLING_PARAMS[name]
        if not setting:
            say_once(f"sampling_params: {name} has no effect: each prompt draws its own, from generate(..., seed=...)")
            continue
        array = np.asarray(value)
        if array.dtype == object or not array.size:
            continue
        is_mask = name == "token_bitmasks"
        if len(np.unique(array, axis=0) if is_mask else np.unique(array)) > 1:
            raise NotSupportedError(
                f"sampling_params: {name} differs between the prompts, which is not supported; call generate for each of them"
            )
        if is_mask:
            forbidden = np.flatnonzero(~array[0].astype(bool)).tolist()
            if forbidden:
                settings[setting] = forbidden
            continue
        number = array.reshape(-1)[0].item()
        if NEUTRAL.get(setting) != number:
            settings[setting] = int(number) if setting == "top_k" else number
    if settings.get("temperature", 1.0) == 0:
        del settings["temperature"]
    elif params is not None and "temperatures" in params:
        settings["do_sample"] = True
        settings.setdefault("top_k", _CANDIDATES)
    if not settings.get("do_sample"):
        # Greedy: they change no choice, and the core refuses them where they are not used.
        for name in ("top_k", "top_p", "min_p"):
            settings.pop(name, None)
    return settings
