"""The codec's stand-in: its gradient is that of the filter it was fitted to, whatever the filter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.stages.stft_mask import LOWEST_GAIN, fitted_gain, istft, stft, stft_mask_substitute
from src.victims.adaptive import Bpda
from src.victims.stage import Stage

RATE = 16000


def noise(seed: int, n: int = RATE, batch: int = 2) -> Tensor:
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.1


def zero_phase(x: Tensor) -> Tensor:
    """A smooth low-pass with gains from 1 to 0.1, its own adjoint."""
    n = 2 * x.shape[-1]
    hz = torch.fft.rfftfreq(n, 1 / RATE, dtype=torch.float64)
    return torch.fft.irfft(torch.fft.rfft(x, n) * (0.1 + 0.9 / (1 + (hz / 2000) ** 4)), n)[..., : x.shape[-1]]


class Filter(Stage):
    """A filter that hides its gradient."""

    differentiable = False

    def __init__(self) -> None:
        super().__init__("filter")

    def forward(self, x: Tensor) -> Tensor:
        return zero_phase(x).detach()

    def substitute(self, x: Tensor, value: Tensor) -> Tensor:
        return stft_mask_substitute(x, value)


def test_the_gradient_of_a_linear_filter_is_found_without_knowing_it() -> None:
    x, cotangent = noise(0).requires_grad_(), noise(1)
    out = Bpda(Filter())(x)
    assert torch.equal(out, zero_phase(x.detach())), "forward is the exact stage"
    (grad,) = torch.autograd.grad((out * cotangent).sum(), x)
    exact = zero_phase(cotangent)
    error = (grad - exact).norm() / exact.norm()
    assert error < 0.12
    assert (cotangent - exact).norm() / exact.norm() > 4 * error, "the identity is far worse"


def test_backward_is_the_adjoint_of_forward() -> None:
    x, v, g = noise(0, 3001), noise(1, 3001), noise(2, 3001)
    value = zero_phase(x)
    gain = fitted_gain(x, value)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((stft_mask_substitute(leaf, value) * g).sum(), leaf)
    along = istft(gain * stft(v), v.shape[-1])  # the directional derivative along v at a fixed gain
    torch.testing.assert_close((along * g).sum(), (v * grad).sum())
    step = 1e-4
    numeric = (istft(gain * stft(x + step * v), 3001) - istft(gain * stft(x - step * v), 3001)) / (2 * step)
    torch.testing.assert_close(along, numeric)
    # Away from the edges this is the gradient's own spectrum times the gain.
    inner = slice(1024, -1024)
    torch.testing.assert_close(grad[:, inner], istft(gain * stft(g), 3001)[:, inner], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("factor", "gain"), [(1.0, 1.0), (0.3, 0.3), (-1.0, LOWEST_GAIN), (2.0, 1.0)])
def test_the_gain_is_least_squares_and_clamped(factor: float, gain: float) -> None:
    x = noise(0)
    torch.testing.assert_close(fitted_gain(x, factor * x), torch.full_like(stft(x).real, gain))


def test_silence_and_other_shapes() -> None:
    silent = torch.zeros(1, 800)
    assert (fitted_gain(silent, silent) == LOWEST_GAIN).all()
    with pytest.raises(ValueError, match="waveforms of one shape"):
        stft_mask_substitute(silent, silent[:, :-1])
