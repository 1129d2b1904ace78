"""What can be compiled for.

The provider accepts any number as an SoC id, for quantised graphs even of chips without an NPU, and takes an unknown name for
"not given". So a target is one of this list. Ids are those of Qualcomm's public table of supported devices; each entry compiled
and ran float16 graphs in the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Cloud AI 100, the target that is not an SoC with an NPU.
AIC = "aic"
DEFAULT = "SM8650"


@dataclass(frozen=True, kw_only=True)
class Soc:
    """A chip with a Hexagon NPU that computes in float16."""

    name: str
    #: Qualcomm's id of the chip, the option ``soc_model`` of the compiler.
    id: int
    #: Version of the Hexagon tensor processor.
    htp: str
    product: str


SOCS = (
    Soc(name="SM8450", id=36, htp="v69", product="Snapdragon 8 Gen 1"),
    Soc(name="SM8550", id=43, htp="v73", product="Snapdragon 8 Gen 2"),
    Soc(name="SC8380XP", id=60, htp="v73", product="Snapdragon X Elite"),
    Soc(name="SM8650", id=57, htp="v75", product="Snapdragon 8 Gen 3"),
    Soc(name="SM8750", id=69, htp="v79", product="Snapdragon 8 Elite"),
    Soc(name="SM8850", id=87, htp="v81", product="Snapdragon 8 Elite Gen 5"),
    Soc(name="SC8480XP", id=88, htp="v81", product="Snapdragon X2 Elite"),
    Soc(name="SM8975", id=103, htp="v85", product="SM8975"),
)


def find_soc(target: str | int) -> Soc | None:
    """The chip of this name (in any case) or id; `None` when it is not in the list."""
    wanted = str(target).strip().upper()
    return next((soc for soc in SOCS if wanted in (soc.name, str(soc.id))), None)


def is_aic(target: str | int) -> bool:
    """The target is Cloud AI 100."""
    return str(target).strip().lower() == AIC


def describe_targets() -> str:
    """The allowed targets, for messages."""
    return ", ".join(f"{soc.name} ({soc.id})" for soc in SOCS) + f", {AIC}"
