"""Text from speech with encoder and decoder: start tokens, time stamps, windows of long clips. Host code in NumPy."""

from __future__ import annotations

from qeff_framework.speech.decoder import SpeechDecoder
from qeff_framework.speech.segments import Segment, SpeechOutput
from qeff_framework.speech.start_tokens import SpeechFacts
from qeff_framework.speech.windows import WindowReader

__all__ = ["Segment", "SpeechDecoder", "SpeechFacts", "SpeechOutput", "WindowReader"]
