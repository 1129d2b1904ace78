"""Changes to a tokenizer that was saved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qeff_framework.errors import UnsupportedModelError

#: Letters with and without marks, in several scripts.
_PROBE = "AbÄÉÑØŽЖ"


def lower_casing(directory: Path) -> bool:
    """Makes the tokenizer in `directory` lower-case texts; says whether it had to be changed for that.

    Raises:
        UnsupportedModelError: there is no tokenizer in the format of the ``tokenizers`` library to change.
    """
    from tokenizers import Tokenizer, normalizers

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise UnsupportedModelError(
            "the checkpoint lower-cases its texts (do_lower_case), and it has no tokenizer that could be told to (tokenizer.json)"
        )
    # The library leaves `normalizer` without a type.
    tokenizer: Any = Tokenizer.from_file(str(file))
    normalizer = tokenizer.normalizer
    if normalizer is not None and normalizer.normalize_str(_PROBE) == normalizer.normalize_str(_PROBE.lower()):
        return False
    first = normalizers.Lowercase()
    tokenizer.normalizer = first if normalizer is None else normalizers.Sequence([first, normalizer])
    tokenizer.save(str(file))
    return True
