"""The classifiers: published sizes, the frozen copy, gradients of gradients, and inputs they refuse."""

from __future__ import annotations

import librosa
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.models.crnn import ReluGru
from src.models.dense_blocks import DenseBlock
from src.models.dense_wav import gabor_filters
from src.models.tagging_blocks import Gate
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


@pytest.mark.parametrize(
    ("name", "published", "exact"),
    [
        ("vgg13", 9.44, 9_436_649),
        ("crnn", 12.6, 12_606_441),
        ("gcnn", 18.8, 18_840_489),
        ("dense_mel", 11.1, 11_107_622),
    ],
)
def test_sound_event_networks_have_the_published_numbers_of_parameters(name: str, published: float, exact: int) -> None:
    """With the statistics of batch norm, which the library of the published models counts."""
    shape = (64, 1251) if name == "dense_mel" else (64, 313)
    model = MODELS[name](n_classes=41, shape=shape)
    total = n_parameters(model) + sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())
    assert total == exact
    assert round(total / 1e6, len(str(published).partition(".")[2])) == published


def test_layers_of_vgg13_and_gcnn_are_the_published_ones() -> None:
    for name, factor, activation in (("vgg13", 1, nn.ReLU), ("gcnn", 2, Gate)):
        model = MODELS[name](n_classes=4, shape=(64, 128), width=0.25)
        kinds = [nn.Conv2d, activation, nn.BatchNorm2d] * 2 + [nn.MaxPool2d]
        assert [type(layer) for layer in model.blocks] == kinds * 5
        filters = [layer.out_channels for layer in model.blocks if isinstance(layer, nn.Conv2d)]
        assert filters == [factor * n for n in (16, 16, 32, 32, 64, 64, 128, 128, 128, 128)]
        assert model.features(torch.zeros(1, 64, 128)).shape == (1, 128, 2, 4)
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(Gate()(x), x[:, :3] * x[:, 3:].sigmoid())


def test_the_gru_of_crnn_is_that_of_torch_but_for_its_activation() -> None:
    """With the reset gate open the two agree where tanh and ReLU do: at small positive values, to third order."""
    n_in, units = 3, 5
    gru, peer = ReluGru(n_in, units), nn.GRU(n_in, units, batch_first=True)
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.copy_(parameter.abs() * 1e-3)
        update, reset, candidate = gru.enter.weight.split(units)
        reset_bias = gru.enter.bias[units : 2 * units].fill_(100.0)
        peer.weight_ih_l0.copy_(torch.cat([reset, update, candidate]))
        of_update, of_reset = gru.gates.weight.split(units)
        peer.weight_hh_l0.copy_(torch.cat([of_reset, of_update, gru.candidate.weight]))
        peer.bias_ih_l0.copy_(torch.cat([reset_bias, gru.enter.bias[:units], gru.enter.bias[2 * units :]]))
        peer.bias_hh_l0.zero_()
    x = torch.rand(2, 7, n_in)
    torch.testing.assert_close(gru(x), peer(x)[0], atol=0, rtol=1e-4)
    with torch.no_grad():
        gru.enter.bias[2 * units :] = 3.0
    assert float(gru(x).detach().max()) > 1, "a ReLU has no upper limit"


def test_dense_networks_average_the_probabilities_of_eight_heads() -> None:
    for name in ("dense_mel", "dense_wav"):
        model = tiny(name).eval()
        network = model.network
        n_in = network.layers[0].path[0].num_features
        x = torch.randn(2, n_in, 16 if name == "dense_mel" else 1, 40)
        pooled = network.layers(x).mean((2, 3))
        parts = zip(network.heads.weight.split(4), network.heads.bias.split(4), strict=True)
        heads = [(pooled @ weight.T + bias).softmax(1) for weight, bias in parts]
        assert len(heads) == 8
        torch.testing.assert_close(network(x).exp(), torch.stack(heads).mean(0))
    blocks = MODELS["dense_mel"](n_classes=2, shape=(64, 500)).network.layers[:8]
    assert [block.path[2].out_channels for block in blocks] == [16, 32, 64, 128, 256, 512, 512, 512]


def test_dense_blocks_are_concatenated_with_their_input_and_keep_axes_of_length_1() -> None:
    block = DenseBlock(8, 10, (3, 3)).eval()
    x = torch.randn(2, 8, 5, 1)
    y = block(x)
    assert y.shape == (2, 18, 3, 1)
    torch.testing.assert_close(y[:, 10:, :2], x.unflatten(2, (-1, 1))[:, :, :4].view(2, 8, 2, 2, 1).amax(3))
    torch.testing.assert_close(y[:, 10:, 2], x[:, :, 4])
    path = block.path[:6](x)
    weights = block.path[6].weights(path.mean((2, 3)))
    torch.testing.assert_close(block.path(x), path * weights[:, :, None, None])


def test_filters_of_dense_wav_start_as_gabor_filters() -> None:
    filters = gabor_filters(64)
    torch.testing.assert_close(filters.norm(dim=1), torch.ones(64))
    peaks = torch.fft.rfft(filters, 4096).abs().argmax(1) * 32000 / 4096
    assert bool((peaks.diff() > 0).all())
    expected = librosa.mel_frequencies(64, fmin=50.0, fmax=15000.0)
    assert peaks[5:].tolist() == pytest.approx(expected[5:].tolist(), rel=0.1)
    model = MODELS["dense_wav"](n_classes=2, shape=(32000,), width=0.25)
    torch.testing.assert_close(model.enter.weight[:, 0, 0], gabor_filters(16))


@pytest.mark.parametrize("name", ["vgg13", "crnn", "gcnn", "dense_mel", "dense_wav"])
def test_width_narrows(name: str) -> None:
    shape = (64, 500) if name != "dense_wav" else (64000,)
    counts = [n_parameters(MODELS[name](n_classes=10, shape=shape, width=width)) for width in (0.5, 0.25)]
    assert 3 < counts[0] / counts[1] < 4.5


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
