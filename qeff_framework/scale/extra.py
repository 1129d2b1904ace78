"""Ray is an extra."""

from __future__ import annotations

from importlib.util import find_spec

from qeff_framework.errors import OptionError


def needs_ray(what: str, *further: str) -> None:
    """Raises `OptionError` where Ray, or a package of `further`, is not installed."""
    missing = [name for name in ("ray", *further) if find_spec(name) is None]
    if missing:
        raise OptionError(f"{what} needs {', '.join(missing)}, not installed here: pip install 'qeff-framework[ray]'")
