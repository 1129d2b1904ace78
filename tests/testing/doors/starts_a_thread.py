"""Importing it starts a thread."""

from __future__ import annotations

import threading
import time

from tests.testing.toy_backend import ToyBackend

threading.Thread(target=time.sleep, args=(3,), daemon=True).start()


class Door(ToyBackend):
    pass
