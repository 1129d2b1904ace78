"""The requests of OpenAI's interface. What the server cannot do is refused by name, never passed over."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)


def _one_of(forms: str) -> WrapValidator:
    """Tells the forms of a field that takes several in one sentence: pydantic tells what is wrong with each."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"must be {forms}") from None

    return WrapValidator(check)


#: Strict: true and false are no ids.
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]], Field(min_length=1)]
Texts = Annotated[
    str | Annotated[list[str], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)],
    _one_of("a text, a list of texts, a list of token ids or a list of such lists, and no list may be empty"),
]
Stops = Annotated[
    str | Annotated[list[str], Field(max_length=16)] | None, _one_of("a text or a list of 16 texts at most")
]


class ApiRequest(BaseModel):
    """What all requests share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: str
    #: Names the end user; not used.
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _texts_are_unicode(cls, data: Any) -> Any:
        if not _is_unicode(data):
            raise ValueError("a text holds half of a surrogate pair, which is no character")
        return data

    @model_validator(mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, data: Any) -> Any:
        """Pydantic takes true as 1 and 0 as false: ``"max_tokens": true`` would be an answer of one token.

        ``"logprobs": 0`` asks for log-probabilities in a completion, and would ask for none in a chat.
        """
        for name, field in cls.model_fields.items():
            value = data.get(name) if isinstance(data, dict) else None
            if isinstance(value, bool) and _is_number(field.annotation):
                raise ValueError(f"{name} must be a number, and is {str(value).lower()}")
            if isinstance(value, (int, float)) and not isinstance(value, bool) and _is_switch(field.annotation):
                raise ValueError(f"{name} must be true or false, and is {value}")
        return data


def _is_number(annotation: Any) -> bool:
    """Whether a field takes numbers, and neither true nor false."""
    kinds = _kinds(annotation)
    return bool(kinds & {int, float}) and bool not in kinds


def _is_switch(annotation: Any) -> bool:
    """Whether a field takes true and false, and no numbers."""
    kinds = _kinds(annotation)
    return bool in kinds and not kinds & {int, float}


def _kinds(annotation: Any) -> set[Any]:
    kinds = {annotation, *get_args(annotation)}
    return kinds | {inner for kind in kinds for inner in get_args(kind)}


def _is_unicode(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(_is_unicode(key) and _is_unicode(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(_is_unicode, value))


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(BaseModel):
    """The schema of a response format. An answer always follows it, so that `strict` changes nothing."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = Field(default_factory=dict)
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The form of the answer: any text, a JSON object, or JSON by a schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("response_format: json_schema belongs to the type 'json_schema', and to it alone")
        return self

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that the answer follows; `None` for any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class GenerationRequest(ApiRequest):
    """What completions and chat completions share. The names below `seed` are extensions (`extra_body` of the client)."""

    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stops = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    metadata: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None

    #: A regular expression that the whole answer matches.
    regex: str | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    #: A smaller number comes first.
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    #: Seconds after which the answer ends where it is.
    timeout: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, content: Any) -> Any:
        """Clients send null for what their users have not set, also where OpenAI's default is none."""
        if not isinstance(content, dict):
            return content
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in content.items() if value is not None or name not in optional}

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream=true")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            raise ValueError("include_obfuscation is not supported: pieces have the lengths of their texts")
        return self

    def settings(self) -> dict[str, Any]:
        """Settings of the generation, by the names of `GenerationSettings`.

        Without `temperature`, `top_p`, `top_k` or `min_p` the most likely token is taken, as in ``qeff generate``.
        """
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        settings: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
        settings = {} if self.temperature == 0 else {**settings, "do_sample": True} if settings else {}
        if settings and self.seed is not None:
            # OpenAI's seeds may be negative.
            settings["seed"] = self.seed % 2**63
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        if stops:
            settings["stop_strings"] = stops
        if self.logit_bias:
            settings["sequence_bias"] = [[[int(token)], bias] for token, bias in self.logit_bias.items()]
        further = {
            "repetition_penalty": self.repetition_penalty,
            "min_new_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "json_schema": None if self.response_format is None else self.response_format.schema_of_answer,
            "regex": self.regex,
        }
        return {**settings, **{name: value for name, value in further.items() if value is not None}}

    @model_validator(mode="after")
    def _biases_are_of_tokens(self) -> Self:
        for token in self.logit_bias or ():
            if not token.isdecimal() or not token.isascii() or len(token) > 9:
                raise ValueError(f"logit_bias: {token!r} is no token id")
        return self


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``."""

    prompt: Texts
    #: OpenAI's default.
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _is_offered(self) -> Self:
        if self.echo or self.suffix:
            raise ValueError("echo and suffix are not supported")
        if self.best_of not in (None, self.n):
            raise ValueError("best_of is not supported")
        return self

    @property
    def prompts(self) -> list[Any]:
        """One text, or one list of token ids, for each prompt."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class ChatRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    service_tier: str | None = None
    #: Further variables of the chat template (`extra_body`).
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _is_offered(self) -> Self:
        if self.tool_choice not in (None, "auto", "none"):
            raise ValueError("tool_choice can be 'auto' or 'none': the program cannot be made to call a tool")
        if self.tools and self.parallel_tool_calls is False:
            raise ValueError(
                "parallel_tool_calls=false is not supported: the program cannot be kept from several calls"
            )
        if self.store:
            raise ValueError("store=true is not supported: answers are not kept")
        if self.service_tier not in (None, "auto", "default"):
            raise ValueError("service_tier can be 'auto' or 'default': there is one tier")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if not all(isinstance(message.get("role"), str) for message in self.messages):
            raise ValueError("each message needs a role")
        return self


class EmbeddingRequest(ApiRequest):
    """``POST /v1/embeddings``."""

    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    @model_validator(mode="after")
    def _is_offered(self) -> Self:
        if self.dimensions is not None:
            raise ValueError("dimensions is not supported: embeddings have the size of the model")
        return self


class ClassifyRequest(ApiRequest):
    """``POST /v1/classify``."""

    input: str | Annotated[list[str], Field(min_length=1)]


class RerankRequest(ApiRequest):
    """``POST /v1/rerank``."""

    query: str
    documents: Annotated[list[str], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
