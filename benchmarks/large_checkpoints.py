"""Makes checkpoints of a given shape without downloading anything, and measures what an export or a compilation of one takes.

    python benchmarks/large_checkpoints.py make SHAPE FOLDER [--layers N] [--zeros]
    python benchmarks/large_checkpoints.py measure FOLDER_OR_GGUF [--backend ort_sim] [-O precision=w4 ...] [--new-tokens N]
    python benchmarks/large_checkpoints.py shapes

``make`` writes what Transformers would save: safetensors shards in bfloat16, an index, the config, and a tokenizer of a few
words, in the layout of the hub's cache below FOLDER, and prints the folder of the checkpoint. Weights are random; with
``--zeros`` the shards are sparse files of zeros, which take no disk and stand for a model larger than the disk.

``measure`` exports in a fresh process into an empty artifact store beside the checkpoint, and with ``--backend`` compiles as
well. It prints one row of a table: seconds, CPU seconds, peak memory of the process and its children (resident set; mapped
files count, and the system takes them back when it needs the memory), the peak of the process without mapped files, the largest
estimate of it that was told before the work, and the disk that was added beyond the files of the checkpoint. The store is
removed afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Model type and config of each shape; sizes as their authors publish them.
SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tiny": (
        "llama",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 256,
        },
    ),
    "llama-1.1b": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
        },
    ),
    "llama-3.1-8b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
        },
    ),
    "llama-3.1-70b": (
        "llama",
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
        },
    ),
    "mixtral-8x7b": (
        "mixtral",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
            "max_position_embeddings": 32768,
            "sliding_window": None,
        },
    ),
    "qwen3-30b-a3b": (
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
        },
    ),
    "qwen3-235b-a22b": (
        "qwen3_moe",
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
        },
    ),
}

_SHARD_BYTES = 5 * 10**9
_WORDS = ("the", "a", "of", "and", "to", "in", "is", "it", "on", "as", "with", "for", "was", "that", "by", "this")


def main() -> int:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("shapes", help="list the shapes")
    make = commands.add_parser("make", help="write a checkpoint")
    make.add_argument("shape", choices=SHAPES)
    make.add_argument("folder", type=Path)
    make.add_argument("--layers", type=int, help="another number of layers")
    make.add_argument("--zeros", action="store_true", help="sparse files of zeros")
    measured = commands.add_parser("measure", help="export, and compile with --backend")
    measured.add_argument("checkpoint", type=Path, help="folder of a checkpoint, or a GGUF file")
    measured.add_argument("--backend")
    measured.add_argument("-O", dest="options", action="append", default=[], metavar="NAME=VALUE")
    measured.add_argument("--dry-run", action="store_true", help="write the compiler's inputs and do not start it")
    measured.add_argument("--new-tokens", type=int, default=0, help="generate so many tokens after compiling")
    measured.add_argument("--python", default=sys.executable, help="interpreter that runs what is measured")
    arguments = parser.parse_args()
    if arguments.command == "shapes":
        for name, (model_type, sizes) in SHAPES.items():
            print(f"{name:18}{model_type:12}{sizes['num_hidden_layers']:4} layers")
    elif arguments.command == "make":
        print(make_checkpoint(arguments.shape, arguments.folder, layers=arguments.layers, zeros=arguments.zeros))
    else:
        print(measure(arguments))
    return 0


# --- checkpoints ------------------------------------------------------------------------------------------------------


def make_checkpoint(shape: str, folder: Path, *, layers: int | None = None, zeros: bool = False) -> Path:
    """Writes a checkpoint in the layout of the hub's cache; returns the folder to give to ``from_pretrained``."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    model_type, sizes = SHAPES[shape]
    changes = {} if layers is None else {"num_hidden_layers": layers}
    config = CONFIG_MAPPING[model_type](**{**sizes, **changes}, dtype="bfloat16", tie_word_embeddings=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # The names and sizes that the library saves: experts one by one, for instance.
    tensors = revert_weight_conversion(model, model.state_dict())
    blobs = folder / "blobs"
    snapshot = folder / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True, exist_ok=True)
    shards = list(_shards({name: tensors[name] for name in sorted(tensors)}))
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        draft = blobs / name
        _write_shard(draft, shard, zeros=zeros)
        # A digest of what a sparse file holds would take as long as writing it: the place and the layout stand for it.
        text = f"{shape} {layers} {number} {list(shard)}"
        digest = hashlib.sha256(text.encode()).hexdigest() if zeros else _sha256(draft)
        draft.replace(blobs / digest)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(Path("../../blobs") / digest)
        weight_map |= dict.fromkeys(shard, name)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.architectures = [type(model).__name__]
    config.save_pretrained(snapshot)
    _save_tokenizer(snapshot)
    return snapshot


def _shards(tensors: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    shard: dict[str, Any] = {}
    size = 0
    for name, tensor in tensors.items():
        count = tensor.numel() * tensor.element_size()
        if shard and size + count > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += count
    yield shard


def _write_shard(path: Path, tensors: Mapping[str, Any], *, zeros: bool) -> None:
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(len(tensors))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if zeros:
            file.truncate(file.tell() + end)
            return
        for name, tensor in tensors.items():
            if tensor.dim() == 1:
                values = torch.full(tensor.shape, 0.0 if name.endswith("bias") else 1.0)
            else:
                values = torch.randn(tensor.shape, generator=generator) * 0.02
            file.write(values.to(torch.bfloat16).view(torch.uint8).numpy().data)


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *_WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


# --- measuring --------------------------------------------------------------------------------------------------------

_CHILD = """
import json, logging, sys, time
from qeff_framework import QEFFAutoModelForCausalLM
given = json.loads(sys.argv[1])
marks = {"estimate": 0.0}
class Estimates(logging.Handler):
    def emit(self, record):
        if " takes about " in record.getMessage():
            marks["estimate"] = max(marks["estimate"], record.args[1])
logging.getLogger("qeff_framework").addHandler(Estimates())
logging.getLogger("qeff_framework").setLevel(logging.INFO)
start = time.perf_counter()
model = QEFFAutoModelForCausalLM.from_pretrained(given["checkpoint"])
model.export()
marks["export"] = time.perf_counter() - start
if given["backend"]:
    start = time.perf_counter()
    model.compile(given["backend"], dry_run=given["dry_run"], **given["options"])
    marks["compile"] = time.perf_counter() - start
if given["new_tokens"]:
    start = time.perf_counter()
    result = model.generate(prompts=["the a of"], generation_len=given["new_tokens"])
    marks["generate"] = time.perf_counter() - start
    marks["ids"] = [list(map(int, row)) for row in result.generated_ids]
print(json.dumps(marks))
"""


def measure(arguments: argparse.Namespace) -> str:
    """One row of a table: what it took."""
    checkpoint = arguments.checkpoint.absolute()
    with (
        tempfile.TemporaryDirectory(dir=checkpoint.parent, prefix="qeff-home-") as home,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
    ):
        options = dict(option.split("=", 1) for option in arguments.options)
        given = {
            "checkpoint": str(checkpoint),
            "backend": arguments.backend,
            "dry_run": arguments.dry_run,
            "options": {name: _value(text) for name, text in options.items()},
            "new_tokens": arguments.new_tokens,
        }
        environment = {**os.environ, "QEFF_HOME": home, "HF_HUB_OFFLINE": "1"}
        start = time.perf_counter()
        process = subprocess.Popen(
            [arguments.python, "-c", _CHILD, json.dumps(given)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        peak = own = 0
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            own = max(own, _anonymous(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        told = process.stdout.read()
        if process.returncode:
            errors.seek(0)
            reason = next((line for line in reversed(errors.read().splitlines()) if line.strip()), "it said nothing")
            return f"| {checkpoint} | failed with status {process.returncode}: {reason} |"
        marks = json.loads(told.splitlines()[-1])
        times = os.times()
        added = _added(Path(home), checkpoint)
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in marks.items() if name not in ("ids", "estimate"))
        told_before = marks["estimate"] * 1000
        told_ids = f" ids {marks['ids']} |" if "ids" in marks else ""
        shutil.rmtree(home, ignore_errors=True)
        return (
            f"| {seconds:.1f} s ({parts}) | {times.children_user + times.children_system:.1f} CPU s | "
            f"{peak / 1e6:.0f} MB, without mapped files {own / 1e6:.0f} MB (told before: {told_before:.0f}) | "
            f"{added / 1e6:.1f} MB added |{told_ids}"
        )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _resident(pid: int) -> int:
    """Bytes of resident memory of a process and its children; what they share counts for each."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            # The peak of the process itself as the kernel knows it: no sample misses it.
            if line.startswith("VmHWM:"):
                total = int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_resident(int(child)) for child in (task / "children").read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        pass
    return total


def _anonymous(pid: int) -> int:
    """Bytes of resident memory of a process that no file stands behind, at this moment; its children do not count."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _added(home: Path, checkpoint: Path) -> int:
    """Bytes on disk below `home` that are not the checkpoint's own files under a second name."""
    given = checkpoint.iterdir() if checkpoint.is_dir() else [checkpoint]
    known = {(found.st_dev, found.st_ino) for path in given if (found := path.stat())}
    sizes = {}
    for path in home.rglob("*"):
        found = path.lstat()
        if path.is_file() and (found.st_dev, found.st_ino) not in known:
            sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


if __name__ == "__main__":
    sys.exit(main())
