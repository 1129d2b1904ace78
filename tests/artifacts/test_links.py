"""Equal files of one artifact take the disk once."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from qeff_framework.artifacts import Manifest, Problem, link_equal_files, verify


def test_large_equal_files_become_one(tmp_path: Path, store_root: Path) -> None:
    weights, other = b"weights!" * 10_000, b"other :(" * 10_000
    contents = {"a/weights": weights, "b/weights": weights, "b/other": other, "a/small": b"s", "b/small": b"s"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    digests = link_equal_files(tmp_path)
    assert digests == {name: sha256(contents[name]).hexdigest() for name in ("a/weights", "b/weights", "b/other")}
    files = {name: (tmp_path / name).stat().st_ino for name in contents}
    assert files["a/weights"] == files["b/weights"]
    assert len({*files.values()}) == len(files) - 1
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        Path(name).name for name in contents
    )
    manifest = Manifest.describe(tmp_path, kind="compiled", key="k", key_parts={}, label="l", shared=digests)
    manifest.save(tmp_path)
    found: list[Problem] = verify(tmp_path, full=True)
    assert not found
