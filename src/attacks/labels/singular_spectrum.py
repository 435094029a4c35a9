"""Singular spectrum analysis of waveforms (Golyandina et al. 2001): the clip as a sum of components, ordered by energy,
of which Kenansville keeps the leading ones (Abdullah et al. 2021).

The trajectory matrix of a clip of N samples holds its K = N - L + 1 windows of L samples. The sum of its r leading
components is its projection onto the r leading eigenvectors of their L x L scatter matrix, averaged along the
diagonals. The trajectory matrix itself, L times the size of the clip, is never built: the scatter matrix follows from
its first row by a recursion along its diagonals, and the projection onto one eigenvector is two convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

SHARE, LONGEST = 0.05, 3000
"""The window, as a share of the clip, and its largest length in samples."""
CHUNK = 64
"""Components that are summed at once; it bounds the memory to a few hundred times that of one clip."""


def window_of(n_samples: int) -> int:
    """The published window L: 5 % of the clip, at most 3000 samples.

    >>> window_of(16000), window_of(16000 * 60)
    (800, 3000)
    """
    return max(2, min(round(SHARE * n_samples), LONGEST))


def scatter(x: Tensor, window: int) -> Tensor:
    """The sum of outer products of all windows of x [batch, time], [batch, window, window], float64."""
    x = x.double()
    k = x.shape[1] - window + 1
    size = 2 ** (x.shape[1] - 1).bit_length() * 2
    head = torch.fft.rfft(x[:, :k], size)
    first = torch.fft.irfft(head.conj() * torch.fft.rfft(x, size), size)[:, :window]
    matrix = x.new_empty(len(x), window, window)
    matrix[:, 0] = first
    leaving, entering = x[:, :window], x[:, k : k + window - 1]
    for i in range(window - 1):
        change = entering[:, i, None] * entering - leaving[:, i, None] * leaving[:, :-1]
        matrix[:, i + 1, 1:] = matrix[:, i, :-1] + change
        matrix[:, i + 1, 0] = first[:, i + 1]
    return matrix


class Decomposition:
    """The singular spectrum of clips.

    Args:
        x: waveforms [batch, time].

    Attributes:
        energy: of each component in the trajectory matrix, the weakest first, [batch, window].
        window: L.
    """

    def __init__(self, x: Tensor):
        self.x, self.window = x, window_of(x.shape[1])
        energies, vectors = [], []
        for clip in x:  # one at a time: the rounding of a batched solver could depend on the batch
            values, columns = torch.linalg.eigh(scatter(clip[None], self.window)[0])
            energies.append(values.clamp_min(0))
            vectors.append(columns.T.float())  # half the memory, and far more exact than 16-bit samples need
        self.energy, self.vectors = torch.stack(energies), torch.stack(vectors)  # vectors: [batch, component, window]
        time = torch.arange(1, x.shape[1] + 1, device=x.device)
        in_windows = time.minimum(time.flip(0)).clamp(max=min(self.window, x.shape[1] - self.window + 1))
        self.per_sample = in_windows.double()

    def component_sum(self, index: int, first: int, last: int) -> Tensor:
        """The sum of the components first to last - 1 of one clip, counted from the weakest, [time]."""
        if first == last:
            return torch.zeros_like(self.x[index])
        x = self.x[index].double()
        n, k = len(x), len(x) - self.window + 1
        size = 2 ** (n - 1).bit_length()
        spectrum = torch.fft.rfft(x, size)
        total = torch.zeros_like(spectrum)
        for part in self.vectors[index, first:last].split(CHUNK):  # type: ignore[no-untyped-call]
            # size >= n: the first K values of the circular correlation do not wrap, nor does the convolution.
            kernel = torch.fft.rfft(part.double(), size)
            coefficients = torch.fft.irfft(kernel.conj() * spectrum, size)[:, :k]
            total += (torch.fft.rfft(coefficients, size) * kernel).sum(0)
        return (torch.fft.irfft(total, size)[:n] / self.per_sample).to(self.x.dtype)

    def leading(self, index: int, removed: int) -> Tensor:
        """One clip without its `removed` weakest components, [time]; the clip itself without none."""
        if 2 * removed <= self.window:
            return self.x[index] - self.component_sum(index, 0, removed)
        return self.component_sum(index, removed, self.window)
