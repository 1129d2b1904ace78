"""Digests of objects that exist in memory only: modules, functions and what they refer to.

A digest changes whenever the behaviour of the object can: it covers the bytecode of functions, their defaults, closures and the
globals that they read, the state of objects, and the values of tensors. Code of installed libraries stands for itself by name and
version. Names of functions, docstrings, comments, line numbers and places in the file system do not count.

What cannot be followed (open files, C objects without state that Python can read, code that reads files or the environment) has
no digest, and `NotIdentifiableError` says what it is.
"""

from __future__ import annotations

import builtins
import contextvars
import dis
import enum
import functools
import hashlib
import logging
import sys
import threading
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from qeff_framework.artifacts.digests import file_sha256
from qeff_framework.sources.libraries import is_own_code, library_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Functions, and attributes of modules, whose results depend on something outside of the process's objects.
_READS_OUTSIDE = _words(
    "builtins.open builtins.input builtins.eval builtins.exec builtins.__import__ builtins.globals builtins.locals builtins.vars "
    "os.environ os.environb os.getenv os.getenvb os.open os.popen io.open sys.stdin sys.argv subprocess.run "
    "subprocess.check_output torch.load numpy.load numpy.fromfile numpy.loadtxt secrets uuid.uuid1 uuid.uuid4 "
    "random.random random.randint random.uniform random.choice random.gauss random.sample random.shuffle"
)
#: Entries of a class that describe it and do not change what it does.
_CLASS_BOOKKEEPING = _words(
    "__module__ __qualname__ __doc__ __dict__ __weakref__ __annotations__ __firstlineno__ __static_attributes__ __orig_bases__ "
    "__parameters__ __abstractmethods__ _abc_impl __slots__ __slotnames__ __dataclass_fields__ __dataclass_params__ "
    "__match_args__ __annotate__ __annotate_func__ __annotations_cache__ __type_params__ __classcell__"
)
#: Attributes of modules that the libraries keep for themselves: where a model came from, how it is trained or spread.
_MODULE_BOOKKEEPING = _words(
    "name_or_path warnings_issued gradient_checkpointing hf_device_map all_tied_weights_keys loss_type kernel_config "
    "generation_config is_gradient_checkpointing _is_hf_initialized _use_kernels _weight_conversions "
    "_gradient_checkpointing_func _hf_hook _old_forward _hf_peft_config_loaded"
)
#: Fields of a Transformers config that say where it came from or how the model is run, not what it computes in float32.
CONFIG_BOOKKEEPING = _words(
    "_name_or_path name_or_path transformers_version _commit_hash architectures dtype torch_dtype _attn_implementation "
    "_attn_implementation_internal attn_implementation _experts_implementation _experts_implementation_internal"
)
#: Where Transformers has a package for each family of models.
_MODELS = "transformers.models."
_LOCKS = (type(threading.Lock()), type(threading.RLock()))


class NotIdentifiableError(Exception):
    """An object whose behaviour cannot be told from another's; the text names it and the reason."""


def fingerprint(value: object, place: str) -> str:
    """SHA-256 of everything that `value` can do, 64 hex digits. `place` names it in errors.

    Raises:
        NotIdentifiableError: something that it refers to cannot be followed.
    """
    return _run(_Digester(module_tensors=True), value, place)


def structure_fingerprint(module: Any, place: str) -> str:
    """Like `fingerprint` for a torch module, without the values of its parameters and buffers."""
    return _run(_Digester(module_tensors=False), module, place)


def tensors_fingerprint(module: Any) -> str:
    """SHA-256 over every parameter and buffer of a torch module, also over those that its state dict leaves out.

    Raises:
        NotIdentifiableError: a tensor has no values that can be read.
    """
    digest = hashlib.sha256()
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in sorted(tensors, key=lambda item: str(item[0])):
        digest.update(f"{name}|".encode())
        for part in _tensor_parts(tensor, f"tensor '{name}'"):
            digest.update(part)
    return digest.hexdigest()


def patches_fingerprint(model_types: Iterable[str]) -> str | None:
    """SHA-256 of what is one's own in imported classes and modules of Transformers and of ``torch.nn``: functions, also behind
    decorators of a library, classes, and entries of tables such as ``ACT2FN``.

    Of Transformers' models those of `model_types` count, and those that their code imports. `None` where nothing was replaced, as
    in a process that has not imported them.

    Raises:
        NotIdentifiableError: a replacement refers to something that cannot be followed.
    """
    if "transformers" not in sys.modules:
        return None
    modules = {
        name: module
        for name, module in sys.modules.items()
        if (name.startswith("transformers.") and not name.startswith(_MODELS))
        or name.startswith("torch.nn.modules.")
        or name == "torch.nn.functional"
    }
    modules |= _modeling_modules(model_types)
    digester = _Digester(module_tensors=True)
    found: list[bytes] = []
    for name, module in sorted(modules.items()):
        if library_of(name) is not None:
            found.extend(digester.replaced(name, module))
    return _hash(*found).hex() if found else None


def _modeling_modules(model_types: Iterable[str]) -> dict[str, types.ModuleType]:
    """The imported modules of Transformers with the code of these models, by name."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    families = {f"{_MODELS}{model_type_to_module_name(each)}" for each in model_types}
    found: dict[str, types.ModuleType] = {}
    while families:
        family = families.pop()
        for name, module in list(sys.modules.items()):
            if name.startswith(f"{family}.") and name not in found:
                found[name] = module
                homes = [str(getattr(value, "__module__", "")) for value in list(vars(module).values())]
                families |= {home.rpartition(".")[0] for home in homes if home.startswith(_MODELS)}
                # It holds no code of a model, and its classes stand in the code of many.
                families.discard(f"{_MODELS}auto")
    return found


def _run(digester: _Digester, value: object, place: str) -> str:
    try:
        return digester.digest(value, place).hex()
    except NotIdentifiableError:
        raise
    except RecursionError as error:
        raise NotIdentifiableError(f"{place} is nested too deeply") from error
    except Exception as error:
        # Attributes of strangers' objects may raise anything when they are read.
        raise NotIdentifiableError(f"{place} cannot be read: {type(error).__name__}: {error}") from error


class _Digester:
    """One pass over an object and all that it refers to."""

    def __init__(self, *, module_tensors: bool) -> None:
        self._module_tensors = module_tensors
        self._done: dict[int, bytes] = {}
        #: Objects whose digest is being made, with their depth: a reference back to one of them is told by that.
        self._open: dict[int, int] = {}
        #: Keeps temporary objects alive, so that no id is used twice.
        self._kept: list[object] = []
        #: Classes in whose Python modules nothing is one's own: most layers of a model have the same ones.
        self._unpatched: set[type] = set()

    def digest(self, value: object, place: str) -> bytes:
        plain = _plain(value)
        if plain is not None:
            return _hash(b"plain", plain)
        key = id(value)
        if key in self._done:
            return self._done[key]
        if key in self._open:
            return _hash(b"cycle", str(len(self._open) - self._open[key]).encode())
        self._kept.append(value)
        self._open[key] = len(self._open)
        try:
            result = _hash(*self._parts(value, place))
        finally:
            del self._open[key]
        self._done[key] = result
        return result

    def replaced(self, name: str, module: types.ModuleType) -> Iterator[bytes]:
        """What is one's own in a Python module of a library, in the classes that it defines, and in its tables."""
        own: dict[str, object] = {}
        for entry, found in list(vars(module).items()):
            if isinstance(found, types.FunctionType | type) and _holds_own_code(found):
                own[entry] = found
            elif isinstance(found, type) and found.__module__ == name:
                # The standard library writes the constructor of a named tuple.
                skipped = "__new__" if issubclass(found, tuple) else ""
                own |= {f"{entry}.{key}": value for key, value in _own_values(vars(found)) if key != skipped}
            elif isinstance(found, dict) and entry != "__builtins__":
                own |= {f"{entry}[{key}]": value for key, value in _own_values(found)}
        for entry, found in sorted(own.items()):
            yield from (f"{name}.{entry}".encode(), self.digest(found, f"{name}.{entry}"))

    # --- by kind ------------------------------------------------------------------------------------------------------

    def _parts(self, value: Any, place: str) -> Iterator[bytes]:
        match value:
            case enum.Enum():
                yield from (b"enum", type(value).__name__.encode(), value.name.encode())
            case types.FunctionType():
                yield from self._function(value, place)
            case types.MethodType():
                yield from (
                    b"method",
                    self.digest(value.__func__, place),
                    self.digest(value.__self__, f"owner of {place}"),
                )
            case functools.partial():
                yield b"partial"
                for part in (value.func, value.args, value.keywords):
                    yield self.digest(part, place)
            case staticmethod() | classmethod():
                yield from (type(value).__name__.encode(), self.digest(value.__func__, place))
            case property():
                yield b"property"
                for accessor in (value.fget, value.fset, value.fdel):
                    yield self.digest(accessor, place)
            case type():
                yield from self._class(value, place)
            case types.ModuleType():
                yield from self._python_module(value, place)
            case types.CodeType():
                yield from self._code(value, None, {}, place)
            case types.CellType():
                yield b"cell"
                yield self.digest(value.cell_contents, place) if _is_filled(value) else b"empty"
            case types.BuiltinFunctionType() | types.MethodWrapperType():
                yield from self._builtin(value, place)
            case types.WrapperDescriptorType() | types.MethodDescriptorType() | types.ClassMethodDescriptorType():
                yield from (b"descriptor", value.__objclass__.__qualname__.encode(), value.__name__.encode())
            case types.GetSetDescriptorType() | types.MemberDescriptorType():
                yield from (b"descriptor", value.__objclass__.__qualname__.encode(), value.__name__.encode())
            case dict() | types.MappingProxyType():
                yield from self._mapping(value, place)
            case list() | tuple():
                yield from self._container(value)
                for index, item in enumerate(value):
                    yield self.digest(item, f"{place}[{index}]")
                yield from self._state(value, place)
            case set() | frozenset():
                yield from self._container(value)
                yield from sorted(self.digest(item, place) for item in value)
                yield from self._state(value, place)
            case logging.Logger() | logging.LoggerAdapter():
                yield b"logger"  # what is logged changes no result
            case weakref.ReferenceType():
                yield from (b"weak", self.digest(value(), place))
            case contextvars.ContextVar():
                yield from (b"context variable", self.digest(value.get(None), place))
            case PurePath():
                # Whoever holds a path may read the file.
                content = file_sha256(value) if isinstance(value, Path) and value.is_file() else str(value)
                yield from (b"path", content.encode())
            case _ if isinstance(value, _LOCKS):
                yield b"lock"
            case _ if _is_typing(value):
                yield from (b"typing", repr(value).encode())
            case _:
                yield from self._other(value, place)

    def _other(self, value: Any, place: str) -> Iterator[bytes]:
        for name, handler in _LIBRARY_KINDS.items():
            # An object of a library exists only where the library has been imported.
            if name in sys.modules and (parts := handler(self, value, place)) is not None:
                yield from parts
                return
        if isinstance(value, functools.cached_property | functools.partialmethod):
            yield from (type(value).__name__.encode(), self.digest(value.func, place))
            return
        yield from self._object(value, place)

    def _container(self, value: Any) -> Iterator[bytes]:
        kind = type(value)
        yield kind.__name__.encode()
        if is_own_code(kind):
            yield self.digest(kind, f"class {kind.__name__}")

    def _mapping(self, value: Mapping[Any, Any], place: str) -> Iterator[bytes]:
        yield from self._container(value)
        for key, item in value.items():
            yield from (self.digest(key, place), self.digest(item, f"{place}[{key!r:.40}]"))
        yield from self._state(value, place)

    def _object(self, value: Any, place: str) -> Iterator[bytes]:
        yield from (b"object", self.digest(type(value), f"class of {place}"))
        yield from self._state(value, place)
        yield from self._reduced(value, place)

    def _state(self, value: Any, place: str) -> Iterator[bytes]:
        """The attributes of an object: those of its dictionary and of its slots."""
        attributes = dict(getattr(value, "__dict__", None) or {})
        for name in _slots(type(value)):
            if hasattr(value, name):
                attributes[name] = getattr(value, name)
        for name in sorted(attributes, key=str):
            yield from (str(name).encode(), self.digest(attributes[name], f"{place}.{name}"))

    def _reduced(self, value: Any, place: str) -> Iterator[bytes]:
        """The state that compiled code keeps for an object, as pickling sees it; nothing for an object of Python code."""
        kind: Any = type(value)
        usual = (kind.__reduce_ex__, kind.__reduce__) == (_OBJECT.__reduce_ex__, _OBJECT.__reduce__)
        try:
            # Fails for an object that holds more than Python's attributes.
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            if not usual and hasattr(value, "__dict__"):
                return  # a class of Python code that forbids pickling
            raise NotIdentifiableError(
                f"{place} is a {kind.__module__}.{kind.__qualname__}, whose state cannot be read"
            ) from error
        if usual:
            return
        if isinstance(reduced, str):
            yield from (b"global", reduced.encode())
            return
        for part in reduced:
            content = list(part) if isinstance(part, Iterator) else part
            self._kept.append(content)
            yield self.digest(content, place)

    # --- code ---------------------------------------------------------------------------------------------------------

    def _function(self, function: types.FunctionType, place: str) -> Iterator[bytes]:
        owner = library_of(function.__globals__.get("__name__"))
        if owner is not None:
            yield from (b"library function", owner.encode(), function.__qualname__.encode())
            yield from self._of_library(function, place)
            return
        yield b"function"
        yield from self._code(function.__code__, function.__doc__, function.__globals__, place)
        yield self.digest(function.__defaults__, f"defaults of {place}")
        yield self.digest(function.__kwdefaults__, f"defaults of {place}")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            yield self.digest(cell, f"variable '{name}' of {place}")
        extra = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
        yield self.digest(extra, f"attributes of {place}")

    def _of_library(self, function: types.FunctionType, place: str) -> Iterator[bytes]:
        """What was put into a function of a library: a decorator of a library holds the function that it wraps."""
        for cell in function.__closure__ or ():
            if not _is_filled(cell):
                continue
            try:
                yield self.digest(cell.cell_contents, place)
            except NotIdentifiableError:
                if is_own_code(cell.cell_contents) or any(
                    is_own_code(other.cell_contents) for other in function.__closure__ or () if _is_filled(other)
                ):
                    raise
                yield b"the library's own"

    def _code(self, code: types.CodeType, doc: str | None, namespace: Mapping[str, Any], place: str) -> Iterator[bytes]:
        instructions = [item for item in dis.get_instructions(code) if item.opname not in ("EXTENDED_ARG", "CACHE")]
        constants = list(code.co_consts)
        loads_first = any(item.arg == 0 and item.opname in ("LOAD_CONST", "RETURN_CONST") for item in instructions)
        if constants and not loads_first and isinstance(constants[0], str) and constants[0] == (doc or constants[0]):
            constants[0] = None  # the docstring
        yield from (b"code", str(sys.implementation.cache_tag).encode(), code.co_code, code.co_exceptiontable)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        yield from (repr(counts).encode(), repr(names).encode())
        for constant in constants:
            if isinstance(constant, types.CodeType):
                yield from self._code(constant, None, namespace, place)
            else:
                yield self.digest(constant, place)
        for index, item in enumerate(instructions):
            if item.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                attributes = _attributes_after(instructions, index)
                yield from self._global(str(item.argval), attributes, namespace, place)
            elif item.opname == "IMPORT_NAME" and library_of(str(item.argval)) is None:
                raise NotIdentifiableError(f"{place} imports {item.argval or 'a module'} when it runs")

    def _global(self, name: str, attributes: list[str], namespace: Mapping[str, Any], place: str) -> Iterator[bytes]:
        yield name.encode()
        if name in namespace:
            value = namespace[name]
        elif hasattr(builtins, name):
            if f"builtins.{name}" in _READS_OUTSIDE:
                raise NotIdentifiableError(f"{place} calls {name}(), whose result no key can hold")
            yield b"builtin"
            return
        else:
            yield b"missing"
            return
        told = f"{name} in {place}"
        while isinstance(value, types.ModuleType) and attributes:
            attribute = attributes.pop(0)
            dotted = f"{value.__name__}.{attribute}"
            if dotted in _READS_OUTSIDE or value.__name__ in _READS_OUTSIDE:
                raise NotIdentifiableError(f"{place} uses {dotted}, whose result no key can hold")
            if not hasattr(value, attribute):
                yield b"missing"
                return
            value, told = getattr(value, attribute), f"{dotted} in {place}"
        if (
            getattr(value, "__module__", None)
            and f"{value.__module__}.{getattr(value, '__name__', '')}" in _READS_OUTSIDE
        ):
            raise NotIdentifiableError(f"{place} uses {name}, whose result no key can hold")
        yield self.digest(value, told)

    def _class(self, value: type, place: str) -> Iterator[bytes]:
        owner = library_of(value.__module__)
        if owner is not None:
            yield from (b"library class", owner.encode(), value.__module__.encode(), value.__qualname__.encode())
            for parent in value.__mro__[1:]:
                if library_of(parent.__module__) is None:
                    yield self.digest(parent, place)
            yield from self._patches(value)
            return
        yield from (b"class", value.__name__.encode())
        for parent in value.__bases__:
            yield self.digest(parent, f"base {parent.__name__} of {place}")
        if library_of(type(value).__module__) is None:
            yield self.digest(type(value), f"metaclass of {place}")
        for name in sorted(set(vars(value)) - _CLASS_BOOKKEEPING):
            yield from (name.encode(), self.digest(vars(value)[name], f"{value.__name__}.{name}"))

    def _patches(self, value: type) -> Iterator[bytes]:
        """What has been changed in a class of a library since it was imported, as far as it shows."""
        for owner in value.__mro__:
            library = library_of(owner.__module__)
            if library is None or owner.__module__ == "builtins":
                continue
            package = owner.__module__.partition(".")[0]
            for name, entry in list(vars(owner).items()):
                function = entry.__func__ if isinstance(entry, staticmethod | classmethod) else entry
                if isinstance(function, property):
                    function = function.fget
                if not isinstance(function, types.FunctionType):
                    continue
                home = str(function.__globals__.get("__name__", ""))
                if home.partition(".")[0] != package:
                    own = library_of(home) is None
                    # The standard library makes functions for others: of dataclasses, of abstract classes.
                    if own or not str(library_of(home)).startswith("python "):
                        yield from (name.encode(), self.digest(function, f"{owner.__name__}.{name}"))
                elif any(is_own_code(part) for part in _wrapped(function)):
                    yield from (name.encode(), self.digest(function, f"{owner.__name__}.{name}"))

    def _python_module(self, value: types.ModuleType, place: str) -> Iterator[bytes]:
        owner = library_of(value.__name__)
        if owner is None:
            raise NotIdentifiableError(f"{place} is the Python module {value.__name__}, used as a value")
        yield from (b"python module", owner.encode(), value.__name__.encode())

    def _builtin(self, value: Any, place: str) -> Iterator[bytes]:
        yield from (b"builtin", str(getattr(value, "__qualname__", value.__name__)).encode())
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType) or _is_native_namespace(owner):
            yield str(library_of(getattr(value, "__module__", None)) or "").encode()
        else:
            yield self.digest(owner, f"owner of {place}")

    # --- objects of libraries -----------------------------------------------------------------------------------------

    def _torch(self, value: Any, place: str) -> Iterable[bytes] | None:
        import torch

        if isinstance(value, torch.nn.Module):
            return self._module(value, place)
        if isinstance(value, torch.Tensor):
            kind = "" if type(value) in (torch.Tensor, torch.nn.Parameter) else type(value).__qualname__
            return (b"tensor", kind.encode(), *_tensor_parts(value, place))
        if isinstance(value, torch.dtype | torch.device | torch.memory_format | torch.layout):
            return (b"torch", repr(value).encode())
        if isinstance(value, torch.Generator):
            return (b"generator", value.get_state().numpy().tobytes())
        if isinstance(value, torch.jit.ScriptFunction):
            return (b"script", str(value.graph).encode())
        if isinstance(value, torch._ops.OpOverload | torch._ops.OpOverloadPacket):  # noqa: SLF001 - no public name
            name = str(value)
            if name.partition(".")[0] not in ("aten", "prims", "prim"):
                raise NotIdentifiableError(f"{place} is the operator {name}, whose code cannot be read")
            return (b"operator", name.encode(), str(library_of("torch")).encode())
        return None

    def _numpy(self, value: Any, place: str) -> Iterable[bytes] | None:
        import numpy as np

        if isinstance(value, np.ndarray):
            shape = repr((value.dtype.str, value.shape)).encode()
            if value.dtype.hasobject:
                return (b"array", shape, self.digest(value.tolist(), place))
            return (b"array", shape, np.ascontiguousarray(value).tobytes())
        if isinstance(value, np.generic | np.dtype):
            return (b"numpy", repr(value).encode(), str(getattr(value, "dtype", "")).encode())
        if isinstance(value, np.ufunc):
            return (b"ufunc", value.__name__.encode(), str(library_of("numpy")).encode())
        return None

    def _transformers(self, value: Any, place: str) -> Iterable[bytes] | None:
        from transformers import GenerationConfig, PreTrainedConfig

        if isinstance(value, PreTrainedConfig | GenerationConfig):
            import json

            content = json.loads(value.to_json_string(use_diff=False))
            kept = {name: item for name, item in content.items() if name not in CONFIG_BOOKKEEPING}
            return (b"config", type(value).__name__.encode(), self.digest(_sorted(kept), place))
        return None

    def _module(self, module: Any, place: str) -> Iterator[bytes]:
        import torch

        yield from (b"module", self.digest(type(module), f"class of {place}"))
        yield from self._patched_namespaces(type(module))
        handled = set(vars(torch.nn.Module()))
        for name in sorted(set(vars(module)) - handled - _MODULE_BOOKKEEPING):
            if name.startswith("_") and _is_bookkeeping(type(module), name):
                continue
            yield from (name.encode(), self.digest(vars(module)[name], f"{place}.{name}"))
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            for key, hook in vars(module)[kind].items():
                owner = library_of(getattr(getattr(hook, "__func__", hook), "__module__", None)) or ""
                # Transformers' own hooks collect outputs, and stay after the first call that asks for them.
                if not owner.startswith("transformers "):
                    flags = (
                        key in vars(module)[f"{kind}_with_kwargs"],
                        key in vars(module)["_forward_hooks_always_called"],
                    )
                    yield from (kind.encode(), repr(flags).encode(), self.digest(hook, f"a forward hook of {place}"))
        for kind in ("_parameters", "_buffers"):
            for name, tensor in vars(module)[kind].items():
                yield from (kind.encode(), str(name).encode())
                if tensor is not None and self._module_tensors:
                    yield self.digest(tensor, f"{place}.{name}")
        for name, child in vars(module)["_modules"].items():
            yield from (b"child", str(name).encode(), self.digest(child, f"{place}.{name}"))

    def _patched_namespaces(self, value: type) -> Iterator[bytes]:
        """Functions and classes of one's own that were put into the Python module of a library's class."""
        if value in self._unpatched:
            return
        is_patched = False
        for owner in value.__mro__:
            name = owner.__module__
            if library_of(name) is None or name.partition(".")[0] in ("builtins", "typing", "abc"):
                continue
            for entry, found in list(vars(sys.modules.get(name, types)).items()):
                if isinstance(found, types.FunctionType | type) and is_own_code(found):
                    is_patched = True
                    yield from (entry.encode(), self.digest(found, f"{name}.{entry}"))
        if not is_patched:
            self._unpatched.add(value)


_LIBRARY_KINDS: Mapping[str, Any] = {
    "torch": _Digester._torch,  # noqa: SLF001 - a table of the class's own methods
    "numpy": _Digester._numpy,  # noqa: SLF001
    "transformers": _Digester._transformers,  # noqa: SLF001
}
#: Without the types that the stubs give its methods, which cannot be compared with those of another class.
_OBJECT: Any = object


# --- small parts ----------------------------------------------------------------------------------------------------------


def _own_values(values: Mapping[Any, Any]) -> Iterator[tuple[Any, object]]:
    # Not through methods of its class: a table that imports a model when one asks for it is not asked.
    items = dict.items(values) if isinstance(values, dict) else values.items()
    return ((key, value) for key, value in list(items) if _holds_own_code(value))


def _holds_own_code(value: object, seen: frozenset[int] = frozenset()) -> bool:
    """Whether `value` is code of one's own, or a function of a library around such code, as decorators return it."""
    if isinstance(value, property):
        return any(_holds_own_code(part, seen) for part in (value.fget, value.fset, value.fdel))
    if isinstance(value, functools.partial):
        return _holds_own_code(value.func, seen)
    function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    if is_own_code(function):
        return True
    if not isinstance(function, types.FunctionType) or id(function) in seen:
        return False
    return any(_holds_own_code(part, seen | {id(function)}) for part in _wrapped(function))


def _wrapped(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        if _is_filled(cell):
            yield cell.cell_contents


def _is_bookkeeping(module_class: type, name: str) -> bool:
    """Whether a library keeps `name`, which begins with an underscore, for itself."""
    if library_of(module_class.__module__) is not None:
        return True
    transformers = sys.modules.get("transformers")
    return transformers is not None and hasattr(transformers.PreTrainedModel, name)


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _plain(value: object) -> bytes | None:
    if value is None or value is Ellipsis or value is NotImplemented or type(value) in (bool, int, float, complex, str):
        return f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass")
    if isinstance(value, bytes | bytearray):
        return b"bytes " + bytes(value)
    return f"{value!r}".encode() if type(value) in (range, slice) else None


def _tensor_parts(tensor: Any, place: str) -> Iterator[bytes]:
    import torch

    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        raise NotIdentifiableError(f"{place} is a tensor without plain values ({tensor.layout}, {tensor.device})")
    plain = tensor.detach().cpu().contiguous()
    yield f"{plain.dtype}|{tuple(plain.shape)}|".encode()
    yield plain.flatten().view(torch.uint8).numpy().data


def _attributes_after(instructions: list[dis.Instruction], index: int) -> list[str]:
    names = []
    for item in instructions[index + 1 :]:
        if item.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        names.append(str(item.argval))
    return names


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


def _is_typing(value: object) -> bool:
    return isinstance(value, types.GenericAlias | types.UnionType) or type(value).__module__ == "typing"


def _is_native_namespace(owner: object) -> bool:
    """Whether the owner of a builtin function only holds functions of a library, as ``torch._C._VariableFunctions`` does."""
    return isinstance(owner, type) or "FunctionsClass" in type(owner).__name__


def _slots(value: type) -> Iterator[str]:
    for owner in value.__mro__:
        slots = vars(owner).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield (
                    f"_{owner.__name__.lstrip('_')}{name}"
                    if name.startswith("__") and not name.endswith("__")
                    else name
                )


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value, key=str)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
