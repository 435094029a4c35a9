"""Opus compression (OPUS of the speaker-recognition study): libopus, variable rate, 20 ms frames."""

from __future__ import annotations

import ctypes

import numpy as np

from src.defenses.codec import Codec, Decoded, Samples, check_choice, check_range, frames_of, library, to_float
from src.registry import DEFENSES, Count

AUDIO = 2049  # OPUS_APPLICATION_AUDIO
SET_BITRATE, GET_LOOKAHEAD = 4002, 4027
LARGEST_PACKET = 1275
POINTER, INT = ctypes.c_void_p, ctypes.c_int
FUNCTIONS = (
    ("opus_encoder_create", POINTER, (ctypes.c_int32, INT, INT, POINTER)),
    ("opus_encoder_ctl", INT, None),
    ("opus_encode", ctypes.c_int32, (POINTER, POINTER, INT, POINTER, ctypes.c_int32)),
    ("opus_encoder_destroy", None, (POINTER,)),
    ("opus_decoder_create", POINTER, (ctypes.c_int32, INT, POINTER)),
    ("opus_decode", INT, (POINTER, POINTER, ctypes.c_int32, POINTER, INT, INT)),
    ("opus_decoder_destroy", None, (POINTER,)),
)


def libopus() -> ctypes.CDLL:
    return library("libopus.so.0", "libopus0", FUNCTIONS)


@DEFENSES.register("opus")
class Opus(Codec):
    """Encode and decode each clip as Opus.

    Args:
        bit_rate: average bits per second, 500 to 510000.
    """

    def __init__(self, *, sample_rate: int, bit_rate: Count = 8000):
        super().__init__("opus")
        check_choice("opus", "sample rate", sample_rate, (8000, 12000, 16000, 24000, 48000))
        check_range("opus", "bit rate", bit_rate, 500, 510000)
        self.sample_rate, self.bit_rate = sample_rate, bit_rate
        libopus()

    def round_trip(self, samples: Samples) -> Decoded:
        """16-bit samples [time] -> decoded ones."""
        opus, length = libopus(), self.sample_rate // 50
        encoder = POINTER(opus.opus_encoder_create(self.sample_rate, 1, AUDIO, None))
        decoder = POINTER(opus.opus_decoder_create(self.sample_rate, 1, None))
        try:
            opus.opus_encoder_ctl(encoder, SET_BITRATE, ctypes.c_int32(self.bit_rate))
            lookahead = ctypes.c_int32()
            opus.opus_encoder_ctl(encoder, GET_LOOKAHEAD, ctypes.byref(lookahead))
            frames = frames_of(samples, length, lookahead.value)
            decoded, packet = np.empty_like(frames), ctypes.create_string_buffer(LARGEST_PACKET)
            for frame, out in zip(frames, decoded, strict=True):
                size = opus.opus_encode(encoder, frame.ctypes.data, length, packet, LARGEST_PACKET)
                n_decoded = opus.opus_decode(decoder, packet, size, out.ctypes.data, length, 0)
                assert size > 0, "the encoder failed"
                assert n_decoded == length, "the decoder failed"
            return to_float(decoded, lookahead.value)
        finally:
            opus.opus_encoder_destroy(encoder)
            opus.opus_decoder_destroy(decoder)
