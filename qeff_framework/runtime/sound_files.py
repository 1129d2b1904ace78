"""Files of sound: one channel of samples, at the rate that a model was made for."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeff_framework.errors import InputError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EXTRA = "pip install 'qeff-framework[audio]'"
#: Samples of all channels of a file that a stranger sends: 512 MiB as float32, some 140 minutes of one channel at 16 kHz.
MOST_SAMPLES = 2**27


@dataclass(frozen=True, kw_only=True)
class SoundFile:
    """The content of a file."""

    file: str
    #: float32 ``[samples]``, the mean of the channels.
    samples: NDArray[np.float32]
    #: Samples per second.
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate

    def at(self, rate: int) -> NDArray[Any]:
        """The samples at another rate.

        Raises:
            OptionError: they must be resampled, and the library for that is not installed.
        """
        if rate == self.rate:
            return self.samples
        try:
            import soxr
        except ImportError as error:
            raise OptionError(
                f"{self.file} has {self.rate} samples per second and must be resampled to {rate}, which needs soxr; {_EXTRA}"
            ) from error
        resampled: NDArray[Any] = soxr.resample(self.samples, self.rate, rate)
        return resampled


def read_sound(file: str, content: bytes | None = None, *, most_samples: int | None = None) -> SoundFile:
    """Reads a WAV, FLAC, OGG or other file that libsndfile knows.

    Args:
        file: its path; with `content` its name, for messages.
        content: what is in it, for a file that is not on the disk.
        most_samples: of all channels together; more are refused before they are decoded.

    Raises:
        OptionError: the library for that is not installed.
        InputError: the file is missing, empty, too long, damaged or of another format, or holds no sound.
    """
    import numpy as np

    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there without libsndfile
        raise OptionError(f"reading sound needs soundfile, which is not installed; {_EXTRA}") from error
    try:
        if (Path(file).stat().st_size if content is None else len(content)) == 0:
            raise InputError(f"the sound file {file} is empty (0 bytes); give a WAV, FLAC or OGG file")
        with soundfile.SoundFile(file if content is None else BytesIO(content)) as opened:
            if most_samples is not None and opened.frames * opened.channels > most_samples:
                raise InputError(
                    f"the sound file {file} holds {opened.frames} samples of {opened.channels} channels, more than "
                    f"{most_samples} in all; cut it into parts"
                )
            rate = opened.samplerate
            samples = opened.read(dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        told = str(error).rstrip(".")
        raise InputError(f"the sound file {file} cannot be read: {told}; give a WAV, FLAC or OGG file") from error
    if not len(samples):
        raise InputError(f"the sound file {file} holds no samples; record it again")
    if not np.isfinite(samples).all():
        raise InputError(f"the sound file {file} holds numbers that are not finite; record it again")
    return SoundFile(file=file, samples=samples.mean(axis=1, dtype=np.float32), rate=int(rate))
