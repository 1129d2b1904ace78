"""Sentence-transformers folders: what their modules compute, against the library's own, and what is refused by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qeff_framework.errors import CheckpointError, UnsupportedModelError
from qeff_framework.sources.embedding_head import build_head
from qeff_framework.sources.sentence_transformers import SentenceTransformersFolder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer import modules as library

TRANSFORMER = {"type": "sentence_transformers.base.modules.transformer.Transformer", "path": ""}
#: Padding on the right, on the left, none, and a single token.
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
HIDDEN = torch.randn((4, 5, 6), generator=torch.Generator().manual_seed(0)) * 3


def pooling(*modes: str) -> Any:
    return library.Pooling(6, pooling_mode=modes)


PIPELINES: dict[str, Callable[[], Sequence[Any]]] = {
    **{mode: lambda mode=mode: [pooling(mode)] for mode in library.Pooling.POOLING_MODES},
    "several modes in the order that is given": lambda: [pooling("weightedmean", "max", "cls")],
    "normalised": lambda: [pooling("mean"), Normalize()],
    "dense with its own activation": lambda: [pooling("mean"), Dense(6, 3)],
    "dense without bias and activation": lambda: [
        pooling("cls"),
        Dense(6, 3, bias=False, activation_function=torch.nn.Identity()),
    ],
    "dense over several modes, normalised": lambda: [
        pooling("mean", "max"),
        Dense(12, 4, activation_function=torch.nn.GELU()),
        Normalize(),
    ],
    "residual of the same size": lambda: [pooling("mean"), Dense(6, 6, use_residual=True)],
    "residual of another size": lambda: [pooling("mean"), Dense(6, 4, use_residual=True)],
    "layer norm and dropout": lambda: [pooling("mean"), library.Dropout(0.9), library.LayerNorm(6)],
    "dense and normalise on tokens": lambda: [
        Dense(6, 6, module_input_name="token_embeddings"),
        Normalize(module_input_name="token_embeddings"),
        pooling("lasttoken"),
    ],
    "values with names of their own": lambda: [
        pooling("mean"),
        Dense(6, 5, module_output_name="wide"),
        Dense(5, 2, module_input_name="wide", module_output_name="sentence_embedding"),
    ],
}


def saved(folder: Path, modules: Sequence[Any], *, safe: bool = True, legacy: bool = False, **model: Any) -> Path:
    """Writes the modules as the library does; `legacy` in the formats of before its sixth version."""
    entries = [dict(TRANSFORMER)]
    for number, module in enumerate(modules, 1):
        name = type(module).__name__
        path = folder / f"{number}_{name}"
        path.mkdir()
        module.save(str(path), safe_serialization=safe)
        place = "sentence_transformers.models" if legacy else type(module).__module__
        entries.append({"type": f"{place}.{name}", "path": path.name})
        if legacy and name == "Pooling":
            (path / "config.json").write_text(json.dumps(legacy_pooling(module)))
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(model))
    return folder


def legacy_pooling(module: Any) -> dict[str, Any]:
    names = {"cls": "cls_token", "lasttoken": "lasttoken"}
    modes = [module.pooling_mode] if isinstance(module.pooling_mode, str) else module.pooling_mode
    chosen = [names.get(mode, f"{mode.removesuffix('_tokens')}_tokens") for mode in modes]
    flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": 6, **{f"pooling_mode_{flag}": flag in chosen for flag in flags}}


def read(folder: Path, **arguments: Any) -> SentenceTransformersFolder:
    def fetch(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    found = SentenceTransformersFolder.find("checkpoint", fetch, **arguments)
    assert found is not None
    return found


def library_result(modules: Sequence[Any]) -> torch.Tensor:
    features = {"token_embeddings": HIDDEN.clone(), "attention_mask": MASK}
    with torch.no_grad():
        for module in modules:
            features = module.eval()(features)
    return features["sentence_embedding"]


def ours(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return build_head(read(folder).head())(HIDDEN, MASK)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("form", ["now", "legacy"])
def test_modules_compute_what_the_library_computes(name: str, form: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    modules = PIPELINES[name]()
    saved(tmp_path, modules, safe=form == "now", legacy=form == "legacy")

    if form == "legacy":
        # Flags have no order: the library joins the modes in its own.
        modules = (
            [library.Pooling.load(str(tmp_path), subfolder="1_Pooling"), *modules[1:]]
            if (type(modules[0]).__name__ == "Pooling")
            else modules
        )
    torch.testing.assert_close(ours(tmp_path), library_result(modules), rtol=1e-5, atol=1e-6)


def test_embeddings_are_truncated_last(tmp_path: Path) -> None:
    modules = [pooling("mean"), Normalize()]
    saved(tmp_path, modules, truncate_dim=2)
    torch.testing.assert_close(ours(tmp_path), library_result(modules)[:, :2])


def test_zero_vectors_stay_zero_and_large_ones_do_not_overflow(tmp_path: Path) -> None:
    saved(tmp_path, [pooling("mean"), Normalize()])
    head = build_head(read(tmp_path).head())
    hidden = torch.stack([torch.zeros(1, 6), torch.full((1, 6), 3e30), torch.full((1, 6), 3e-30)])
    expected = torch.tensor([[0.0] * 6, [6**-0.5] * 6, [0.0] * 6])
    result = head(hidden, torch.ones(3, 1, dtype=torch.int64))
    torch.testing.assert_close(result[:2], expected[:2])
    assert head(torch.full((1, 1, 6), 200.0, dtype=torch.float16), torch.ones(1, 1)).isfinite().all()


def test_weights_and_settings_are_part_of_the_identity(tmp_path: Path) -> None:
    identities = []
    for number, make in enumerate(
        (lambda: Dense(6, 3), lambda: Dense(6, 3), lambda: Dense(6, 3, activation_function=None))
    ):
        torch.manual_seed(number % 2)
        folder = tmp_path / str(number)
        folder.mkdir()
        identities.append(read(saved(folder, [pooling("mean"), make()])).head().identity())
    assert len({json.dumps(identity) for identity in identities}) == 3
    moved = tmp_path / "moved"
    (tmp_path / "0").rename(moved)
    assert read(moved).head().identity() == identities[0]


# --- refusals -------------------------------------------------------------------------------------------------------------


def edited(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**content, **changes}))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat template": (
        "sentence_bert_config.json",
        {"modality_config": {"message": {}}},
        "chat template",
    ),
    "another output": (
        "sentence_bert_config.json",
        {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
        "pooler_output",
    ),
    "another task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
    "loading arguments": ("sentence_bert_config.json", {"config_args": {"num_hidden_layers": 1}}, "num_hidden_layers"),
    "another precision": ("sentence_bert_config.json", {"model_args": {"torch_dtype": "bfloat16"}}, "bfloat16"),
    "processing": ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 3}}}, "max_length"),
    "an unknown setting": ("sentence_bert_config.json", {"new_setting": 1}, "new_setting"),
    "another sort of model": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "SparseEncoder"),
    "an unknown mode": ("1_Pooling/config.json", {"pooling_mode": "median"}, "median"),
    "an unknown setting of pooling": ("1_Pooling/config.json", {"temperature": 2}, "temperature"),
    "a foreign activation": ("2_Dense/config.json", {"activation_function": "my.Swish"}, "my.Swish"),
    "a prompt outside of the pooling": (
        "1_Pooling/config.json",
        {"include_prompt": False},
        "include_prompt=false",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_graph_cannot_do_is_refused_by_name(case: str, tmp_path: Path) -> None:
    file, changes, reason = REFUSED[case]
    saved(tmp_path, [pooling("mean"), Dense(6, 3)], prompts={"query": "q: "}, default_prompt_name="query")
    read(tmp_path).head()
    edited(tmp_path, file, **changes)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        read(tmp_path).head()
    assert "pass pooling=" in str(caught.value)


@pytest.mark.parametrize(
    "module",
    ["sentence_transformers.models.LSTM", "sentence_transformers.sparse_encoder.models.Pooling", "mine.Pooling"],
)
def test_a_module_without_a_form_is_refused_by_its_name(module: str, tmp_path: Path) -> None:
    saved(tmp_path, [pooling("mean")])
    (tmp_path / "modules.json").write_text(json.dumps([TRANSFORMER, {"type": module, "path": "1_Pooling"}]))
    with pytest.raises(UnsupportedModelError, match=module):
        read(tmp_path).head()


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (lambda folder: (folder / "modules.json").write_text("{}"), "modules.json is not a list"),
    "no JSON": (lambda folder: (folder / "modules.json").write_text("["), "modules.json cannot be read"),
    "a path above the folder": (
        lambda folder: (folder / "modules.json").write_text(json.dumps([{"type": "a", "path": "../b"}])),
        "modules.json is not a list",
    ),
    "no modules.json": (lambda folder: (folder / "modules.json").unlink(), "1_Pooling/config.json and no modules.json"),
    "no config of the pooling": (
        lambda folder: (folder / "1_Pooling/config.json").unlink(),
        "1_Pooling/config.json, which says how",
    ),
    "no weights": (lambda folder: (folder / "2_Dense/model.safetensors").unlink(), "2_Dense/model.safetensors"),
    "cut weights": (
        lambda folder: (folder / "2_Dense/model.safetensors").write_bytes(b"abc"),
        "cannot be read as weights",
    ),
    "weights of another size": (lambda folder: edited(folder, "2_Dense/config.json", in_features=7), "size mismatch"),
    "prompts without names": (
        lambda folder: edited(folder, "config_sentence_transformers.json", prompts=["query: "]),
        "prompts in .* are no texts by name",
    ),
    **{
        f"texts of {length!r} tokens": (
            lambda folder, length=length: (folder / "sentence_bert_config.json").write_text(
                json.dumps({"max_seq_length": length})
            ),
            f"max_seq_length of its Transformer module is {length!r}, not a number of tokens",
        )
        for length in (0, -1, "16", 1.5)
    },
    "a default prompt that is not there": (
        lambda folder: edited(folder, "config_sentence_transformers.json", default_prompt_name="passage"),
        "default_prompt_name",
    ),
}


def used(path: Path) -> None:
    folder = read(path)
    folder.texts({})
    build_head(folder.head())


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_named(case: str, tmp_path: Path) -> None:
    damage, reason = DAMAGED[case]
    used(saved(tmp_path, [pooling("mean"), Dense(6, 3)]))
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        used(tmp_path)


def test_any_other_folder_says_nothing(tmp_path: Path) -> None:
    assert SentenceTransformersFolder.find("checkpoint", lambda name: None) is None
    assert not list(tmp_path.iterdir())


def test_the_transformer_of_an_older_folder_lies_below_its_modules(tmp_path: Path) -> None:
    saved(tmp_path, [pooling("cls")])
    (tmp_path / "modules.json").write_text(
        (tmp_path / "modules.json").read_text().replace('"path": ""', '"path": "0_Transformer"')
    )
    edited(tmp_path, "0_Transformer/sentence_bert_config.json", max_seq_length=7)
    folder = read(tmp_path, subfolder="0_Transformer")
    assert folder.head().single_pooling == "cls"
    # Other weights that lie beside it are not those it speaks of.
    with pytest.raises(UnsupportedModelError, match="lies in the folder 0_Transformer.*subfolder='0_Transformer'"):
        read(tmp_path).head()
    assert folder.texts({}).max_tokens == 7
