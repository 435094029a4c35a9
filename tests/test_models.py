"""The classifiers: published sizes, the frozen copy, gradients of gradients, and inputs they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.registry import MODELS
from src.victims import checkpoint
from src.victims.embedder import Embedder

SHAPES = {
    "cnn": (128, 321), "bc_resnet": (40, 101), "tc_resnet8": (40, 101), "rescnn": (64, 160), "resnet": (40, 101),
    "audionet": (32, 101), "xvector": (30, 101), "ivector": (72, 71),
    "vgg13": (64, 150), "crnn": (64, 150), "gcnn": (64, 150), "dense_mel": (64, 150), "dense_wav": (8000,),
}  # fmt: skip
TINY = {"rescnn": {"width": 2}, "bc_resnet": {"width": 1}, "resnet": {"widths": (4, 8)}, "xvector": {"width": 8},
        "ivector": {"components": 3, "rank": 6}, "vgg13": {"width": 0.125, "chunk": 64},
        "crnn": {"width": 0.125, "chunk": 64}, "gcnn": {"width": 0.125, "chunk": 64},
        "dense_mel": {"width": 0.125, "chunk": 64}, "dense_wav": {"width": 0.125, "chunk": 3000}}  # fmt: skip
EMBEDDERS = {"audionet": 32, "xvector": 8, "ivector": 6, "rescnn": 16, "resnet": 8, "cnn": 256}
EVERY = sorted(SHAPES)


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def tiny(name: str, n_classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name](n_classes=n_classes, shape=SHAPES[name], **TINY.get(name, {}))


def test_every_model_is_tested() -> None:
    assert set(MODELS.names()) <= set(SHAPES)


@pytest.mark.parametrize(
    ("name", "n_classes", "options", "published", "unit"),
    [
        ("cnn", 10, {}, 2.04, 1e6),
        ("bc_resnet", 12, {"width": 1}, 9.2, 1e3),
        ("bc_resnet", 12, {"width": 3}, 54.2, 1e3),
        ("bc_resnet", 12, {"width": 8}, 321, 1e3),
        ("rescnn", 10, {}, 24.18, 1e6),
    ],
)
def test_published_parameter_counts(
    name: str, n_classes: int, options: dict[str, int], published: float, unit: float
) -> None:
    model = MODELS[name](n_classes=n_classes, shape=SHAPES[name], **options)
    digits = len(str(published).partition(".")[2])
    assert round(n_parameters(model) / unit, digits) == published


def test_tc_resnet8_has_66k_weights_and_statistics() -> None:
    model = MODELS["tc_resnet8"](n_classes=12, shape=(40, 101))
    statistics = sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())
    assert round((n_parameters(model) + statistics) / 1e3) == 66


def test_cnn_layers_are_the_published_ones() -> None:
    model = MODELS["cnn"](n_classes=10, shape=(128, 321))
    linear = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert linear == [(1728, 1024), (1024, 256), (256, 10)]


def test_rescnn_pools_to_2048_per_frame() -> None:
    model = MODELS["rescnn"](n_classes=10, shape=(64, 160))
    assert (model.dense.in_features, model.dense.out_features) == (2048, 512)
    narrow = MODELS["rescnn"](n_classes=10, shape=(64, 160), width=16)
    assert n_parameters(narrow) < n_parameters(model) / 15


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("batch", [1, 3])
def test_logits(name: str, batch: int) -> None:
    model = tiny(name).eval()
    x = torch.randn(batch, *SHAPES[name])
    logits = model(x)
    assert logits.shape == (batch, 4)
    torch.testing.assert_close(logits[:1], model(x[:1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_frozen_victim_is_the_same_function(name: str) -> None:
    torch.manual_seed(1)
    front_end = {"pad_seconds": 0.0, "hop_length": 250} if name == "cnn" else {}
    victim = checkpoint.build(
        model=name, model_options=TINY.get(name), front_end_options=front_end, classes="abcd", sample_rate=16000,
        n_samples=16000,
    )  # fmt: skip
    x = torch.randn(4, 16000) * 0.1
    victim.train()
    with torch.no_grad():
        for _ in range(3):  # so that the running statistics are not those of a fresh batch norm
            victim(x * torch.rand(4, 1))
    victim.eval()
    frozen = victim.frozen()
    torch.testing.assert_close(frozen(x), victim(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(frozen.frozen()(x), frozen(x), atol=1e-6, rtol=1e-5)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    remaining = sum(isinstance(module, norms) for module in frozen.modules())
    # Sub-spectral norms have statistics per band, which no convolution can take in, and the x-vector network has its
    # norms behind the ReLU, as those of Iqbal et al.; of a dense network only the norm between its two convolutions
    # follows one. All others are folded.
    expected = {"bc_resnet": 12, "xvector": 5, "vgg13": 10, "crnn": 10, "gcnn": 10, "dense_mel": 10, "dense_wav": 10}
    assert remaining == expected.get(name, 0)


@pytest.mark.parametrize("name", EVERY)
def test_gradient_of_the_gradient_norm(name: str) -> None:
    model = tiny(name).double().eval()
    x = torch.randn(2, *SHAPES[name], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([0, 1])), x, create_graph=True)
    penalty = gradient.square().sum()
    weights = [p for p in model.parameters() if p.dim() > 1]
    second = torch.autograd.grad(penalty, weights, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in second)
    # Along one weight tensor the derivative is the finite difference.
    place = max(range(len(second)), key=lambda i: float(second[i].norm()) if second[i] is not None else 0.0)
    weight, expected = weights[place], second[place]
    direction = expected / expected.norm()

    def value(step: float) -> float:
        with torch.no_grad():
            weight.add_(direction, alpha=step)
        (g,) = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([0, 1])), x)
        with torch.no_grad():
            weight.sub_(direction, alpha=step)
        return float(g.square().sum())

    h = 1e-6
    measured = (value(h) - value(-h)) / (2 * h)
    assert measured == pytest.approx(float(expected.norm()), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cnn", (40, 101), "44 x 44"),
        ("bc_resnet", (64, 101), "multiple of 5"),
        ("bc_resnet", (10, 101), "multiple of 5"),
        ("tc_resnet8", (16000,), "freq, time"),
        ("rescnn", (16000,), "freq, time"),
        ("resnet", (8, 8), "at least"),
        ("cnn", (16000,), "freq, time"),
        ("bc_resnet", (16000,), "freq, time"),
        ("audionet", (16000,), "freq, time"),
        ("xvector", (16000,), "freq, time"),
        ("ivector", (16000,), "freq, time"),
        ("vgg13", (16000,), "32 bands or more"),
        ("gcnn", (20, 100), "32 bands or more"),
        ("crnn", (31, 100), "32 bands or more"),
        ("dense_mel", (16000,), "freq, time"),
        ("dense_wav", (64, 100), "needs a waveform"),
    ],
)
def test_unfit_features_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS[name](n_classes=4, shape=shape)


def test_audionet_has_the_published_number_of_parameters() -> None:
    assert n_parameters(MODELS["audionet"](n_classes=251, shape=(32, 300))) == 219_223


def test_xvector_layers_are_the_published_ones() -> None:
    model = MODELS["xvector"](n_classes=10, shape=(30, 300))
    layers = [m for m in model.modules() if isinstance(m, nn.Conv1d)]
    assert [(m.kernel_size[0], m.dilation[0]) for m in layers] == [(5, 1), (5, 2), (7, 3), (1, 1), (1, 1)]
    assert [m.out_channels for m in layers] == [512, 512, 512, 512, 1500]
    assert (model.embedding.in_features, model.embedding.out_features) == (3000, 512)
    assert all(m.weight is None for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    order = [type(m).__name__ for m in model.frames]
    assert order == ["Conv1d", "ReLU", "BatchNorm1d"] * 5


def test_xvector_pools_mean_and_standard_deviation() -> None:
    """The published statistics, and that the network sees 31 frames at a time."""
    model = tiny("xvector").eval()
    x = torch.randn(2, 30, 60)
    frames = model.frames(x)
    assert frames.shape[2] == 60 - 30
    assert model.context == 31
    deviation = (frames.var(2, correction=0) + 1e-5).sqrt()
    pooled = torch.cat([frames.mean(2), deviation], 1)
    torch.testing.assert_close(model.embed(x), model.embedding(pooled))


@pytest.mark.parametrize(("name", "size"), EMBEDDERS.items())
def test_an_embedder_is_a_linear_layer_on_its_embedding(name: str, size: int) -> None:
    model = tiny(name).eval()
    assert isinstance(model, Embedder)
    assert model.embedding_size == size
    x = torch.randn(6, *SHAPES[name])
    embedding = model.embed(x)
    assert embedding.shape == (6, size)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    torch.testing.assert_close(last(embedding), model(x))


@pytest.mark.parametrize("name", ["audionet", "xvector", "ivector"])
@pytest.mark.parametrize("frozen", [False, True])
def test_any_number_of_frames(name: str, frozen: bool) -> None:
    """Features may be shortened on their way (compression, selection); clips shorter than the context too."""
    victim = checkpoint.build(
        model=name, model_options=TINY.get(name), classes="abc", sample_rate=16000, n_samples=16000
    ).eval()
    for module in victim.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    model = (victim.frozen() if frozen else victim).classifier
    features = 10 * torch.randn(3, *SHAPES[name])
    for frames in (features.shape[2], 64, 31, 24, 20, 2):
        x = features[..., :frames]
        logits = model(x)
        assert logits.isfinite().all()
        lengths = torch.tensor([frames, max(1, frames - 7), max(1, frames // 2)])
        mask = torch.arange(features.shape[2]) < lengths[:, None]
        padded = torch.where(mask[:, None], features, torch.full_like(features, 99.0))
        alone = torch.cat([model(features[i : i + 1, :, :n]) for i, n in enumerate(lengths.tolist())])
        torch.testing.assert_close(model(padded, mask), alone, atol=1e-4, rtol=1e-4)
        one_row = model(padded[1:2].expand(4, -1, -1), mask[1:2])
        torch.testing.assert_close(one_row, alone[1:2].expand(4, -1), atol=1e-4, rtol=1e-4)
    assert (model(features) - model(features[..., :50])).abs().max() > 1e-4
