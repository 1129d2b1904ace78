"""Two packages whose backends have one name: nothing is taken for the other's, and an exact name works to the end."""

from __future__ import annotations

import shutil

from qeff_framework.plugin_api import BACKEND_GROUP
from tests.fake_distributions import write_distribution


def test_programs_belong_to_the_package_that_has_compiled_them(model_qeff, llama, toy_site, tmp_path, monkeypatch):
    other = tmp_path / "other"
    group = {BACKEND_GROUP: {"toy": "toy_backend:ToyBackend"}}
    write_distribution(other, "others-toy", "0.3.0", entry_points=group, modules={})
    monkeypatch.syspath_prepend(str(other))
    asked = (llama, "--ctx-len", "32", "--prompt", "a", "--max-new-tokens", "3", "--json")

    unclear = model_qeff("generate", *asked, "--backend", "toy")
    assert unclear.code == 1
    assert "2 packages provide backend 'toy'" in unclear.err
    assert "'others-toy:toy'" in unclear.err or "'qeff-toy-backend:toy'" in unclear.err

    ours, theirs = (
        model_qeff("generate", *asked, "--backend", f"{name}:toy") for name in ("qeff-toy-backend", "others-toy")
    )
    assert (ours.code, theirs.code) == (0, 0), theirs.err
    # Same name, version, options and fingerprint; still another program.
    directory = theirs.json["artifact"]
    assert directory != ours.json["artifact"]

    loaded = ("generate", directory, "--prompt", "a", "--max-new-tokens", "3", "--json", "-R", "shift=1")
    assert model_qeff(*loaded).json["results"] == theirs.json["results"]
    # Gone, and the other one still has the name.
    shutil.rmtree(other)
    foreign = model_qeff(*loaded)
    assert foreign.code == 1
    assert (
        "was compiled by backend 'toy' of others-toy, which is not installed; here 'toy' is of qeff-toy-backend"
        in foreign.err
    )
    meant = model_qeff(*loaded, "--backend", "qeff-toy-backend:toy")
    assert meant.json["results"] == theirs.json["results"]
