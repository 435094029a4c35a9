"""espeak-ng as a program: JSON lines of utterances on standard input, their samples on standard output.

Run as a separate process: the engine's state carries over from one utterance to the next, so only a fresh process given
the same utterances in the same order repeats them exactly. Its random numbers are seeded here for every utterance: left
alone it takes the time of day. It imports nothing of src to start fast."""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from typing import Any

SYNCHRONOUS, UTF8 = 2, 1
SEED = 1
PARAMETERS = {"rate": 1, "pitch": 3, "range": 4}


def main() -> None:
    """Write the sample rate, then for each utterance its number of samples (-1: unknown voice) and the samples, all
    little endian."""
    import espeakng_loader

    engine = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = engine.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    if rate <= 0:
        sys.exit("espeak-ng does not start")
    pieces: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)  # type: ignore[untyped-decorator]
    def collect(samples: Any, n: int, events: Any) -> int:
        if samples and n > 0:
            pieces.append(ctypes.string_at(samples, 2 * n))
        return 0

    engine.espeak_SetSynthCallback(collect)
    out = sys.stdout.buffer
    out.write(struct.pack("<i", rate))
    for line in sys.stdin:
        utterance = json.loads(line)
        pieces.clear()
        if engine.espeak_SetVoiceByName(utterance["voice"].encode()):
            out.write(struct.pack("<i", -1))
            continue
        for name, number in PARAMETERS.items():
            engine.espeak_SetParameter(number, utterance[name], 0)
        engine.espeak_ng_SetRandSeed(ctypes.c_long(SEED))  # the engine seeds itself with the time otherwise
        text = utterance["text"].encode()
        engine.espeak_Synth(text, len(text) + 1, 0, 0, 0, UTF8, None, None)
        content = b"".join(pieces)
        out.write(struct.pack("<i", len(content) // 2) + content)
    out.flush()


if __name__ == "__main__":
    main()
