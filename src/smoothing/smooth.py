"""Randomized smoothing (Cohen, Rosenfeld and Kolter 2019): g(z) = the class f gives most often to z + N(0, sigma^2 I).

If f gives class A with probability at least p > 1/2 over the noise, g is constant within the L2 radius
sigma * Phi^-1(p) of z. CERTIFY estimates a lower bound of p from noise draws; it is wrong with probability at most
alpha."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from src.random_streams import BLOCK, RandomStreams
from src.smoothing.bounds import BettingTest, lower_bound, round_down

ABSTAIN = -1


@dataclass(frozen=True)
class Certificate:
    """The certificate of one example.

    Attributes:
        label: the class that g gives, or ABSTAIN.
        radius: g gives this label at every point closer than this; 0 when abstaining; rounded down to 6 digits.
        n_used: noise draws that were used, selection included.
    """

    label: int
    radius: float
    n_used: int

    def correct(self, y: int) -> bool:
        """Whether the label is y; an abstention never is."""
        return self.label != ABSTAIN and self.label == y


@dataclass(frozen=True)
class Votes:
    """The classes that f gives to a batch of noisy copies.

    Attributes:
        classes: int64 [m]; `n_classes` where the logits have a NaN: argmax would return the position of the NaN, which
            is a vote for no class.
        n_classes: number of classes of f.
    """

    classes: Tensor
    n_classes: int


class Smooth:
    """The smoothed classifier g of a base classifier f.

    Args:
        model: f, from [batch, ...] to logits [batch, classes], in evaluation mode.
        sigma: standard deviation of the noise, in units of f's input.
        n0: noise draws that select the class.
        n: noise draws that estimate its probability (the maximum in sequential mode) and noise draws of `predict`.
        alpha: probability that an answer is wrong.
        mode: fixed, or sequential to stop as soon as `radii` are decided.
        radii: radii that the sequential mode decides.
        batch_size: noise draws per forward pass, a multiple of 16; 0 for the fastest (see `tuned_batch_size`). Results
            do not depend on it: exactly on CPU; on CUDA up to rounding of the logits, so set it there for identical
            files.
        seed: of the noise, which also depends on the example's id and on its purpose.
        noise_filter: linear map of unit noise [batch, ...]; the radius is then in the norm of its inverse (noise.py).

    Raises:
        ValueError: a model in training mode, or settings out of range.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        sigma: float,
        *,
        n0: int = 100,
        n: int = 1000,
        alpha: float = 0.001,
        mode: Literal["fixed", "sequential"] = "fixed",
        radii: Sequence[float] = (),
        batch_size: int = 0,
        seed: int = 0,
        noise_filter: Callable[[Tensor], Tensor] | None = None,
    ):
        # Batch statistics and dropout would make f depend on the other draws or on hidden random numbers.
        if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
            raise ValueError("the smoothed model is in training mode (dropout, batch statistics); call eval() first")
        if not (sigma > 0 and n0 >= 1 and n >= 1 and 0 < alpha < 0.5):
            raise ValueError(f"need sigma > 0, n0, n >= 1, 0 < alpha < 0.5; got {sigma}, {n0}, {n}, {alpha}")
        if batch_size % BLOCK:
            raise ValueError(f"batch_size must be a multiple of {BLOCK}, got {batch_size}")
        if mode == "sequential" and not radii:
            raise ValueError("the sequential mode needs the radii to decide")
        self.model, self.sigma, self.n0, self.n, self.alpha = model, sigma, n0, n, alpha
        self.mode, self.radii, self.batch_size = mode, radii, batch_size
        self.seed, self.noise_filter = seed, noise_filter
        self._noisy = torch.empty(0)

    @torch.inference_mode()
    def tuned_batch_size(self, z: Tensor) -> int:
        """The batch size for examples of the shape of z [...]: the given one, else found by timing f once."""
        if not self.batch_size:
            generator = self._generator("", "batch size", z.device)
            self.batch_size = tune(self.model, self._noisy_copies(z, BLOCK, generator))
        return self.batch_size

    @torch.inference_mode()
    def certify(self, z: Tensor, example: str) -> Certificate:
        """CERTIFY of one example z [...], whose random numbers belong to the id `example`."""
        # Step 1: guess the class A from n0 draws that are used for nothing else; a wrong guess only makes the radius
        # smaller.
        counts = self._counts(z, self.n0, example, "certify: select")
        label = int(counts.argmax())
        if label == len(counts) - 1:  # mostly NaN
            return Certificate(ABSTAIN, 0.0, self.n0)
        # Step 2: fresh draws. Reusing those of step 1, which selected A, would bias the estimate upwards.
        if self.mode == "sequential":
            test = BettingTest([radius / self.sigma for radius in self.radii], self.n, self.alpha)
            for votes in self._votes(z, self.n, example, "certify: estimate"):
                if test.observe((votes.classes == label).cpu().numpy()):
                    break
            n, bound = test.n, test.lower_z()
        else:
            k = int(self._counts(z, self.n, example, "certify: estimate")[label])
            # Step 3: p >= p_low except with probability alpha.
            n, p_low = self.n, lower_bound(k, self.n, self.alpha)
            bound = float(norm.ppf(p_low)) if p_low >= 0.5 else -1.0
        # Step 4: abstain where p_low < 1/2; else g is constant within sigma * Phi^-1(p_low).
        if bound < 0:
            return Certificate(ABSTAIN, 0.0, self.n0 + n)
        radius = round_down(self.sigma * bound)
        if self.mode == "sequential":  # rounding of z * sigma must not undo a decided target
            radius = max([radius, *(r for r, won in zip(self.radii, test.won, strict=True) if won)])
        return Certificate(label, radius, self.n0 + n)

    @torch.inference_mode()
    def predict(self, z: Tensor, example: str) -> int:
        """PREDICT of one example z [...]: the class of g, or ABSTAIN; another class with probability at most alpha."""
        counts = self._counts(z, self.n, example, "predict")
        (first, second), (label, _) = (top.tolist() for top in counts.topk(2))
        # Were the two classes equally likely, the top one would win this clearly with probability at most alpha.
        significant = binomtest(first, first + second, 0.5).pvalue <= self.alpha
        return label if significant and label != len(counts) - 1 else ABSTAIN

    def _counts(self, z: Tensor, n: int, example: str, purpose: str) -> Tensor:
        """How often f gave each class; the last entry counts NaN logits. int64 [classes + 1]."""
        counts: Tensor | None = None
        for votes in self._votes(z, n, example, purpose):
            if counts is None:
                counts = torch.zeros(votes.n_classes + 1, dtype=torch.int64, device=z.device)
            # Stays on the device, so that no transfer to the host interrupts the draws.
            counts.scatter_add_(0, votes.classes, torch.ones_like(votes.classes))
        assert counts is not None
        return counts.cpu()

    def _votes(self, z: Tensor, n: int, example: str, purpose: str) -> Iterator[Votes]:
        """The votes of f at n noisy copies of z [...], in batches."""
        generator, batch_size = self._generator(example, purpose, z.device), self.tuned_batch_size(z)
        for start in range(0, n, batch_size):
            rows = min(batch_size, n - start)
            # Always full blocks, even if some draws are not used: so draws and logits do not depend on the batch size.
            logits = self.model(self._noisy_copies(z, -(-rows // BLOCK) * BLOCK, generator))
            n_classes = logits.shape[1]
            yield Votes(logits.argmax(1).masked_fill_(logits.isnan().any(1), n_classes)[:rows], n_classes)

    def _generator(self, example: str, purpose: str, device: torch.device) -> torch.Generator:
        return RandomStreams(self.seed, [example], f"{purpose}, sigma {self.sigma!r}", device).generators[0]

    def _noisy_copies(self, z: Tensor, rows: int, generator: torch.Generator) -> Tensor:
        """z plus noise, [rows, ...], in a buffer that every batch reuses."""
        noisy = self._noisy
        if noisy.shape[1:] != z.shape or len(noisy) < rows or noisy.device != z.device or noisy.dtype != z.dtype:
            noisy = self._noisy = z.new_empty((rows, *z.shape))
        noisy = noisy[:rows]
        for start in range(0, rows, BLOCK):
            noisy[start : start + BLOCK].normal_(0, self.sigma, generator=generator)
        return (noisy if self.noise_filter is None else self.noise_filter(noisy)).add_(z)


def tune(model: Callable[[Tensor], Tensor], rows: Tensor, *, largest: int = 4096, patience: float = 10.0) -> int:
    """The smallest batch size at which `model` is about fastest per draw on this machine, found by timing.

    On CPU large batches are slower (activations no longer fit into the cache and, above the allocator's limit, their
    memory is mapped again in every layer); on a GPU they are faster, up to its memory. On CPU a size is accepted only
    if its logits equal those of the smallest bit for bit, so that the choice, which depends on timing, changes no
    result.

    Args:
        rows: BLOCK inputs, [BLOCK, ...].
        largest: batch size that ends the search.
        patience: seconds after which the search ends.
    """
    best, best_time, start = BLOCK, math.inf, time.perf_counter()
    reference = model(rows).nan_to_num()
    size = BLOCK
    while size <= largest and time.perf_counter() - start < patience:
        batch = rows.repeat(size // BLOCK, *[1] * (rows.dim() - 1))
        try:
            logits = model(batch).nan_to_num()  # also the warm-up
            seconds = _fastest(lambda batch=batch: model(batch), rows.device) / size  # type: ignore[misc]
        except torch.cuda.OutOfMemoryError:
            break
        same = torch.equal(logits, reference.repeat(size // BLOCK, 1))
        # Differences of 5 % are within the accuracy of the timing; the smaller batch needs less memory.
        if seconds < 0.95 * best_time and (same or rows.device.type != "cpu"):
            best, best_time = size, seconds
        elif seconds > 1.15 * best_time:
            break
        size *= 2
    return best


def _fastest(call: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of the fastest of 2 to 10 calls: 2, or as many as take 0.2 s."""
    times: list[float] = []
    while len(times) < 2 or (sum(times) < 0.2 and len(times) < 10):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
