"""Fixtures for the tests of the stand-in SDKs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sdk_standins import qairt
from tests.sdk_standins.harness import Compiler, Runtime
from tests.sdk_standins.qaic import StandinSdk, install_standin
from tests.sdk_standins.qairt_harness import Tools


@pytest.fixture(scope="session")
def shared_sdks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], StandinSdk]:
    """One tree per profile, for tests that only compile."""
    trees: dict[str, StandinSdk] = {}

    def get(profile: str) -> StandinSdk:
        if profile not in trees:
            trees[profile] = install_standin(tmp_path_factory.mktemp("sdk") / profile, profile=profile)  # type: ignore[arg-type]
        return trees[profile]

    return get


@pytest.fixture
def compiler_for(shared_sdks: Callable[[str], StandinSdk], tmp_path: Path) -> Callable[[str], Compiler]:
    return lambda profile: Compiler(shared_sdks(profile), tmp_path)


@pytest.fixture
def compiler(compiler_for: Callable[[str], Compiler]) -> Compiler:
    """The compiler of SDK 1.21."""
    return compiler_for("1.21")


@pytest.fixture
def newer_compiler(compiler_for: Callable[[str], Compiler]) -> Compiler:
    """The compiler of SDK 1.22."""
    return compiler_for("1.22")


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Callable[..., StandinSdk]]:
    """Installs trees of the test's own; at the end no NSP of theirs may be in use."""
    trees: list[StandinSdk] = []

    def create(**keywords: Any) -> StandinSdk:
        trees.append(install_standin(tmp_path / f"tree{len(trees)}", **keywords))
        return trees[-1]

    yield create
    for tree in trees:
        tree.assert_released()


@pytest.fixture
def sdk(shared_sdks: Callable[[str], StandinSdk]) -> Iterator[StandinSdk]:
    """SDK 1.21 with one device, shared by all tests that change no file of it; at the end none of its NSPs may be in use."""
    shared = shared_sdks("1.21")
    yield shared
    shared.assert_released()


@pytest.fixture
def runtime_of() -> Iterator[Callable[[StandinSdk], Runtime]]:
    with contextlib.ExitStack() as stack:
        yield lambda sdk: Runtime(sdk, stack.enter_context(sdk.runtime()), stack)


@pytest.fixture
def runtime(sdk: StandinSdk, runtime_of: Callable[[StandinSdk], Runtime]) -> Runtime:
    """The runtime of SDK 1.21 with one device."""
    return runtime_of(sdk)


@pytest.fixture(scope="session")
def shared_qairt(tmp_path_factory: pytest.TempPathFactory) -> qairt.StandinQairt:
    """One tree for all tests that change no file of it."""
    return qairt.install_standin(tmp_path_factory.mktemp("qairt") / "sdk")


@pytest.fixture
def qairt_tools(shared_qairt: qairt.StandinQairt, tmp_path: Path) -> Tools:
    return Tools(shared_qairt, tmp_path)
