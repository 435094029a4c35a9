"""AAC compression (AAC-C and AAC-V of the speaker-recognition study): FFmpeg's own encoder."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

from src.defenses.codec import check_range
from src.defenses.ffmpeg_codec import FfmpegCodec
from src.registry import DEFENSES, Count

DELAY = 1024
"""One block of the transform."""


@DEFENSES.register("aac")
class Aac(FfmpegCodec):
    """Encode and decode each clip as AAC-LC at a constant bit rate.

    Args:
        bit_rate: bits per second, at most 6 per sample.
    """

    def __init__(self, *, sample_rate: int, bit_rate: Count = 15000):
        super().__init__(
            "aac",
            sample_rate,
            encoder="aac",
            decoder="aac",
            sample_format="fltp",
            delay=DELAY,
            bit_rate=bit_rate,
        )
        check_range("aac", "bit rate", bit_rate, 1000, 6 * sample_rate)


@DEFENSES.register("aac_vbr")
class AacVbr(FfmpegCodec):
    """Encode and decode each clip as AAC-LC at a variable bit rate.

    Args:
        quality: of FFmpeg's encoder, from 1 (about 75 kb/s at 16 kHz) to 5; the study's scale is another encoder's.
    """

    def __init__(self, *, sample_rate: int, quality: Annotated[int, Ge(1), Le(5)] = 1):
        super().__init__(
            "aac_vbr",
            sample_rate,
            encoder="aac",
            decoder="aac",
            sample_format="fltp",
            delay=DELAY,
            quality=quality,
        )
