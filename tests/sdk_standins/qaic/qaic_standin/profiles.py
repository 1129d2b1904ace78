"""The SDK generations that the stand-in can act as, and what differs between them."""

from __future__ import annotations

from dataclasses import dataclass

ORDER = ("legacy", "1.21", "1.22")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One SDK generation.

    `hw_versions` maps each accepted value of `-aic-hw-version` to the device generation it means.
    """

    name: str
    base_version: str
    build_id: str
    compilers: tuple[str, ...]
    hw_versions: dict[str, str]
    default_hw_version: str
    needs_compile_only: bool
    reads_named_specializations: bool
    program_properties: tuple[str, ...]
    has_newer_runtime_calls: bool

    @property
    def version(self) -> str:
        """Full version, for example `1.21.6.80`."""
        return f"{self.base_version}.{self.build_id}"

    def is_at_least(self, other: str) -> bool:
        """Whether this profile is `other` or a later one."""
        return ORDER.index(self.name) >= ORDER.index(other)


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="legacy",
            base_version="1.18.3",
            build_id="9",
            compilers=("qaic-exec",),
            hw_versions={"2.0": "ai100"},
            default_hw_version="2.0",
            needs_compile_only=True,
            reads_named_specializations=False,
            program_properties=("SubmitRetryTimeoutMs", "devMapping"),
            has_newer_runtime_calls=False,
        ),
        Profile(
            name="1.21",
            base_version="1.21.6",
            build_id="80",
            compilers=("qaic-compile", "qaic-exec"),
            hw_versions={"2.0": "ai100", "ai100": "ai100"},
            default_hw_version="2.0",
            needs_compile_only=False,
            reads_named_specializations=False,
            program_properties=("dataPathTimeoutMs", "SubmitRetryTimeoutMs", "devMapping"),
            has_newer_runtime_calls=False,
        ),
        Profile(
            name="1.22",
            base_version="1.22.0",
            build_id="42",
            compilers=("qaic-compile",),
            hw_versions={"ai100": "ai100", "ai200": "ai200"},
            default_hw_version="ai100",
            needs_compile_only=False,
            reads_named_specializations=True,
            program_properties=("dataPathTimeoutMs", "devMapping"),
            has_newer_runtime_calls=True,
        ),
    )
}
