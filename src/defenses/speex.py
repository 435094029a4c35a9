"""Speex compression (SPEEX of the speaker-recognition study): libspeex at a constant rate, 20 ms frames."""

from __future__ import annotations

import ctypes

import numpy as np

from src.defenses.codec import Codec, Decoded, Samples, check_choice, frames_of, library, to_float
from src.registry import DEFENSES, Count

MODES = {8000: 0, 16000: 1, 32000: 2}  # narrow band, wide band, ultra-wide band
GET_FRAME_SIZE, SET_QUALITY, SET_BITRATE, GET_BITRATE, GET_LOOKAHEAD = 3, 4, 18, 19, 39
POINTER, INT = ctypes.c_void_p, ctypes.c_int


class Bits(ctypes.Structure):
    """The bit stream, SpeexBits of speex_bits.h."""

    _fields_ = (
        ("chars", ctypes.c_void_p),
        ("n_bits", INT),
        ("char_pointer", INT),
        ("bit_pointer", INT),
        ("owner", INT),
        ("overflow", INT),
        ("buffer_size", INT),
        ("reserved1", INT),
        ("reserved2", ctypes.c_void_p),
    )


BITS = ctypes.POINTER(Bits)
FUNCTIONS = (
    ("speex_lib_get_mode", POINTER, (INT,)),
    ("speex_encoder_init", POINTER, (POINTER,)),
    ("speex_encoder_ctl", INT, (POINTER, INT, ctypes.POINTER(INT))),
    ("speex_encode_int", INT, (POINTER, POINTER, BITS)),
    ("speex_encoder_destroy", None, (POINTER,)),
    ("speex_decoder_init", POINTER, (POINTER,)),
    ("speex_decoder_ctl", INT, (POINTER, INT, ctypes.POINTER(INT))),
    ("speex_decode_int", INT, (POINTER, BITS, POINTER)),
    ("speex_decoder_destroy", None, (POINTER,)),
    ("speex_bits_init", None, (BITS,)),
    ("speex_bits_reset", None, (BITS,)),
    ("speex_bits_rewind", None, (BITS,)),
    ("speex_bits_destroy", None, (BITS,)),
)


def libspeex() -> ctypes.CDLL:
    return library("libspeex.so.1", "libspeex1", FUNCTIONS)


def rates(sample_rate: int) -> list[int]:
    """The legal bit rates in rising order, of qualities 0 to 10."""
    speex, value = libspeex(), INT()
    encoder = POINTER(speex.speex_encoder_init(speex.speex_lib_get_mode(MODES[sample_rate])))
    legal = []
    for quality in range(11):
        speex.speex_encoder_ctl(encoder, SET_QUALITY, INT(quality))
        speex.speex_encoder_ctl(encoder, GET_BITRATE, value)
        legal.append(value.value)
    speex.speex_encoder_destroy(encoder)
    return sorted(set(legal))


@DEFENSES.register("speex")
class Speex(Codec):
    """Encode and decode each clip as Speex, at the highest legal rate that does not exceed the one asked for.

    Args:
        bit_rate: bits per second.
    """

    def __init__(self, *, sample_rate: int, bit_rate: Count = 11000):
        super().__init__("speex")
        check_choice("speex", "sample rate", sample_rate, MODES)
        legal = rates(sample_rate)
        if bit_rate < legal[0]:
            raise ValueError(f"speex has no bit rate {bit_rate} or below (choices: {', '.join(map(str, legal))})")
        self.sample_rate, self.bit_rate = sample_rate, bit_rate

    def round_trip(self, samples: Samples) -> Decoded:
        """16-bit samples [time] -> decoded ones."""
        speex, bits, value = libspeex(), Bits(), INT()
        mode = speex.speex_lib_get_mode(MODES[self.sample_rate])
        encoder, decoder = POINTER(speex.speex_encoder_init(mode)), POINTER(speex.speex_decoder_init(mode))
        speex.speex_bits_init(bits)
        try:
            speex.speex_encoder_ctl(encoder, SET_BITRATE, INT(self.bit_rate))
            delay = 0
            for control, state in ((speex.speex_encoder_ctl, encoder), (speex.speex_decoder_ctl, decoder)):
                control(state, GET_LOOKAHEAD, value)
                delay += value.value
            speex.speex_encoder_ctl(encoder, GET_FRAME_SIZE, value)
            frames = frames_of(samples, value.value, delay)
            decoded = np.empty_like(frames)
            for frame, out in zip(frames, decoded, strict=True):
                speex.speex_bits_reset(bits)
                speex.speex_encode_int(encoder, frame.ctypes.data, bits)
                speex.speex_bits_rewind(bits)
                status = speex.speex_decode_int(decoder, bits, out.ctypes.data)
                assert status == 0, "the decoder failed"
            return to_float(decoded, delay)
        finally:
            speex.speex_bits_destroy(bits)
            speex.speex_encoder_destroy(encoder)
            speex.speex_decoder_destroy(decoder)
