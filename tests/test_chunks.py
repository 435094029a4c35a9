"""Chunks of long clips: where they begin, what they hold, and the geometric mean of their probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from src.models.chunks import Chunked, cut, starts_of
from src.registry import MODELS
from src.victims import checkpoint
from src.victims.victim import Victim

RATE = 16000
NAMES = ("vgg13", "crnn", "gcnn", "dense_mel", "dense_wav")
CHUNKS = {"vgg13": 32, "crnn": 32, "gcnn": 32, "dense_mel": 125, "dense_wav": 16000}
SHAPES = {name: (40, 32) if name in ("vgg13", "crnn", "gcnn") else (40, 125) for name in NAMES} | {
    "dense_wav": (16000,)
}


class Mean(Chunked):
    """A classifier whose logits are known: the mean of the chunk, and 0."""

    def chunk_logits(self, x: Tensor) -> Tensor:
        level = x.flatten(1).mean(1)
        return torch.stack([level, torch.zeros_like(level)], 1)


def small(name: str, chunk: int | None = None, shape: tuple[int, ...] | None = None) -> nn.Module:
    """A network whose batch norm has the statistics of some clips, so that its output depends on the input."""
    torch.manual_seed(0)
    shape = shape or SHAPES[name]
    model = MODELS[name](n_classes=3, shape=shape, width=0.01, chunk=CHUNKS[name] if chunk is None else chunk)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, *shape))
    return model.eval()


def sounds(name: str, batch: int, chunks: float) -> Tensor:
    return torch.randn(
        batch, *SHAPES[name][:-1], round(chunks * CHUNKS[name]), generator=torch.Generator().manual_seed(3)
    )


@given(st.integers(1, 700), st.integers(1, 200))
def test_chunks_cover_the_clip_as_published(n_frames: int, chunk: int) -> None:
    starts, counts = starts_of(torch.tensor([n_frames, 5 * chunk]), chunk)
    begin = starts[0, : counts[0]].tolist()
    whole, remainder = divmod(n_frames, chunk)
    if not whole:
        assert begin == [0]
        return
    assert begin[0] >= 0
    assert begin[-1] + chunk <= n_frames, "every chunk is full of frames of the clip"
    heard = {frame for start in begin for frame in range(start, start + chunk)}
    if 4 * remainder < chunk:
        assert len(begin) == whole
        assert len(heard) == whole * chunk, "a short remainder is left out, and nothing is heard twice"
        assert abs(begin[0] - (n_frames - begin[-1] - chunk)) <= 1, "at both ends"
    else:
        assert begin == [i * chunk for i in range(whole)] + [n_frames - chunk]
        assert len(heard) == n_frames


def test_what_the_chunks_hold() -> None:
    x = torch.arange(20.0).view(2, 1, 10)
    pieces, rows, counts = cut(x, torch.tensor([10, 3]), 4, None)
    assert pieces[:, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9], [10, 11, 12, 10]]
    assert rows.tolist() == [0, 1, 2, 3]
    assert counts.tolist() == [3, 1]
    silent = cut(x[1:, 0], torch.tensor([3]), 4, 0.0)[0]
    assert silent.tolist() == [[10, 11, 12, 0]]
    # Slices, which clips of one length are cut into, hold the same.
    together, rows, _ = cut(x, torch.tensor([10, 10]), 4, None)
    assert rows.tolist() == [*range(6)]
    assert torch.equal(together[:3], pieces[:3])


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_of_one_chunk_is_predicted_as_the_whole_clip(name: str) -> None:
    chunked = small(name)
    whole = small(name, chunk=0)
    whole.load_state_dict(chunked.state_dict())
    x = sounds(name, 3, 1)
    torch.testing.assert_close(chunked(x).exp(), whole(x).softmax(1))
    assert chunked.uses_mask
    assert not whole.uses_mask


@pytest.mark.parametrize("name", NAMES)
def test_two_chunks_give_the_geometric_mean_of_their_probabilities(name: str) -> None:
    model, x = small(name), sounds(name, 3, 2)
    first, second = (model.chunk_logits(part).softmax(1) for part in x.split(CHUNKS[name], -1))
    assert not torch.allclose(first, second, atol=1e-4)
    expected = (first * second).sqrt()
    torch.testing.assert_close(model(x).exp(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(x).softmax(1), expected / expected.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_batch_and_single_clip_agree_whatever_their_lengths(name: str) -> None:
    model, x = small(name), sounds(name, 4, 2.6)
    n = torch.tensor([x.shape[-1], CHUNKS[name] * 2, CHUNKS[name] // 2, 1])
    mask = torch.arange(x.shape[-1]) < n[:, None]
    with torch.no_grad():
        together = model(x.where(mask.view(4, *[1] * (x.dim() - 2), -1), 99.0), mask)
        alone = torch.cat([model(x[i : i + 1, ..., : n[i]]) for i in range(4)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        one_row = model(x[:2], mask[2:3])
        torch.testing.assert_close(
            one_row, torch.cat([model(x[i : i + 1, ..., : n[2]]) for i in range(2)]), atol=1e-5, rtol=1e-4
        )
        assert model(x[:0], mask[:0]).shape == (0, 3)
        # Frames that do not count may stand anywhere.
        late = torch.cat([torch.full_like(x[..., :5], 99.0), x], -1)
        behind = torch.arange(late.shape[-1])[None] >= 5
        torch.testing.assert_close(model(late, behind), model(x))


def test_padding_has_no_part_in_the_statistics_of_the_training() -> None:
    x, mask = sounds("vgg13", 2, 3), torch.ones(2, 96, dtype=torch.bool)
    mask[1, 32:] = False
    padded, alone = small("vgg13").train(), small("vgg13").train()
    padded(x.where(mask[:, None], 99.0), mask)
    pieces = torch.cat([*x[0].split(32, -1), x[1, :, :32]]).view(4, 40, 32)
    alone.chunk_logits(pieces)
    for name, value in padded.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], msg=name)


def built(name: str, seconds: float = 1.0) -> Victim:
    torch.manual_seed(0)
    options = {"width": 0.01, "chunk": 32 if name in ("vgg13", "crnn", "gcnn") else CHUNKS[name] // 2}
    front_end = {"hop_length": 250} if name in ("vgg13", "crnn", "gcnn") else {}
    victim = checkpoint.build(
        model=name, model_options=options, front_end_options=front_end, classes="abc", sample_rate=RATE,
        n_samples=round(seconds * RATE),
    )  # fmt: skip
    for module in victim.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        victim.train()(0.1 * torch.randn(6, round(seconds * RATE)))
    return victim.eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_at_the_waveform_is_that_of_finite_differences(name: str) -> None:
    """Of the whole clip and of one of a part of the length, for the victim and for the copy that attacks run."""
    victim = built(name).double()
    x = 0.1 * torch.randn(2, RATE, dtype=torch.float64)
    valid = torch.arange(RATE) < torch.tensor([[RATE], [5000]])
    y = (x * valid).requires_grad_()
    frozen = victim.frozen()
    torch.testing.assert_close(frozen(x * valid, valid), victim(x * valid, valid))
    (gradient,) = torch.autograd.grad(victim(y, valid)[:, 1].sum(), y)
    (fast,) = torch.autograd.grad(frozen(y, valid)[:, 1].sum(), y)
    torch.testing.assert_close(fast, gradient)
    assert gradient.isfinite().all()
    assert not gradient[1, 5000 + 1024 :].any(), "no gradient in padding beyond the last window"
    step = 1e-7 * gradient / gradient.norm()
    with torch.no_grad():
        change = victim(y + step, valid)[:, 1].sum() - victim(y - step, valid)[:, 1].sum()
    assert float(change / 2e-7) == pytest.approx(float(gradient.norm()), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_silence_has_finite_logits_and_gradients(name: str) -> None:
    x = torch.zeros(2, RATE)
    x[1, :4000] = 0.1 * torch.randn(4000)
    for victim in (built(name), built(name).frozen()):
        y = x.clone().requires_grad_()
        logits = victim(y)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), y)
        assert logits.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [16, 0])
def test_chunks_that_no_network_can_take_are_refused(chunk: int) -> None:
    with pytest.raises(ValueError, match=r"chunk = 16: need at least 32|chunk = 0 needs clips of at least 32 frames"):
        MODELS["vgg13"](n_classes=3, shape=(64, 20), chunk=chunk)


def test_the_logits_of_two_chunks_by_hand() -> None:
    """Log-softmax of (mean, 0), averaged."""
    model = Mean(2, 4, 1)
    x = torch.tensor([[[1.0, 3.0, -1.0, 0.0]]])
    expected = torch.stack([torch.tensor([2.0, 0.0]), torch.tensor([-0.5, 0.0])]).log_softmax(1).mean(0)
    torch.testing.assert_close(model(x)[0], expected)
