"""Distributed runs under torchrun: rank, the share of the clips of each process, barriers, and the device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes of one job.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every size-th item from the rank-th on; the shares are disjoint and cover everything."""
        return items[self.rank :: self.size]

    def wait(self) -> None:
        """Barrier: return when every process has called this."""
        if self.size > 1:
            distributed.barrier()


def choose_device(use_cuda: bool) -> torch.device:
    """The CUDA device of this process where one is requested and available, else the CPU."""
    if use_cuda and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


@contextmanager
def team() -> Iterator[Team]:
    """The processes of the torchrun job, or this process alone. The backend is gloo: processes only wait for each
    other, results are exchanged through files."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team()
        return
    distributed.init_process_group("gloo")
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
