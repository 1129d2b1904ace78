"""Cross-cutting plugins that wrap the hooks of any backend. Off unless named; the core ships `timing` as the first
one.
"""

from __future__ import annotations
