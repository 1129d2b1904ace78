"""What a model needs to know about its origin."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qeff_framework.contracts import PackedMatrix
from qeff_framework.sources.sentence_transformers import SentenceTransformersFolder

if TYPE_CHECKING:
    import torch


class ModelSource(Protocol):
    """What `QEFFBaseModel` needs to know about the origin of its module."""

    #: For people: names artifact directories.
    name: str

    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the weights and the structure, as JSON. Never a path."""

    def config(self) -> Mapping[str, Any]:
        """The Hugging Face config as a dictionary."""

    @property
    def trusted(self) -> bool:
        """Whether code that came with the model may run."""

    def load(self, auto_class: str) -> torch.nn.Module:
        """Returns the module in eval mode, float32, on the CPU. `auto_class`: the Transformers class that loads it."""

    def load_for_export(self, auto_class: str, directory: Path) -> torch.nn.Module:
        """As `load`. Where the files allow it, weights are not read: `directory` gets the files that they lie in."""

    def keep_weights(self, used: Collection[str]) -> Mapping[str, str]:
        """Called when the export is written: removes the files of weights in its directory that are not named in `used`.

        Returns digests of the other ones by name, as far as they are known.
        """

    def unloaded(self) -> frozenset[str]:
        """Parameters and buffers of the loaded module that its checkpoint did not hold. A graph must not read them."""

    def packed_matrices(self, module: torch.nn.Module) -> Mapping[str, PackedMatrix]:
        """Parameters of `module` that are to stay in the blocks of the checkpoint, by name."""

    def notes(self) -> tuple[str, ...]:
        """What loading found that is worth a warning."""

    def release(self) -> None:
        """Drops a module that can be loaded again."""

    def save_companions(self, directory: Path) -> None:
        """Writes ``config.json``, ``generation_config.json`` and ``tokenizer/``, as far as there are such."""

    def tokenizer_problem(self) -> str | None:
        """Why an existing tokenizer cannot be loaded here; `None` if it can, or there is none."""

    def require_tokenizer(self) -> None:
        """Raises `QEFFError` with the reason where there is no tokenizer to read texts with."""

    def tokenizer(self) -> Any:
        """The tokenizer of Transformers. `require_tokenizer` must have passed."""

    def has_chat_template(self) -> bool:
        """Whether its tokenizer renders conversations. `require_tokenizer` must have passed."""

    def sentence_transformers(self) -> SentenceTransformersFolder | None:
        """What a sentence-transformers checkpoint says about embeddings; `None` for any other source."""

    def stated_pooling(self) -> str | None:
        """The pooling that a checkpoint of another kind says its embeddings are made by; `None` where it says nothing.

        Raises:
            UnsupportedModelError: it is none that is read here.
        """
