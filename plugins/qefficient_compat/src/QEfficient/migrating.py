"""The page ``docs/migrating.md``, made from the map: ``python -m QEfficient.migrating docs/migrating.md`` writes it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import qeff_framework
from QEfficient._compat.keywords import (
    COMPILE,
    EXPORT,
    FROM_PRETRAINED,
    GENERATE,
    NAMES,
    QAIC_CONFIG,
    SAMPLING_PARAMS,
    Keyword,
    Name,
)

_INTRODUCTION = """\
# Migrating from QEfficient

Scripts that were written for QEfficient (`efficient-transformers`) run unchanged with the package `qeff-qefficient-compat`, which
provides the module `QEfficient`. It contains none of QEfficient's code, and it cannot be installed beside it.
qeff_framework itself does not know it: a script can be moved to `qeff_framework` one call at a time, by the tables below.

    pip install -c constraints.txt . ./plugins/ort_sim_backend ./plugins/qefficient_compat

```python
from transformers import AutoTokenizer

from QEfficient import QEFFAutoModelForCausalLM

model = QEFFAutoModelForCausalLM.from_pretrained("gpt2")
model.compile(num_cores=16)
tokenizer = AutoTokenizer.from_pretrained("gpt2")
info = model.generate(prompts=["My name is"], tokenizer=tokenizer, generation_len=8)
print(info.generated_texts, info.perf_metrics)
```

The same with `qeff_framework`, whose results have one entry for each prompt:

```python
from qeff_framework import QEFFAutoModelForCausalLM

model = QEFFAutoModelForCausalLM.from_pretrained("gpt2")
model.compile(backend="ort_sim", num_cores=16)
output = model.generate(prompts=["My name is"], tokenizer=tokenizer, generation_len=8)
print(output.generated_texts, output.perf_metrics)
```

Embeddings and class scores come in a dictionary:

```python
from QEfficient import QEFFAutoModel, QEFFAutoModelForSequenceClassification

name = "BAAI/bge-small-en-v1.5"
tokens = AutoTokenizer.from_pretrained(name)(["one text", "another"], padding=True, return_tensors="pt")
model = QEFFAutoModel.from_pretrained(name)
model.compile(num_cores=16)
print(model.generate(tokens)["output"].shape)

name = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
tokens = AutoTokenizer.from_pretrained(name)("a good film", return_tensors="pt")
classifier = QEFFAutoModelForSequenceClassification.from_pretrained(name)
classifier.compile(num_cores=16, seq_len=[16, 64], batch_size=2)
print(classifier.model.config.id2label[classifier.generate(tokens)["logits"].argmax().item()])
```

The commands take the flags of QEfficient, in both spellings; flags that they do not have are options of the backend:

    python -m QEfficient.cloud.infer --model_name gpt2 --batch_size 2 --prompt_len 32 --ctx_len 128 --num_cores 16 --device_group [0] --prompt "My name is|The sun rises from" --generation_len 4 --mxfp6 --mos 1 --aic_enable_depth_first
    python -m QEfficient.cloud.export --model_name gpt2

## The backend

| What decides, in this order | |
|---|---|
| `compile(backend=...)`, `--backend` | of this package alone |
| `enable_qnn=True`, `--enable_qnn` | backend `qnn` with target `aic`, that is the QAIRT tools |
| `QEFF_COMPAT_BACKEND`, else `QEFF_BACKEND` | the environment |
| the Cloud AI SDK, where a part of it works | backend `qaic` |
| otherwise | an installed simulator, `ort_sim`, and a warning that names it; an error where there is none |

Once chosen, a failure is a failure. An artifact runs on the backend that it was compiled for.

A keyword about a device that the backend does not have (MXFP6 on a CPU, `device_id`, `mos`) is left out, and told once.
`QEFF_COMPAT_SIMULATE=ai100` makes `ort_sim` compute in the number formats of Cloud AI 100, these included.

## Names

`QEfficient.` stands in front of the left column, `qeff_framework.` in front of names of classes in the middle one.

"""

_KEYWORDS = """
## Keywords

| | |
|---|---|
| passed on | to `qeff_framework`, under the name that is given |
| device | passed on to a backend that has such an option, else left out and told once |
| no effect | left out; results are the same |
| own | decided by the method itself |
| refused | an error (`NotSupportedError`, an `OptionError` and a `NotImplementedError`) that says what to use instead |
"""

_SECTIONS: Sequence[tuple[str, str, tuple[Keyword, ...]]] = (
    (
        "from_pretrained",
        "Other keywords are arguments of Transformers' `from_pretrained`, or fields of the config that they replace.",
        FROM_PRETRAINED,
    ),
    ("qaic_config", "The keys of the dictionary that `from_pretrained` takes.", QAIC_CONFIG),
    ("export", "It returns the path of the graph, which is `onnx_path` too.", EXPORT),
    (
        "compile",
        (
            "It returns the artifact's directory, which is `qpc_path` too. Other keywords are options of the backend under their "
            "own names (`qeff backends NAME --options`). Defaults are those of QEfficient."
        ),
        COMPILE,
    ),
    (
        "generate",
        "Other keywords are settings of a generation config (`do_sample=True`, `prompt_lookup_num_tokens=4`, ...).",
        GENERATE,
    ),
)

# Rows of a table are lines.
# ruff: noqa: E501
_RESULTS = """
## Results

| Class | `generate` returns |
|---|---|
| `QEFFAutoModelForCausalLM` | `CloudAI100ExecInfo`: `generated_texts` and `generated_ids` with one entry for each batch (a list of texts, an array `[B, T]`), with continuous batching for all prompts at once; `perf_metrics`, whose fields can also be read from the result |
| `QEFFAutoModelForImageTextToText` | `CloudAI100ExecInfoNew`: `generated_ids [B, T]`, `perf_metrics` |
| `QEFFAutoModelForSpeechSeq2Seq` | `CloudAI100ExecInfoNew`: `generated_ids [B, T + 1]`, which begin with the decoder's start token |
| `QEFFAutoModelForCTC` | the text of each clip |
| `QEFFAutoModel` | `{"output": array}`: `[N, H]` with pooling, else `[N, S, H]` with S as given, not as compiled |
| `QEFFAutoModelForSequenceClassification` | `{"logits": tensor}` |
| `QEffAutoPeftModelForCausalLM` | an array `[N, max_new_tokens]`, filled with zeros |

T is `generation_len` where it is given, else the longest answer. Prompts that do not fill the last batch are run too.

`model.model` is the torch module. Its `config` is read without the weights; whatever else is asked for loads them.

`QAICInferenceSession(path).run(inputs)` runs one step of a program. Retained states stay in the session: they are among `input_names`
and `output_names`, and skipping them changes nothing. One that is given as an input is written before the step, and
`outputs["past_key.0_RetainedState"]` reads one behind it, until the next step. Buffers for outputs need not be set.

`QEfficient.compile` compiles the model whose graph `QEfficient.export` has written on this machine. Which one that is, is kept in
`QEFF_MODELS_DIR`, by default `qeff_models` beside the artifact store.
"""

_TREATMENTS = {"forwarded": "passed on", "here": "own"}
#: Sizes of the task that most keywords are for.
_SIZES = frozenset(field.name for field in dataclasses.fields(qeff_framework.QEFFAutoModelForCausalLM.shapes))


def page() -> str:
    """The text of the page."""
    parts = [_INTRODUCTION, _names(NAMES), _KEYWORDS]
    for title, text, keywords in _SECTIONS:
        parts.append(f"\n### {title}\n\n{text}\n\n{_table(keywords)}")
        if title == "generate":
            parts.append(_sampling())
    return "".join([*parts, _RESULTS])


def _names(names: Sequence[Name]) -> str:
    rows = [
        f"| `{each.name}` | {f'`{each.instead}`' if each.instead else ''} | {_note(each)} |\n".replace("|  |", "| |")
        for each in names
    ]
    return "".join(["| QEfficient | qeff_framework | |\n|---|---|---|\n", *rows])


def _note(name: Name) -> str:
    absent = name.instead.startswith("QEFF") and not hasattr(
        qeff_framework, name.instead.partition("(")[0].partition(".")[0]
    )
    return f"refused: this version has no {name.instead}" if absent else name.note


def _table(keywords: Sequence[Keyword]) -> str:
    return "".join(["| Keyword | What becomes of it | |\n|---|---|---|\n", *map(_row, keywords)])


def _row(keyword: Keyword) -> str:
    treatment = _TREATMENTS.get(keyword.treatment, keyword.treatment)
    note = keyword.note
    if keyword.treatment == "size":
        # The page tells what this version does.
        treatment = "passed on" if (keyword.to or keyword.name) in _SIZES else "refused"
        note = "" if treatment == "passed on" else note.removeprefix("without it: ")
    renamed = f" as `{keyword.to}`" if keyword.to and keyword.to != keyword.name else ""
    return f"| `{keyword.name}` | {treatment}{renamed} | {note} |\n".replace("|  |", "| |")


def _sampling() -> str:
    rows = [
        f"| `{name}` | {f'`{setting}`' if setting else 'none: each prompt draws its own numbers, from `seed`'} |\n"
        for name, setting in SAMPLING_PARAMS.items()
    ]
    head = "\nEntries of `sampling_params` are settings of `generate`; a `temperature` above 0 sets `do_sample`:\n\n"
    return "".join([head, "| Entry | Setting |\n|---|---|\n", *rows])


def main() -> None:
    """Writes the page to the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
