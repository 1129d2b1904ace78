"""Token ids as they come - lists, arrays, tensors, or what a tokenizer returns - brought to one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qeff_framework.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: What tokenizers return beside ids and mask and no program needs.
_UNUSED = frozenset(
    {
        "special_tokens_mask",
        "offset_mapping",
        "length",
        "overflow_to_sample_mapping",
        "overflowing_tokens",
        "num_truncated_tokens",
    }
)


def normalize_inputs(inputs: object, pad_token_id: int | None = None) -> list[list[int]]:
    """Token ids of each row without padding.

    `inputs` is what a tokenizer returns (``input_ids`` with or without ``attention_mask``; lists, NumPy arrays or tensors; one
    row or several), or the ids alone. With a mask, the places that it marks with 0 are dropped: padding on either side. Without
    one, `pad_token_id` on either side is dropped; `None`: every id is text.

    Raises `InputError` for shapes that do not fit each other, ids that are not whole numbers, inputs that no program takes, and
    padding between the tokens of a row.
    """
    given = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
    ids, mask = _checked(given)
    if mask is None:
        hidden = [[token == pad_token_id for token in row] for row in ids]
        between = (
            "holds the padding id {token} between other tokens (at place {place}), and no attention_mask says whether it is "
            "text; pass one, with 1 for every token of the text"
        )
    else:
        hidden = [[not kept for kept in row] for row in mask]
        between = (
            "is hidden by attention_mask at place {place} (token {token}), between other tokens; programs take padding on either "
            "side only: leave what is hidden out of input_ids"
        )
    return [_trimmed(number, *pair, between) for number, pair in enumerate(zip(ids, hidden, strict=True))]


def warn_about_padding(rows: Sequence[Sequence[int]], token: int | None, warn: Callable[[str], None]) -> None:
    """Passes a message to `warn` when `token` stands at an end of a row of ids that came without a mask."""
    for number, row in enumerate(rows):
        if row and token in (row[0], row[-1]):
            warn(
                f"row {number} of the inputs has the padding id {token} at an end and there is no attention_mask: it is read as "
                "text, as Transformers reads it; pass the tokenizer's attention_mask"
            )
            return


def check_mask(mask: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> None:
    """Raises `InputError` unless `mask` has the lengths of `ids` and nothing but 0 and 1."""
    check_same_shape("attention_mask", mask, ids)
    for number, row in enumerate(mask):
        odd = [value for value in row if value not in (0, 1)]
        if odd:
            raise InputError(
                f"attention_mask, row {number}, holds {odd[0]}; it must hold 1 for tokens and 0 for padding"
            )


def _checked(inputs: Mapping[str, Any]) -> tuple[list[list[int]], list[list[int]] | None]:
    """Ids and mask of tokenizer output for a language model."""
    present = {str(name): value for name, value in inputs.items() if value is not None}
    if "input_ids" not in present:
        raise InputError(f"the inputs hold {', '.join(present) or 'nothing'}, but no input_ids")
    unknown = sorted(set(present) - {"input_ids", "attention_mask", "token_type_ids"} - _UNUSED)
    if unknown:
        raise InputError(
            f"the inputs hold {', '.join(unknown)}, which text generation does not take; give input_ids and attention_mask"
        )
    ids = integer_rows(present["input_ids"], "input_ids")
    if any(any(row) for row in integer_rows(present.get("token_type_ids", []), "token_type_ids")):
        raise InputError(
            "token_type_ids tell several texts apart, which the program does not; give one text for each prompt"
        )
    if "attention_mask" not in present:
        return ids, None
    mask = integer_rows(present["attention_mask"], "attention_mask")
    check_mask(mask, ids)
    return ids, mask


def _trimmed(number: int, row: Sequence[int], hidden: Sequence[bool], between: str) -> list[int]:
    """The row without what is hidden at its ends. Raises `InputError`, `between`, for a hidden token elsewhere."""
    shown = [place for place, hides in enumerate(hidden) if not hides]
    if row and not shown:
        raise InputError(
            f"row {number} of the inputs is padding only; give it some text, or an attention_mask with 1 for every token of text"
        )
    if not shown:
        return []
    first, last = shown[0], shown[-1] + 1
    if len(shown) != last - first:
        place = next(place for place in range(first, last) if hidden[place])
        raise InputError(f"row {number} of the inputs {between.format(place=place, token=row[place])}")
    return list(row[first:last])


def integer_rows(value: object, name: str) -> list[list[int]]:
    """A tensor, an array or lists ``[N, S]``, also of unequal lengths; one row may stand alone as ``[S]``."""
    content = _as_lists(value)
    if not isinstance(content, list):
        raise InputError(f"{name} must be rows of whole numbers, got {type(value).__name__}")
    rows = content if any(isinstance(row, list) for row in content) else [content] if content else []
    for index, row in enumerate(rows):
        # An attention mask may hold booleans; among ids, they are a mask in the wrong place.
        odd = [row] if not isinstance(row, list) else [item for item in row if not _is_whole(item, name)]
        if odd:
            raise InputError(f"{name}, row {index}, must be a list of whole numbers, and holds {odd[0]!r:.60}")
    return [[int(item) for item in row] for row in rows]


def as_text_list(value: Any) -> Any:
    """An array or a column of texts as a list; anything else as it is."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return value.tolist() if kind in {"U", "O", "T"} and hasattr(value, "tolist") else value


def _is_whole(item: object, name: str) -> bool:
    if isinstance(item, float):  # a mask of ``torch.ones``, which Transformers takes as well
        return name == "attention_mask" and item.is_integer()
    return isinstance(item, int) and not (isinstance(item, bool) and name == "input_ids")


def check_same_shape(name: str, rows: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> None:
    """Raises `InputError` unless `rows` has the lengths of `ids`."""
    lengths, wanted = [len(row) for row in rows], [len(row) for row in ids]
    if lengths != wanted:
        raise InputError(f"{name} has rows of {lengths} values, input_ids has rows of {wanted}; they must be alike")


def right_padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> NDArray[np.int64]:
    """The rows as one array ``[N, width]``."""
    array = np.full((len(rows), width), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


def _as_lists(value: Any) -> object:
    """Tensors and arrays have `tolist`; so do the items of a list of tensors."""
    if hasattr(value, "tolist"):
        return _as_lists(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_as_lists(item) for item in value]
    return value
