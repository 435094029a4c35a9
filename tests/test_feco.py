"""Feature compression: the clusters are those of scikit-learn and of brute force, the gradient flows through the means,
padding does not count, and a model that cannot take fewer frames is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from src.defenses import clustering
from src.defenses.clustering import (
    exchange,
    in_order,
    kmeans,
    lloyd,
    plus_plus_start,
    random_start,
    squared_error,
    warped_kmeans,
)
from src.random_streams import RandomStreams
from src.registry import DEFENSES
from src.stages.front_ends import log_mel, mfcc
from src.victims import checkpoint
from src.victims.adaptive import Eot, adaptive, once
from src.victims.chain import Chain, with_lengths
from src.victims.victim import Victim

RATE = 16000


def features(clips, n: int = 8) -> Tensor:
    """[n, 13, 101]."""
    front_end = Chain(mfcc(sample_rate=RATE, n_samples=RATE, n_mfcc=13, normalize="none"))
    return front_end(clips.waveforms(slice(n)))


def streams(n: int, purpose: str = "feco") -> RandomStreams:
    return RandomStreams(0, [str(i) for i in range(n)], purpose)


def feco(**options: object):
    return DEFENSES["feco"](sample_rate=RATE, **options)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everything(frames: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(all frames valid, k clusters each)."""
    return torch.ones(frames.shape[:2], dtype=torch.bool), torch.full((len(frames),), k)


def test_lloyd_is_that_of_scikit_learn_from_the_same_start(clips) -> None:
    frames = features(clips).transpose(1, 2).double()
    valid, counts = everything(frames, 20)
    uniform = torch.rand(8, 20, 1 + clustering.TRIALS, generator=torch.Generator().manual_seed(0)).double()
    centers = plus_plus_start(frames, valid, uniform)
    ours = in_order(lloyd(frames, valid, counts, centers, 300))
    for x, start, labels in zip(frames, centers, ours, strict=True):
        peer = KMeans(20, init=start.numpy(), n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(x.numpy())
        assert torch.equal(in_order(torch.tensor(peer.labels_)[None])[0], labels)
        torch.testing.assert_close(squared_error(x[None], labels[None]).item(), peer.inertia_)


def test_the_default_ends_below_scikit_learn(clips) -> None:
    frames = features(clips, 16).transpose(1, 2)
    valid = everything(frames, 20)[0]
    ours, peer = [], []
    for seed in range(3):
        random = streams(16, str(seed)).uniform(torch.empty(16, dtype=torch.float64))
        ours.append(squared_error(frames, feco()._labels(frames, valid, random)).mean())
        peer.append(np.mean([KMeans(20, n_init=1, random_state=seed).fit(x.numpy()).inertia_ for x in frames]))
    assert np.mean(ours) < np.mean(peer)


def test_exchange_goes_on_where_lloyd_stops_until_no_frame_can_move() -> None:
    frames = noise(6, 14, 2)
    valid, counts = everything(frames, 4)
    stopped = lloyd(frames, valid, counts, frames[:, :4], 100)
    labels = exchange(frames, stopped, counts, 4, 200)
    errors = squared_error(frames, labels)
    assert (errors <= squared_error(frames, stopped) + 1e-12).all()
    assert (errors < squared_error(frames, stopped) - 1e-9).any()
    for clip, frame, label in itertools.product(range(6), range(14), range(4)):
        if (labels[clip] == labels[clip, frame]).sum() > 1:
            moved = labels[clip : clip + 1].clone()
            moved[0, frame] = label
            assert squared_error(frames[clip : clip + 1], moved) > errors[clip] * (1 - 1e-5)
    begun = lloyd(frames, valid, counts, frames[:, :4], 1)
    assert torch.equal(
        in_order(exchange(frames, begun, counts, 4, 200)), kmeans(frames, valid, counts, frames[:, :4], 200)
    )


def test_plus_plus_draws_far_frames_and_none_that_does_not_count() -> None:
    """Two distant groups and two clusters: one center in each, whatever the numbers."""
    frames = torch.cat([noise(50, 10, 3), 1000 + noise(50, 10, 3, seed=1), torch.full((50, 4, 3), 1e6).double()], 1)
    valid = (torch.arange(24) < 20).expand(50, -1)
    uniform = torch.rand(50, 2, 1 + clustering.TRIALS, generator=torch.Generator().manual_seed(0)).double()
    centers = plus_plus_start(frames, valid, uniform)[..., 0]
    assert ((centers > 500).sum(1) == 1).all()
    assert (centers < 2000).all()
    chosen = random_start(frames, valid, torch.rand(50, 24), 20)
    assert torch.equal(chosen.sort(1).values, frames[:, :20].sort(1).values), "all valid frames, each once"


def optimum(x: np.ndarray, k: int) -> float:
    """The least squared error of k consecutive segments, by trying all."""

    def error(segment: np.ndarray) -> float:
        return float(((segment - segment.mean(0)) ** 2).sum())

    cuts = ([0, *c, len(x)] for c in itertools.combinations(range(1, len(x)), k - 1))
    return min(sum(error(x[a:b]) for a, b in itertools.pairwise(c)) for c in cuts)


def test_warped_segments_are_consecutive_and_no_boundary_can_move() -> None:
    frames = noise(12, 11, 2).cumsum(1)
    valid, counts = everything(frames, 4)
    labels = warped_kmeans(frames, valid, counts)
    steps = labels.diff(dim=1)
    assert ((steps == 0) | (steps == 1)).all()
    assert (labels[:, 0] == 0).all()
    assert (labels[:, -1] == 3).all()
    errors = squared_error(frames, labels)
    equal = (torch.arange(11) * 4 // 11).expand(12, -1)
    assert (errors <= squared_error(frames, equal) + 1e-9).all()
    assert (errors < squared_error(frames, equal)).float().mean() > 0.8
    for i in (steps == 1).nonzero().tolist():
        clip, last = i
        for frame, label in ((last, labels[clip, last + 1]), (last + 1, labels[clip, last])):
            if (labels[clip] == labels[clip, frame]).sum() > 1:
                moved = labels[clip : clip + 1].clone()
                moved[0, frame] = label
                assert squared_error(frames[clip : clip + 1], moved) > errors[clip] - 1e-9
    best = torch.tensor([optimum(x.numpy(), 4) for x in frames], dtype=torch.float64)
    assert (errors >= best - 1e-9).all()
    assert ((errors - best) < 1e-9).sum() >= 3, "a local minimum is the global one for some"


@pytest.mark.parametrize("options", [{}, {"start": "random"}, {"method": "warped"}])
def test_means_in_time_order_the_same_alone_and_in_a_batch(options: dict[str, str], clips) -> None:
    x, stage = features(clips), feco(**options)
    y = stage.draw(x, streams(8))
    assert y.shape == (8, 13, 20)
    assert stage.randomized == (options.get("method") != "warped")
    assert torch.equal(stage.draw(x, streams(8)), y)
    assert torch.equal(stage.draw(x, streams(8, "other")), y) != stage.randomized
    for i in (0, 5):
        alone = stage.draw(x[i : i + 1], streams(8).select(torch.tensor([i])))
        assert torch.equal(alone, y[i : i + 1])
    # Every cluster has frames, so their sizes give back the mean of all frames.
    labels = stage._labels(x.transpose(1, 2), *everything(x.transpose(1, 2), 20)[:1], torch.full((8,), 0.5).double())
    sizes = torch.stack([torch.bincount(row, minlength=20) for row in labels])
    assert (sizes > 0).all()
    first = torch.stack([torch.stack([(row == k).nonzero()[0, 0] for k in range(20)]) for row in labels])
    assert (first.diff(dim=1) > 0).all(), "numbered by their first frames"


@pytest.mark.parametrize("options", [{}, {"start": "random"}, {"method": "warped"}])
def test_gradient_through_the_means_by_finite_differences(options: dict[str, str]) -> None:
    x, stage = noise(2, 3, 15).requires_grad_(), feco(**options)
    assert torch.autograd.gradcheck(lambda x: stage.draw(x, streams(2)), x, eps=1e-7, atol=1e-6)
    out = stage.draw(x, streams(2))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (grad > 0).all(), "every frame is in a cluster"
    torch.testing.assert_close(grad.sum((1, 2)), torch.full((2,), 9.0).double())


@pytest.mark.parametrize("method", ["kmeans", "warped"])
def test_equal_frames_leave_no_cluster_empty(method: str) -> None:
    x = torch.zeros(2, 4, 25)
    x[1, :, 12:] = 1
    y = feco(method=method).draw(x, streams(2))
    assert y.isfinite().all()
    assert torch.equal(y[0], torch.zeros(4, 5))
    assert y[1, 0, -1] > 0.99, "no zeros of an empty cluster at the end"
    if method == "kmeans":
        assert ((y[1] - 1).abs() < 1e-6).logical_or(y[1] == 0).all(), "no mean of both"


@pytest.mark.parametrize(
    ("n", "ratio", "clusters"), [(101, 0.2, 20), (10, 0.3, 3), (3, 0.2, 1), (1, 0.2, 1), (7, 1, 7)]
)
def test_number_of_frames(n: int, ratio: float, clusters: int) -> None:
    x = noise(2, 3, n)
    for method in ("kmeans", "warped"):
        y = feco(ratio=ratio, method=method)(x)
        assert y.shape == (2, 3, clusters)
        if ratio == 1:
            torch.testing.assert_close(y, x)
    assert feco(method=method)(x[:0]).shape == (0, 3, feco().clusters(n))


@pytest.mark.parametrize("options", [{}, {"start": "random"}, {"method": "warped"}])
def test_padding_does_not_count(options: dict[str, str], clips) -> None:
    x, stage = features(clips), feco(**options)
    valid = torch.arange(101) < torch.tensor([101, 60, 31, 3, 101, 80, 10, 0])[:, None]
    padded = torch.where(valid[:, None], x, 1e3)
    y, mask = stage.with_valid(valid[:, None]).draw(padded, streams(8)), stage.mask(valid[:, None])
    assert mask.shape == (8, 1, 20)
    assert mask.sum((1, 2)).tolist() == [20, 12, 6, 1, 20, 16, 2, 0]
    for i, n in enumerate(valid.sum(1).tolist()):
        if n:
            alone = stage.draw(x[i : i + 1, :, :n], streams(8).select(torch.tensor([i])))
            torch.testing.assert_close(y[i : i + 1, :, : alone.shape[2]], alone, rtol=1e-4, atol=1e-3)
        assert not y[i][:, ~mask[i, 0]].any(), "zeros behind the clusters"


class MeanOfFrames(nn.Module):
    """A classifier that counts only valid frames."""

    uses_mask = True

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(40, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = torch.ones(len(x), x.shape[-1], dtype=torch.bool) if mask is None else mask
        return self.layer((x * mask[:, None]).sum(2) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize("method", ["kmeans", "warped"])
@pytest.mark.parametrize("at", ["magnitude", "mel", "log_mel"])
def test_true_lengths_reach_the_clusters(at: str, method: str, clips) -> None:
    """A padded clip behind FeCo gets the logits of the clip alone, at any representation, frozen or adaptive."""
    victim = Victim(
        log_mel(sample_rate=RATE, n_samples=RATE), MeanOfFrames(), classes="abc", sample_rate=RATE, n_samples=RATE
    ).eval()
    if at not in victim.representations:
        at = "log"
    defended = victim.defended([feco(method=method)], at)
    x, n = clips.waveforms(slice(2)), 9600
    x[:, n:] = 0
    valid = (torch.arange(RATE) < n)[None]
    for model in (defended, defended.frozen()):
        chain = with_lengths(model, valid)
        logits = once(chain, x, streams(2))
        # The frames of the clip alone, through the rest of the chain.
        head, tail = model.split("feco")
        frames = Chain(head.stages[:-1])(x)
        n_valid = int(with_lengths(victim, valid).frame_mask(valid).sum())
        alone = once(Chain([head.stages[-1], *tail.stages], model.classifier), frames[..., :n_valid], streams(2))
        assert int(chain.frame_mask(valid).sum()) == feco().clusters(n_valid) == 12
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(x, valid).shape, logits.shape)
    model = adaptive(with_lengths(defended.frozen(), valid), rng=streams(2), draws=2)
    assert isinstance(model, Eot) == (method == "kmeans")
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    assert grad[:, :n].abs().sum() > 0


def test_it_stands_at_every_representation_in_a_checkpoint(tmp_path: Path, clips) -> None:
    x = clips.waveforms(slice(3))
    for front_end in ("mfcc", "log_mel", "filterbank"):
        victim = checkpoint.build(
            model="resnet", front_end=front_end, model_options={"widths": (4, 8)}, classes=list("abcd"),
            sample_rate=RATE, n_samples=RATE,
        ).eval()  # fmt: skip
        for at in victim.representations[1:]:
            if at == "pre_emphasis":
                continue
            defended = checkpoint.defend(victim, [{"name": "feco", "options": {"ratio": 0.5}, "at": at}])
            logits = once(defended, x, streams(3))
            assert logits.shape == (3, 4)
            checkpoint.save(tmp_path / "m.pt", defended, {})
            assert torch.equal(once(checkpoint.load(tmp_path / "m.pt")[0], x, streams(3)), logits)
            head, tail = defended.split("feco")
            assert torch.equal(tail(once(head, x, streams(3))), logits)


class Fixed(nn.Module):
    """A classifier for 101 frames of 40 bands and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(40 * 101, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def test_a_model_that_cannot_take_fewer_frames_is_refused() -> None:
    stages = log_mel(sample_rate=RATE, n_samples=RATE)
    victim = Victim(stages, Fixed(), classes="ab", sample_rate=RATE, n_samples=RATE)
    last = victim.representations[-1]
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="cannot take the 20 frames that the defense 'feco' leaves of 101") as error:
        victim.defended([feco()], last)
    assert "\n" not in str(error.value)
    assert torch.equal(torch.get_rng_state(), state), "the trial takes nothing from the global stream"
    assert victim.training
    with pytest.raises(ValueError, match=r"'feco' needs frames .* DEFENSE.feco.at \(choices: magnitude, mel"):
        victim.defended([feco()])
    victim.defended([feco(ratio=1.0)], last)
    with pytest.raises(ValueError, match="has no inverse"):
        feco().inverse(torch.zeros(1, 2, 3), torch.zeros(1, 2, 9))
