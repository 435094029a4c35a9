"""Frozen convolutions: the values and input gradients of torch's, in channels_last, whatever layout comes in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from src.victims.frozen_convolution import FrozenConv2d, freeze_convolutions


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (1, {"kernel_size": 5, "stride": 2, "padding": 2}),
        (1, {"kernel_size": (3, 4), "stride": (2, 3), "padding": (0, 1), "dilation": (1, 2)}),
        (6, {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}),
        (6, {"kernel_size": 1, "stride": 2}),
        (6, {"kernel_size": 3, "padding": 1, "groups": 2}),
    ],
)
def test_same_values_and_gradients(channels: int, options: dict[str, Any], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 8, **options).double().requires_grad_(False)
    x = torch.randn(3, channels, 13, 17, dtype=torch.float64).contiguous(memory_format=layout)
    results = []
    for layer in (plain, FrozenConv2d(plain)):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        weight = torch.arange(y.numel(), dtype=y.dtype).view(y.shape).sin()  # a gradient in the other layout
        results.append((y.detach(), torch.autograd.grad((y * weight).sum(), leaf)[0]))
    (y, grad), (fast, fast_grad) = results
    assert fast.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast, y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast_grad, grad, rtol=1e-12, atol=1e-12)


def test_a_transposed_single_channel_is_read_right() -> None:
    plain = nn.Conv2d(1, 4, 3).requires_grad_(False)
    x = torch.randn(2, 9, 7).transpose(1, 2).unsqueeze(1)
    torch.testing.assert_close(FrozenConv2d(plain)(x), plain(x), rtol=1e-5, atol=1e-6)


def test_only_what_it_can_replace_is_replaced() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Conv2d(2, 2, 3, padding="same"), nn.ReLU()))
    freeze_convolutions(network)
    assert type(network[0]) is FrozenConv2d
    assert type(network[1][0]) is nn.Conv2d
    assert type(freeze_convolutions(network)[0].convolution) is nn.Conv2d


def test_freezing_draws_no_random_numbers() -> None:
    plain = nn.Conv2d(1, 2, 3)
    before = torch.get_rng_state()
    assert FrozenConv2d(plain).convolution is plain
    assert torch.equal(torch.get_rng_state(), before)
