"""Nothing heavy is loaded before it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qeff_framework.sources.libraries import installs
from qeff_framework.testing.checks import UnavailableError, check, require
from qeff_framework.testing.children import call_in_child, descriptor_code, run_python
from qeff_framework.testing.distributions import distribution_of, requirements
from qeff_framework.testing.groups.execute import attention_layer
from qeff_framework.testing.layers import STEPS, feeds
from qeff_framework.testing.small_models import compile_publicly

if TYPE_CHECKING:
    from qeff_framework.testing.subject import Subject

#: Modules that a descriptor must not load: listing backends would pay for them.
HEAVY: Final = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "tokenizers")
#: Modules that running a program must not load: an artifact starts at once, and needs neither of them.
MODELS: Final = ("torch", "transformers")
#: Seconds of CPU that importing a descriptor may take.
_SECONDS: Final = 1.0

_FACTS = """
import os, threading, time
import qeff_framework.plugin_api
before = dict(os.environ), os.getcwd(), threading.active_count()
loaded = set(sys.modules)
start = time.process_time()
{MAKE}
seconds = time.process_time() - start
facts = {{
    "seconds": seconds,
    "modules": sorted({{name.partition(".")[0] for name in sys.modules}}),
    "new": sorted({{name.partition(".")[0] for name in set(sys.modules) - loaded}}),
    "variables": sorted(name for name in {{*before[0], *os.environ}} if before[0].get(name) != os.environ.get(name)),
    "cwd": os.getcwd() != before[1],
    "threads": threading.active_count() - before[2],
    "files": sorted(os.listdir()),
}}
"""


def _facts(subject: Subject) -> Any:
    """What importing the descriptor in a fresh process does."""
    if "import facts" not in subject.shared:
        code = _FACTS.replace("{MAKE}", descriptor_code(subject.backend)).replace("{{", "{").replace("}}", "}")
        subject.shared["import facts"] = run_python(
            f"{code}result(facts)\n", what="importing the descriptor", cwd=subject.folder("import")
        )
    return subject.shared["import facts"]


@check("imports")
def check_descriptor_is_light(subject: Subject) -> None:
    """Importing the descriptor loads no heavy library: not torch, transformers, onnx, onnxruntime or numpy."""
    found = [name for name in HEAVY if name in _facts(subject)["modules"]]
    require(
        not found,
        f"importing {type(subject.backend).__module__} loads {', '.join(found)}; import them where they are used",
    )


@check("imports")
def check_descriptor_loads_no_vendor_code(subject: Subject) -> None:
    """Importing the descriptor loads nothing of the packages that the backend requires beside the framework."""
    import importlib_metadata

    package = distribution_of(subject.backend)
    if package is None:
        raise UnavailableError("the backend is not installed from a package, so its requirements are not known")
    required = [
        importlib_metadata.distribution(name) for name in requirements(package.name) if name != "qeff-framework"
    ]
    found = [module for module in _facts(subject)["new"] if any(installs(each, module) for each in required)]
    require(
        not found, f"importing {type(subject.backend).__module__} loads {', '.join(found)}; import it where it is used"
    )


@check("imports")
def check_import_is_quick(subject: Subject) -> None:
    """Importing the descriptor takes less than a second."""
    seconds = _facts(subject)["seconds"]
    require(seconds < _SECONDS, f"importing {type(subject.backend).__module__} takes {seconds:.1f} s of CPU time")


@check("imports")
def check_import_does_nothing(subject: Subject) -> None:
    """Importing the descriptor prints nothing, starts no thread, and changes neither environment nor files."""
    facts = _facts(subject)
    done = [
        *([f"prints {facts['_output'].splitlines()[0]!r}"] if facts["_output"] else []),
        *([f"sets {', '.join(facts['variables'])}"] if facts["variables"] else []),
        *(["changes the working directory"] if facts["cwd"] else []),
        *([f"starts {facts['threads']} threads"] if facts["threads"] > 0 else []),
        *([f"leaves {', '.join(facts['files'])} in the working directory"] if facts["files"] else []),
    ]
    require(not done, f"importing {type(subject.backend).__module__} {'; '.join(done)}")


@check("imports")
def check_probe_is_light(subject: Subject) -> None:
    """`probe` and `fingerprint` load no heavy library into the process: native code that crashes would take it down."""
    code = f"""
{descriptor_code(subject.backend)}
backend.fingerprint()
backend.probe()
result({{"modules": sorted({{name.partition(".")[0] for name in sys.modules}})}})
"""
    modules = run_python(code, what="probe()", cwd=subject.folder("probe"))["modules"]
    found = [name for name in HEAVY if name in modules]
    require(
        not found,
        f"probe() or fingerprint() loads {', '.join(found)}; ask a process of its own (qeff_framework.toolchains.ask_python)",
    )


@check("imports")
def check_running_loads_no_model_library(subject: Subject) -> None:
    """Loading and running a program imports neither torch nor transformers."""
    subject.need("causal-lm" in subject.capabilities.tasks, "task 'causal-lm'")
    compiled = compile_publicly(subject, attention_layer().program, subject.workspace / f"home-{subject.backend.name}")
    with subject.available("execute"):
        subject.open(compiled).close()
    inputs = {name: array.tolist() for name, array in feeds(STEPS[0]).items()}
    found = call_in_child(
        "qeff_framework.testing.groups.imports:run_and_look",
        type(subject.backend).__module__,
        type(subject.backend).__qualname__,
        str(compiled.directory),
        dict(subject.settings.runtime_options),
        inputs,
        what="running a program",
    )["loaded"]
    require(not found, f"running a program loads {', '.join(found)}; import what the compiler needs in compile only")


def run_and_look(module: str, name: str, directory: str, options: dict[str, Any], inputs: dict[str, Any]) -> Any:
    """Runs a step of the artifact at `directory` and says which of `MODELS` were loaded."""
    import importlib
    import sys

    import numpy as np

    from qeff_framework import load_compiled

    backend = getattr(importlib.import_module(module), name)
    with load_compiled(directory, backend=backend, **options) as runner:
        runner.session.run({key: np.array(value) for key, value in inputs.items()})
    return {"loaded": [each for each in MODELS if each in sys.modules]}
