from __future__ import annotations

import logging

import pytest

from qeff_framework.artifacts import memory as module
from qeff_framework.artifacts.memory import Memory, announce_memory, memory
from qeff_framework.errors import ArtifactError


@pytest.fixture
def machine(tmp_path):
    """A machine of 1000 KiB with 200 KiB of swap; the result makes a control group with a limit."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(
        "MemTotal: 1000 kB\nMemAvailable: 600 kB\nSwapTotal: 200 kB\nSwapFree: 100 kB\nHugePages: 0\n"
    )

    def limited(entry, group, **files):
        (proc / "self" / "cgroup").write_text(f"0::/elsewhere\n{entry}\n")
        (groups / group).mkdir(parents=True)
        for name, content in files.items():
            (groups / group / name.replace("__", ".")).write_text(f"{content}\n")

    return limited, lambda: memory(proc, groups)


def test_a_machine_without_limits_has_what_is_available_and_its_swap(machine):
    _, found = machine
    assert found() == Memory(free=700 * 1024, total=1200 * 1024)


@pytest.mark.parametrize(
    ("entry", "group", "names"),
    [
        ("0::/a/b", "a", ("memory__max", "memory__current", "inactive_file", "active_file")),
        (
            "4:memory:/a/b",
            "memory/a/b",
            ("memory__limit_in_bytes", "memory__usage_in_bytes", "total_inactive_file", "total_active_file"),
        ),
        (
            "4:memory:/outside/of/the/container",
            "memory",
            ("memory__limit_in_bytes", "memory__usage_in_bytes", "total_inactive_file", "total_active_file"),
        ),
    ],
)
def test_the_limit_of_a_control_group_counts(machine, entry, group, names):
    limited, found = machine
    limit, used, *files = names
    stat = "\n".join(f"{name} 10000" for name in files)
    limited(entry, group, **{limit: 300_000, used: 220_000, "memory__stat": stat})
    assert found() == Memory(free=100_000, total=300_000)


def test_a_group_without_a_limit_changes_nothing(machine):
    limited, found = machine
    limited("0::/", "", memory__max="max", memory__current=5)
    assert found() == Memory(free=700 * 1024, total=1200 * 1024)


def test_another_system_does_not_tell(tmp_path):
    assert memory(tmp_path, tmp_path) is None


@pytest.mark.parametrize(("needed", "warned"), [(3e9, False), (5e9, True)])
def test_work_that_takes_more_than_is_free_is_warned_of(monkeypatch, caplog, needed, warned):
    monkeypatch.setattr(module, "memory", lambda: Memory(free=4 * 10**9, total=8 * 10**9))
    with caplog.at_level(logging.INFO, logger="qeff_framework"):
        announce_memory("compiling", needed, least=7e9, remedy="use precision='w4'")
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told[0] == ("INFO", f"compiling takes about {needed / 1e9:.1f} GB of memory")
    assert [level for level, _ in told[1:]] == ["WARNING"] * warned
    if warned:
        assert "5.0 GB of memory, and 4.0 GB are free" in told[1][1]
        assert "use precision='w4'" in told[1][1]


def test_work_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(module, "memory", lambda: Memory(free=4 * 10**9, total=8 * 10**9))
    with pytest.raises(ArtifactError, match=r"holds at least 9\.0 GB .* there are 8\.0 GB in all.* or use less"):
        announce_memory("compiling", 10e9, least=9e9, remedy="use less")
