"""Names that lowerings look for."""

from __future__ import annotations

#: Domain of every dialect op.
DOMAIN = "qeff"
#: Opset version of the domain.
VERSION = 1
#: Opset of the standard ops around and inside the dialect: the one that torch's translation library is written for.
#: Another one would run the version converter, which inlines every function first.
ONNX_OPSET = 18
