"""The artifact store: what was built once is found again, and nothing half-built is ever found.

`Store` builds and publishes artifact directories; `cache_key` and `content_digest` say when two of them are the same;
`create_and_dump_qconfigs` writes the description that lies beside every compiled program.
"""

from __future__ import annotations

from qeff_framework.artifacts.keys import cache_key, canonical_json, content_digest
from qeff_framework.artifacts.links import hard_link, link_equal_files, shared_digests
from qeff_framework.artifacts.manifest import Manifest, Problem, ProblemKind, verify
from qeff_framework.artifacts.qconfig import create_and_dump_qconfigs
from qeff_framework.artifacts.root import store_root
from qeff_framework.artifacts.store import Store, StoredArtifact, open_artifact

__all__ = [
    "Manifest",
    "Problem",
    "ProblemKind",
    "Store",
    "StoredArtifact",
    "cache_key",
    "canonical_json",
    "content_digest",
    "create_and_dump_qconfigs",
    "hard_link",
    "link_equal_files",
    "open_artifact",
    "shared_digests",
    "store_root",
    "verify",
]
