"""AMR compression (AMR of the speaker-recognition study), 20 ms frames: AMR-WB at 16 kHz by VisualOn's encoder and
OpenCORE's decoder, AMR-NB at 8 kHz by OpenCORE."""

from __future__ import annotations

import ctypes

import numpy as np

from src.defenses.codec import Codec, Decoded, Samples, check_choice, frames_of, library, to_float
from src.registry import DEFENSES, Count

RATES = {
    8000: (4750, 5150, 5900, 6700, 7400, 7950, 10200, 12200),
    16000: (6600, 8850, 12650, 14250, 15850, 18250, 19850, 23050, 23850),
}
"""Legal bit rates of the narrow and the wide band, in the order of their modes."""
DELAY = {8000: 40, 16000: 95}
"""Samples: 5 ms of lookahead, and the wide band's changes of sample rate."""
LARGEST_PACKET = 64
POINTER, INT = ctypes.c_void_p, ctypes.c_int
WIDE_ENCODER = (
    ("E_IF_init", POINTER, ()),
    ("E_IF_encode", INT, (POINTER, INT, POINTER, POINTER, INT)),
    ("E_IF_exit", None, (POINTER,)),
)
WIDE_DECODER = (
    ("D_IF_init", POINTER, ()),
    ("D_IF_decode", None, (POINTER, POINTER, POINTER, INT)),
    ("D_IF_exit", None, (POINTER,)),
)
NARROW = (
    ("Encoder_Interface_init", POINTER, (INT,)),
    ("Encoder_Interface_Encode", INT, (POINTER, INT, POINTER, POINTER, INT)),
    ("Encoder_Interface_exit", None, (POINTER,)),
    ("Decoder_Interface_init", POINTER, ()),
    ("Decoder_Interface_Decode", None, (POINTER, POINTER, POINTER, INT)),
    ("Decoder_Interface_exit", None, (POINTER,)),
)


def wide_band() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """(encoder, decoder) of AMR-WB."""
    encoder = library("libvo-amrwbenc.so.0", "libvo-amrwbenc0", WIDE_ENCODER)
    return encoder, library("libopencore-amrwb.so.0", "libopencore-amrwb0", WIDE_DECODER)


def narrow_band() -> ctypes.CDLL:
    """Encoder and decoder of AMR-NB."""
    return library("libopencore-amrnb.so.0", "libopencore-amrnb0", NARROW)


@DEFENSES.register("amr")
class Amr(Codec):
    """Encode and decode each clip as AMR, wide band at 16 kHz and narrow band at 8 kHz, without discontinuous
    transmission.

    Args:
        bit_rate: bits per second, one of the legal rates: 6600 to 23850 at 16 kHz, 4750 to 12200 at 8 kHz.
    """

    def __init__(self, *, sample_rate: int, bit_rate: Count = 6600):
        super().__init__("amr")
        check_choice("amr", "sample rate", sample_rate, RATES)
        check_choice(f"amr at {sample_rate} Hz", "bit rate", bit_rate, RATES[sample_rate])
        self.sample_rate, self.mode = sample_rate, RATES[sample_rate].index(bit_rate)
        if sample_rate == 16000:
            wide_band()
        else:
            narrow_band()

    def round_trip(self, samples: Samples) -> Decoded:
        """16-bit samples [time] -> decoded ones."""
        delay = DELAY[self.sample_rate]
        frames = frames_of(samples, self.sample_rate // 50, delay)
        decoded, packet = np.empty_like(frames), ctypes.create_string_buffer(LARGEST_PACKET)
        code = self._wide if self.sample_rate == 16000 else self._narrow
        code(frames, decoded, packet)
        return to_float(decoded, delay)

    def _wide(self, frames: Samples, decoded: Samples, packet: ctypes.Array[ctypes.c_char]) -> None:
        coding, decoding = wide_band()
        encoder, decoder = POINTER(coding.E_IF_init()), POINTER(decoding.D_IF_init())
        try:
            for frame, out in zip(frames, decoded, strict=True):
                size = coding.E_IF_encode(encoder, self.mode, frame.ctypes.data, packet, 0)
                assert size > 0, "the encoder failed"
                decoding.D_IF_decode(decoder, packet, out.ctypes.data, 0)
        finally:
            coding.E_IF_exit(encoder)
            decoding.D_IF_exit(decoder)

    def _narrow(self, frames: Samples, decoded: Samples, packet: ctypes.Array[ctypes.c_char]) -> None:
        amr = narrow_band()
        encoder, decoder = POINTER(amr.Encoder_Interface_init(0)), POINTER(amr.Decoder_Interface_init())
        try:
            for frame, out in zip(frames, decoded, strict=True):
                size = amr.Encoder_Interface_Encode(encoder, self.mode, frame.ctypes.data, packet, 0)
                assert size > 0, "the encoder failed"
                amr.Decoder_Interface_Decode(decoder, packet, out.ctypes.data, 0)
        finally:
            amr.Encoder_Interface_exit(encoder)
            amr.Decoder_Interface_exit(decoder)
