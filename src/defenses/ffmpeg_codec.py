"""Codecs of FFmpeg, through PyAV: packets pass from encoder to decoder without a file format in between."""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from src.defenses.codec import Codec, Decoded, Samples, check_choice


class FfmpegCodec(Codec):
    """A codec that FFmpeg encodes and decodes.

    Args:
        name: of the defense.
        sample_rate: Hz.
        encoder, decoder: their names in FFmpeg.
        sample_format: that the encoder takes, s16p or fltp.
        delay: samples that the encoder puts in front and the decoder does not remove.
        bit_rate: bits per second; 0 for a variable rate.
        quality: of a variable rate, in the encoder's own scale.

    Raises:
        ValueError: a sample rate that the codec does not have; lists those it has.
    """

    def __init__(
        self,
        name: str,
        sample_rate: int,
        *,
        encoder: str,
        decoder: str,
        sample_format: str,
        delay: int = 0,
        bit_rate: int = 0,
        quality: int = 0,
    ):
        super().__init__(name)
        check_choice(name, "sample rate", sample_rate, av.Codec(encoder, "w").audio_rates or ())
        self.sample_rate, self.encoder, self.decoder, self.sample_format = sample_rate, encoder, decoder, sample_format
        self.delay, self.bit_rate, self.quality = delay, bit_rate, quality

    def round_trip(self, samples: Samples) -> Decoded:
        """16-bit samples [time] -> decoded ones."""
        encoder, decoder = self._context(av.Codec(self.encoder, "w")), self._context(av.Codec(self.decoder, "r"))
        encoder.format = self.sample_format
        if self.bit_rate:
            encoder.bit_rate = self.bit_rate
        else:
            encoder.options = {"flags": "+qscale", "global_quality": str(FF_QP2LAMBDA * self.quality)}
        # The decoder gives as many samples as went in, the delay included.
        padded = np.pad(samples, (0, self.delay))[None]
        data = padded if self.sample_format == "s16p" else (padded / 32768).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(data, format=self.sample_format, layout="mono")
        frame.sample_rate = self.sample_rate
        packets = [*encoder.encode(frame), *encoder.encode(None)]
        if encoder.extradata:
            decoder.extradata = encoder.extradata
        pieces = [decoded.to_ndarray().reshape(-1) for packet in packets for decoded in decoder.decode(packet)]
        return np.concatenate([np.zeros(0, np.float32), *pieces])[self.delay :]

    def _context(self, codec: av.Codec) -> Any:
        context: Any = codec.create()
        context.sample_rate, context.layout = self.sample_rate, "mono"
        context.thread_count = 1  # the batch is what runs in parallel
        return context


FF_QP2LAMBDA = 118
"""FFmpeg's factor between a quality and `global_quality`."""
