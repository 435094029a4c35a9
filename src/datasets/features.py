"""Features of a whole split, computed once: where nothing random happens to the waveform, the front end need not run
again in every epoch and for every model. They lie in the store, and go when it is prepared anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from src.datasets.source import digest
from src.datasets.store import description, load
from src.datasets.writer import FEATURES


@torch.no_grad()
def cached_features(
    data_dir: Path, split: str, head: Callable[[Tensor], Tensor], key: object, batch_size: int = 4
) -> np.ndarray:
    """float32 [n, ...], memory-mapped: head of every clip of the split, in the order of the store.

    Args:
        data_dir: a prepared store.
        split: train, validation or test.
        head: waveform [batch, time] -> features [batch, ...], deterministic (a front end, `victim.split(...)[0]`).
        key: whatever tells this head from others (front end and its options); a module's buffers are added to it.
        batch_size: clips per call of head; a few fit the cache of a CPU and are twice as fast as many.

    Raises:
        OSError: nothing prepared there, or it cannot be written; nothing half-written stays.
    """
    clips = load(data_dir, split)
    state = [key, description(data_dir).get("fingerprint")]
    if isinstance(head, nn.Module):
        state += [(name, digest([value.cpu().numpy().tobytes()])) for name, value in head.state_dict().items()]
    path = data_dir / f"{FEATURES}{split}-{digest(state)}.npy"
    if not path.is_file():
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                for start in range(0, len(clips), batch_size):
                    block = head(clips.waveforms(slice(start, start + batch_size))).cpu().numpy()
                    if not start:
                        shape = (len(clips), *block.shape[1:])
                        np.lib.format.write_array_header_1_0(
                            file, {"descr": "<f4", "fortran_order": False, "shape": shape}
                        )
                    file.write(np.ascontiguousarray(block, "<f4").data)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return np.load(path, mmap_mode="r", allow_pickle=False)
