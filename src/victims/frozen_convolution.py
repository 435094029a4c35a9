"""Convolutions of a frozen classifier: channels_last whatever the layout of the input, and a backward for the input
only.

torch gives a gradient the layout of the tensors it is computed from; where two layouts are mixed, every elementwise
step takes 20 to 40 times as long on a CPU. And oneDNN's backward of a convolution with a single input channel takes
seven times as long as its forward, while a matrix product and a fold do the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CL = torch.channels_last


class FrozenConv2d(nn.Module):
    """The same values and input gradients as the convolution it holds; no gradients of its weights.

    Args:
        convolution: dense or grouped, padded with zeros.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, channels, height, width]."""
        return _Convolution.apply(x, self.convolution)  # type: ignore[no-untyped-call]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        # torch takes a single channel for both layouts at once; the strides decide for channels_last.
        x = x.contiguous().as_strided(x.shape, (x[0].numel(), 1, x.shape[3], 1)) if x.shape[1] == 1 else x
        x = x.contiguous(memory_format=CL)
        ctx.layer = layer
        ctx.save_for_backward(x)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer, (x,) = ctx.layer, ctx.saved_tensors
        weight = layer.weight
        if x.shape[1] == 1 and not x.is_cuda:
            columns = torch.matmul(weight.flatten(1).T, grad.flatten(2))
            folding = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            return F.fold(columns, x.shape[2:], *folding), None
        grad = grad.contiguous(memory_format=CL)
        mask = [True, False, False]
        args = (None, layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups, mask)
        return torch.ops.aten.convolution_backward(grad, x, weight, *args)[0], None


def freeze_convolutions(network: nn.Module) -> nn.Module:
    """Replace, in place, every two-dimensional convolution that pads with zeros; other layers and frozen ones stay."""
    for name, layer in network.named_children():
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            setattr(network, name, FrozenConv2d(layer))
        elif not isinstance(layer, FrozenConv2d):
            freeze_convolutions(layer)
    return network
