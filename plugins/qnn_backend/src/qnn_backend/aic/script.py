"""``compile.sh``: compiles a bundle on another machine, wherever it has been put.

What depends on the SDK is decided there: where it lies, and whether its context generator needs the model library.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from qeff_framework.toolchains import LOG_FILE, own_copies
from qnn_backend.aic.bundle import DLC_FILE, PROGRAM_FOLDER, WEIGHTS_FILE, Bundle
from qnn_backend.aic.sdk import PYTHON_VARIABLE
from qnn_backend.aic.side_files import compiler_config
from qnn_backend.constants import QnnConstants

SCRIPT_FILE = "compile.sh"

_TEMPLATE = """#!/bin/sh
# Compiles this folder for Cloud AI 100 with the QAIRT SDK that {variable} names.
cd "$(dirname "$0")" || exit 1
if [ -z "${variable}" ]; then
    echo "{variable} is not set: install the QAIRT SDK and let it name the SDK's folder" >&2
    exit 1
fi
sdk=$(cd "${variable}" && pwd) || exit 1
for tool in "{converter}" "{generator}"; do
    if [ ! -x "$tool" ]; then
        echo "$tool is not there or not executable: let {variable} name a complete QAIRT SDK" >&2
        exit 1
    fi
done
export PATH="{bin}${{PATH:+:$PATH}}"
export LD_LIBRARY_PATH="{lib}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
export PYTHONPATH="{python}${{PYTHONPATH:+:$PYTHONPATH}}"

fail() {{
    rm -f {program}
    tail -n 20 {log} >&2
    echo "$1; the tools' output is in {log}" >&2
    exit 1
}}

: >{log}
{convert}rm -rf {folder}
mkdir {folder} || exit 1
# The root as a JSON text.
root=$(printf '%s' "$sdk" | sed 's/[\\\\"]/\\\\&/g')
cat >{config} <<END
{config_text}END
# Generators older than {first} read a DLC through a library.
set --
version=$(sed -n "s/^version: *['\\"]*\\([0-9]*\\.[0-9]*\\).*/\\1/p" "$sdk/{description}")
if [ -n "$version" ] && [ "${{version%.*}}" -eq {major} ] && [ "${{version#*.}}" -lt {minor} ]; then
    set -- --model "{model_library}"
fi
{generate} "$@" >>{log} 2>&1 || fail "qnn-context-binary-generator failed with exit code $?"
if [ ! -e {program} ]; then
    for other in {folder}/{stem}*.bin; do
        [ -s "$other" ] && mv "$other" {program}
        break
    done
fi
[ -s {program} ] || fail "qnn-context-binary-generator left no program"
echo "compiled {program}"
"""

_CONVERT = """{own_copies}rm -f {dlc}
{command} >>{log} 2>&1 || fail "qairt-converter failed with exit code $?"
[ -s {dlc} ] || fail "qairt-converter left no {dlc}"
"""

#: The SDK's folder in the script.
_ROOT = "$sdk"


def write_script(bundle: Bundle) -> None:
    """Writes ``compile.sh`` into the bundle."""
    converter = QnnConstants.QAIRT_CONVERTER.format(_ROOT, QnnConstants.TARGET)
    generator = QnnConstants.QNN_CONTEXT_BIN.format(_ROOT, QnnConstants.TARGET)
    convert = ""
    if bundle.converter_arguments is not None:
        interpreter = f'${{{PYTHON_VARIABLE}:+"${PYTHON_VARIABLE}"}}'
        convert = _CONVERT.format(
            own_copies=own_copies(WEIGHTS_FILE),
            dlc=DLC_FILE,
            log=LOG_FILE,
            command=f"{interpreter} {_quoted([converter, *bundle.converter_arguments])}",
        )
    major, minor = QnnConstants.FIRST_WITHOUT_MODEL_LIB
    library = QnnConstants.QNN_CONTEXT_LIB_NET_RUN_EXTENSIONS.format("$root", QnnConstants.TARGET)
    text = _TEMPLATE.format(
        variable=QnnConstants.QNN_SDK_PATH_ENV_VAR_NAME,
        converter=converter,
        generator=generator,
        bin=QnnConstants.QNN_BIN_PATH.format(_ROOT, QnnConstants.TARGET),
        lib=QnnConstants.QNN_LIB_PATH.format(_ROOT, QnnConstants.TARGET),
        python=QnnConstants.QNN_PYTHON_PATH.format(_ROOT),
        program=f"{PROGRAM_FOLDER}/{QnnConstants.CONTEXT_BIN_QPC_NAME}",
        folder=PROGRAM_FOLDER,
        stem=QnnConstants.CONTEXT_BIN_QPC_NAME.removesuffix(".bin"),
        log=LOG_FILE,
        convert=convert,
        config=QnnConstants.QNN_COMPILER_CONFIG_NAME,
        config_text=compiler_config(library),
        first=f"{major}.{minor}",
        major=major,
        minor=minor,
        description=QnnConstants.QNN_SDK_YAML,
        model_library=QnnConstants.QNN_MODEL_LIB.format(_ROOT, QnnConstants.TARGET),
        generate=_quoted([generator, *bundle.generator_arguments(_ROOT, model_library=False)]),
    )
    script = bundle.directory / SCRIPT_FILE
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)


def _quoted(command: Iterable[str]) -> str:
    return " ".join(f'"{part}"' if part.startswith(f"{_ROOT}/") else shlex.quote(part) for part in command)
