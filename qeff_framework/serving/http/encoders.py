"""``/v1/embeddings``, ``/v1/classify`` and ``/v1/rerank``: programs that read each text in one pass."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from qeff_framework.errors import InputError
from qeff_framework.runtime import CompiledClassifier, CompiledEncoder, CompiledRunner
from qeff_framework.serving.http.errors import ApiError
from qeff_framework.serving.http.metrics import Metrics
from qeff_framework.serving.http.protocol import ClassifyRequest, EmbeddingRequest, RerankRequest
from qeff_framework.serving.http.worker import SessionWorker
from qeff_framework.single_pass import class_scores, ranking_scores, token_types, tokenise_texts
from qeff_framework.tokenization import encode_prompt
from qeff_framework.tokenization.tokenizer import AligningTokenizer, TextTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EncoderService(SessionWorker):
    """An encoder or classifier and its tokenizer."""

    def __init__(self, runner: CompiledEncoder | CompiledClassifier, *, max_queue: int, timeout: float) -> None:
        if runner.tokenizer is None:
            raise InputError(runner.no_tokenizer)
        super().__init__(runner, max_queue=max_queue, timeout=timeout)
        self.runner = runner
        self.tokenizer: TextTokenizer = runner.tokenizer

    def outputs(self, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> NDArray[Any]:
        """The program's output for tokens; `types` tells which of two texts each belongs to, by default all to one."""
        inputs: dict[str, Any] = {"input_ids": list(rows)}
        types = token_types(self.tokenizer, rows) if types is None else types
        if types is not None and any(spec.name == "token_type_ids" for spec in self.runner.compiled.inputs):
            inputs["token_type_ids"] = list(types)
        if isinstance(self.runner, CompiledEncoder):
            return self.runner.generate(inputs, prepared=True)
        return self.runner.generate(inputs)


class EncoderPages:
    """The pages of encoders and classifiers."""

    def __init__(self, service: EncoderService, metrics: Metrics, model: str) -> None:
        self._service = service
        self._metrics = metrics
        self._model = model
        self.router = APIRouter()
        embeds = isinstance(service.runner, CompiledEncoder)
        pages: dict[str, Any] = {"/v1/rerank": self.rerank}
        pages |= {"/v1/embeddings": self.embed} if embeds else {"/v1/classify": self.classify}
        for path, page in pages.items():
            self.router.add_api_route(path, page, methods=["POST"], response_model=None)

    async def embed(self, asked: EmbeddingRequest) -> dict[str, Any]:
        """Embeds texts, prepared as the checkpoint says, or token ids."""
        given: Any = asked.input
        if isinstance(given, str) or isinstance(given[0], int):
            given = [given]
        rows, vectors = await self._service.run(lambda: self._embedded(given))
        if vectors.ndim != 2:
            raise ApiError(400, "the program returns a vector for each token; compile it with pooling for embeddings")
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, asked.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": data, "model": asked.model, "usage": self._usage(rows)}

    async def classify(self, asked: ClassifyRequest) -> dict[str, Any]:
        """Scores each class of each text."""
        runner = self._service.runner
        if not isinstance(runner, CompiledClassifier):
            raise ApiError(404, "the program classifies no texts")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input

        def run() -> tuple[list[list[int]], NDArray[Any]]:
            rows = [encode_prompt(self._service.tokenizer, text) for text in texts]
            return rows, self._service.outputs(rows)

        rows, logits = await self._service.run(run)
        scores, labels = class_scores(logits, runner.problem_type), runner.labels
        data = [
            {
                "index": index,
                "label": labels[int(row.argmax())],
                "scores": dict(zip(labels, map(float, row), strict=True)),
            }
            for index, row in enumerate(scores)
        ]
        return {"object": "list", "data": data, "model": asked.model, "usage": self._usage(rows)}

    async def rerank(self, asked: RerankRequest) -> dict[str, Any]:
        """Sorts documents by how well they fit a query.

        A classifier with one label reads query and document together; an encoder compares their embeddings (cosine).
        """
        pairs = isinstance(self._service.runner, CompiledClassifier)
        rows, scores = await (self._pair_scores(asked) if pairs else self._similarities(asked))
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
        if asked.return_documents:
            for result in results:
                result["document"] = {"text": asked.documents[result["index"]]}
        return {"model": asked.model, "results": results, "usage": self._usage(rows)}

    async def _pair_scores(self, asked: RerankRequest) -> tuple[list[list[int]], list[float]]:
        runner, tokenizer = self._service.runner, self._service.tokenizer
        if not isinstance(runner, CompiledClassifier) or len(runner.labels) != 1:
            raise ApiError(400, "only a classifier with one label, or an encoder, can rank documents")
        if not isinstance(tokenizer, AligningTokenizer):
            raise ApiError(400, "the tokenizer cannot read pairs of texts")

        def run() -> tuple[list[list[int]], NDArray[Any]]:
            encodings = [tokenizer.encodings(asked.query, document)[0] for document in asked.documents]
            rows = [list(encoding.ids) for encoding in encodings]
            return rows, self._service.outputs(rows, [list(encoding.type_ids) for encoding in encodings])

        rows, logits = await self._service.run(run)
        return rows, ranking_scores(logits, runner.problem_type, runner.score_activation).tolist()

    async def _similarities(self, asked: RerankRequest) -> tuple[list[list[int]], list[float]]:
        import numpy as np

        preparation = self._service.runner.compiled.metadata.get("texts") or {}

        def run() -> tuple[list[list[int]], NDArray[Any]]:
            # As sentence-transformers' encode_query and encode_document.
            query = self._prepared([asked.query], preparation, ("query",))
            rows = [*query, *self._prepared(asked.documents, preparation, ("document", "passage", "corpus"))]
            return rows, self._service.outputs(rows)

        rows, vectors = await self._service.run(run)
        if vectors.ndim != 2:
            raise ApiError(
                400, "the program returns a vector for each token; compile it with pooling to rank documents"
            )
        query, documents = vectors[0], vectors[1:]
        match preparation.get("similarity", "cosine"):
            case "dot":
                scores = documents @ query
            case "euclidean":
                scores = -np.linalg.norm(documents - query, axis=1)
            case "manhattan":
                scores = -np.abs(documents - query).sum(axis=1)
            case _:
                lengths = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
                scores = (documents @ query) / (lengths[1:] * lengths[0])
        return rows, [float(score) for score in scores]

    def _prepared(self, texts: Sequence[str], preparation: Mapping[str, Any], names: Sequence[str]) -> list[list[int]]:
        """Tokens of texts with the first of the checkpoint's prompts that are named, else with its default prompt."""
        # An empty prompt of such a name replaces the default one.
        name = next((name for name in names if name in preparation.get("prompts", {})), None)
        return list(tokenise_texts(texts, self._service.tokenizer, preparation, prompt_name=name)["input_ids"])

    def _embedded(self, given: Sequence[Any]) -> tuple[list[list[int]], NDArray[Any]]:
        """Tokens and outputs of texts, prepared as the checkpoint says, or of token ids, which are taken as they are."""
        rows = list(given)
        if isinstance(given[0], str):
            preparation = self._service.runner.compiled.metadata.get("texts") or {}
            rows = list(tokenise_texts(given, self._service.tokenizer, preparation)["input_ids"])
        return rows, self._service.outputs(rows)

    def _usage(self, rows: Sequence[Sequence[int]]) -> dict[str, int]:
        count = sum(map(len, rows))
        self._metrics.prompt_tokens.inc(count)
        return {"prompt_tokens": count, "total_tokens": count}


def _encoded(vector: NDArray[Any], form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    values: list[float] = vector.tolist()
    return values


def is_encoder(runner: CompiledRunner) -> bool:
    """Whether there are pages for what the program computes."""
    from qeff_framework.runtime import CompiledTokenClassifier

    return isinstance(runner, CompiledEncoder | CompiledClassifier) and not isinstance(runner, CompiledTokenClassifier)
