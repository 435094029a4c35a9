"""MP3 compression (MP3-C and MP3-V of the speaker-recognition study): LAME through FFmpeg."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

from src.defenses.codec import check_choice
from src.defenses.ffmpeg_codec import FfmpegCodec
from src.registry import DEFENSES, Count

MPEG1_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG2_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Legal rates from 32 kHz on and below."""


@DEFENSES.register("mp3")
class Mp3(FfmpegCodec):
    """Encode and decode each clip as MP3 at a constant bit rate.

    Args:
        bit_rate: bits per second, one of the legal rates of the sample rate.
    """

    def __init__(self, *, sample_rate: int, bit_rate: Count = 24000):
        super().__init__(
            "mp3", sample_rate, encoder="libmp3lame", decoder="mp3float", sample_format="s16p", bit_rate=bit_rate
        )
        legal = MPEG1_KBITS if sample_rate >= 32000 else MPEG2_KBITS if sample_rate >= 16000 else MPEG2_KBITS[:8]
        check_choice("mp3", "bit rate", bit_rate, [1000 * kbits for kbits in legal])


@DEFENSES.register("mp3_vbr")
class Mp3Vbr(FfmpegCodec):
    """Encode and decode each clip as MP3 at a variable bit rate.

    Args:
        quality: of LAME, from 0, the best, to 9.
    """

    def __init__(self, *, sample_rate: int, quality: Annotated[int, Ge(0), Le(9)] = 4):
        super().__init__(
            "mp3_vbr", sample_rate, encoder="libmp3lame", decoder="mp3float", sample_format="s16p", quality=quality
        )
