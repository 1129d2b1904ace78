"""``compile.sh``: compiles a bundle on another machine, wherever it has been put.

It decides there what depends on the SDK, by the compiler's name and by its refusal, in the way the backend does.
"""

from __future__ import annotations

import shlex

from qaic_backend.compiler.bundle import FLAT_SPECIALIZATIONS_FILE, PROGRAM_FOLDER, Bundle
from qaic_backend.compiler.failures import NAMED_FORM_REFUSED
from qaic_backend.sdk import DEFAULT_ROOT, PROGRAM_FILE, ROOT_VARIABLE
from qeff_framework.toolchains import LOG_FILE, own_copies

SCRIPT_FILE = "compile.sh"

_TEMPLATE = """#!/bin/sh
# Compiles this folder for Cloud AI 100. Needs the Apps SDK in {root}, or its root in {variable}.
cd "$(dirname "$0")" || exit 1
sdk="${{{variable}:-{root}}}"
compiler="$sdk/exec/qaic-compile"
[ -x "$compiler" ] || compiler="$sdk/exec/qaic-exec"
if [ ! -x "$compiler" ]; then
    echo "no compiler in $sdk/exec: install the Cloud AI Apps SDK, or set {variable}" >&2
    exit 1
fi

{own_copies}
run() {{
    rm -rf {folder}
    "$compiler" {command} >>{log} 2>&1
}}

: >{log}
run {specializations}
code=$?
{retry}if [ "$code" -ne 0 ] || [ ! -s {program} ]; then
    rm -f {program}
    tail -n 20 {log} >&2
    echo "the compiler ended with exit code $code; its output is in {log}" >&2
    exit 1
fi
echo "compiled {program}"
"""

_RETRY = """if [ "$code" -ne 0 ] && grep -qF {refusal} {log}; then
    echo "the compiler wants the flat form of the specializations, trying again" >>{log}
    run {flat}
    code=$?
fi
"""

_FLAG = "-network-specialization-config="


def write_script(bundle: Bundle) -> None:
    """Writes ``compile.sh`` into the bundle."""
    command, specializations = [], ""
    for argument in bundle.arguments:
        if argument.startswith(_FLAG):
            specializations = argument.removeprefix(_FLAG)
            command.append(f'{_FLAG}"$1"')
        else:
            command.append(shlex.quote(argument))
    retry = _RETRY.format(refusal=shlex.quote(NAMED_FORM_REFUSED), log=LOG_FILE, flat=FLAT_SPECIALIZATIONS_FILE)
    text = _TEMPLATE.format(
        root=DEFAULT_ROOT,
        variable=ROOT_VARIABLE,
        folder=PROGRAM_FOLDER,
        program=f"{PROGRAM_FOLDER}/{PROGRAM_FILE}",
        log=LOG_FILE,
        own_copies=own_copies("*.safetensors", "*.onnx.data"),
        command=" ".join(command),
        specializations=specializations,
        retry=retry if bundle.has_flat_form else "",
    )
    script = bundle.directory / SCRIPT_FILE
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
