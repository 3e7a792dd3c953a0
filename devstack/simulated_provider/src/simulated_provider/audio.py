"""Speech that is none: a tone, as long as the text would take to say."""

import io
import math
import wave
from array import array
from functools import lru_cache

RATE = 16_000
"""Samples per second, of 16 bits, one channel."""
LONGEST = 4.0
SECONDS_PER_CHARACTER = 0.02
PITCH = 440.0  # Hz
_STEP = 0.5


@lru_cache(maxsize=64)
def samples(seconds: float) -> bytes:
    """The tone as raw samples, little-endian, fading in and out."""
    count = int(RATE * seconds)
    fade = RATE // 50
    loud = (min(1.0, at / fade, (count - at) / fade) for at in range(count))
    tone = array(
        "h", (int(9_000 * volume * math.sin(2 * math.pi * PITCH * at / RATE)) for at, volume in enumerate(loud))
    )
    return tone.tobytes()


def length_of(text: str) -> float:
    """Seconds of sound for a text, in steps so that few lengths have to be made."""
    wanted = min(LONGEST, len(text) * SECONDS_PER_CHARACTER)
    return max(_STEP, math.ceil(wanted / _STEP) * _STEP)


@lru_cache(maxsize=64)
def wav(seconds: float) -> bytes:
    """The tone as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(samples(seconds))
    return file.getvalue()
