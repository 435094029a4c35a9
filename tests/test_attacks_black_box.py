"""Black-box attacks on linear models, whose distance to the boundary is known, and their query limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from src.attacks.active_batch import ActiveBatch
from src.attacks.labels.oracle import NEARER, WIDTHS, Oracle, _colored, start
from src.attacks.registration import spec_of
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of

SCORES = ("square", "nes", "spsa", "siren", "genetic")
DECISIONS = ("hopskipjump", "boundary")
ENTRIES = 12
LIMIT = 1500


class Linear:
    """Logits (s, -s) with s = w x + b, and the queries per example. Sums are computed per example, so that the batch
    does not affect them."""

    def __init__(self, w: Tensor, b: Tensor, counts: Tensor | None = None, index: Tensor | None = None):
        self.w, self.b = w, b
        self.counts = torch.zeros(len(b), dtype=torch.long) if counts is None else counts
        self.index = torch.arange(len(b)) if index is None else index

    def __call__(self, x: Tensor) -> Tensor:
        assert len(x) == len(self.index)
        self.counts[self.index] += 1
        s = torch.stack([(row * self.w).sum() for row in x.flatten(1)]) + self.b
        return torch.stack([s, -s], 1)

    def select(self, index: Tensor) -> Linear:
        return Linear(self.w, self.b[index], self.counts, self.index[index])


def problem(
    shape: tuple[int, ...] = (ENTRIES,), batch: int = 5, distance: float = 0.3
) -> tuple[Linear, Tensor, Tensor]:
    """A linear model and inputs of class 0 whose l2 distances to the boundary are near `distance`."""
    torch.manual_seed(3)
    x = 0.2 * torch.randn(batch, *shape)
    w = torch.randn(math.prod(shape))
    s = distance * w.norm() * torch.linspace(0.8, 1.2, batch)
    return Linear(w, s - x.flatten(1) @ w), x, torch.zeros(batch, dtype=torch.long)


def distances(model: Linear, x: Tensor, norm: str) -> Tensor:
    s = x.flatten(1) @ model.w + model.b
    return s / (model.w.norm() if norm == "l2" else model.w.abs().sum())


def run(name: str, model: Linear, x: Tensor, y: Tensor, threat: ThreatModel, **keys: object) -> Tensor:
    """Attacks that can search in tiles search in the entries: the models here are linear in them."""
    ids = keys.pop("ids", [str(i) for i in range(len(x))])
    in_entries = {"sample_rate": 16000, "space": "samples"} if spec_of(name).needs_sample_rate else {}
    return ATTACKS[name](
        model, x, y, threat, rng=RandomStreams(0, ids, name), targeted=keys.pop("targeted", False), **in_entries, **keys
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", SCORES)
def test_scores_reach_a_boundary_of_known_distance(name: str, norm: str) -> None:
    model, x, y = problem()
    reach = distances(model, x, norm)
    threat = ThreatModel(norm, 1.5 * reach, (-2.0, 2.0))
    x_adv = run(name, model, x, y, threat, queries=LIMIT)
    assert (model(x_adv).argmax(1) == 1).all()
    assert threat.contains(x_adv, x).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", SCORES)
def test_scores_stop_at_the_limit_and_at_the_budget(name: str, norm: str) -> None:
    model, x, y = problem()
    threat = ThreatModel(norm, 0.98 * distances(model, x, norm), (-2.0, 2.0))
    x_adv = run(name, model, x, y, threat, queries=107)
    assert model.counts.unique().numel() == 1
    assert model.counts[0] <= 107
    if name in ("square", "siren", "genetic"):
        assert model.counts[0] == 107
    assert (model(x_adv).argmax(1) == 0).all()
    assert threat.contains(x_adv, x).all()
    # The result is no worse than the clean clip.
    assert (model(x_adv)[:, 0] <= model(x)[:, 0] + 1e-6).all() or name == "square"


@pytest.mark.parametrize("name", SCORES)
def test_scores_aim_at_a_target(name: str) -> None:
    model, x, y = problem()
    x_adv = run(name, model, x, y + 1, ThreatModel("l2", 1.5 * distances(model, x, "l2")), queries=LIMIT, targeted=True)
    assert (model(x_adv).argmax(1) == 1).all()


@pytest.mark.parametrize("name", SCORES)
def test_a_misclassified_example_costs_one_query(name: str) -> None:
    model, x, y = problem()
    y = torch.tensor([1, 0, 1, 0, 1])
    x_adv = run(name, model, x, y, ThreatModel("linf", 0.5 * distances(model, x, "linf")), queries=60)
    assert model.counts[y == 1].tolist() == [1, 1, 1]
    assert torch.equal(x_adv[y == 1], x[y == 1])


@pytest.mark.parametrize("name", [*SCORES, *DECISIONS])
def test_the_batch_changes_nothing(name: str) -> None:
    model, x, y = problem()
    threat = ThreatModel("l2", math.inf if name in DECISIONS else 1.2 * distances(model, x, "l2"), (-1.0, 1.0))
    together = run(name, model, x, y, threat, queries=200)
    again = run(name, model, x, y, threat, queries=200)
    assert torch.equal(together, again)
    for i in (1, 4):
        index = torch.tensor([i])
        alone = run(name, model.select(index), x[index], y[index], threat.select(index), queries=200, ids=[str(i)])
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("name", [*SCORES, *DECISIONS])
def test_any_rank_bounds_and_mask(name: str) -> None:
    model, x, y = problem((3, 6))
    mask = torch.ones(5, 1, 6, dtype=torch.bool)
    mask[:, :, 4:] = False
    threat = ThreatModel("l2", math.inf if name in DECISIONS else 0.8, (-0.5, 0.9), mask)
    x = x.clamp(-0.5, 0.9)
    x_adv = run(name, model, x, y, threat, queries=300)
    assert x_adv.shape == x.shape
    assert torch.equal(x_adv[..., 4:], x[..., 4:])
    assert threat.contains(x_adv, x).all()
    assert (x_adv != x).flatten(1).any(1).all()


@pytest.mark.parametrize("shape", [(ENTRIES,), (4, 6), (2, 3, 4)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_keeps_to_the_surface_of_the_ball(shape: tuple[int, ...], norm: str) -> None:
    model, x, y = problem(shape)
    eps = 0.9 * distances(model, x, norm)
    x_adv = run("square", model, x, y, ThreatModel(norm, eps), queries=50)
    torch.testing.assert_close(norm_of(x_adv - x, norm), eps, rtol=1e-3, atol=1e-6)


def test_nes_halves_the_step_of_each_example_by_its_own_history() -> None:
    """The result of an example is the same alone and beside another whose logits change differently."""
    model, x, y = problem(batch=2)
    threat = ThreatModel("linf", 0.9 * distances(model, x, "linf"))
    together = run("nes", model, x, y, threat, queries=800, pairs=5)
    alone = run(
        "nes", model.select(torch.tensor([0])), x[:1], y[:1], threat.select(torch.tensor([0])), queries=800, pairs=5
    )
    assert torch.equal(together[0], alone[0])


@pytest.mark.parametrize(
    ("name", "norm", "slack"), [("hopskipjump", "l2", 1.1), ("hopskipjump", "linf", 1.35), ("boundary", "l2", 1.1)]
)
def test_decisions_find_a_boundary_of_known_distance(name: str, norm: str, slack: float) -> None:
    model, x, y = problem()
    x_adv = run(name, model, x, y, ThreatModel(norm), queries=2000)
    ratio = norm_of(x_adv - x, norm) / distances(model, x, norm)
    assert (model(x_adv).argmax(1) == 1).all()
    assert (ratio >= 1 - 1e-4).all()
    assert (ratio <= slack).all(), ratio
    assert (model.counts <= 2001).all()


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_keep_to_the_query_limit(name: str) -> None:
    for limit in (1, 5, 23, 200):
        model, x, y = problem()
        x_adv = run(name, model, x, y, ThreatModel("l2", bounds=(-1.0, 1.0)), queries=limit)
        assert (model.counts <= limit).all()
        changed = (x_adv != x).flatten(1).any(1)
        assert (model(x_adv).argmax(1)[changed] == 1).all()


@pytest.mark.parametrize("name", [*DECISIONS, "kenansville"])
def test_no_start_means_an_unchanged_clip(name: str) -> None:
    model, x, y = problem()
    model.b += 1e6
    keys = {} if name == "kenansville" else {"queries": 400}
    assert torch.equal(run(name, model, x, y, ThreatModel("l2"), **keys), x)


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_return_misclassified_examples_unchanged(name: str) -> None:
    model, x, y = problem()
    assert torch.equal(run(name, model, x, y + 1, ThreatModel("l2"), queries=50), x)
    assert (model.counts <= 50).all()


def test_colored_noise_keeps_its_shape_and_loses_its_top() -> None:
    noise = torch.randn(2, 3, 400)
    for width in WIDTHS:
        out = _colored(noise, width)
        assert out.shape == noise.shape
        share_of_high_frequencies = (
            torch.fft.rfft(out).abs()[..., 150:].mean() / torch.fft.rfft(noise).abs()[..., 150:].mean()
        )
        assert share_of_high_frequencies < (0.6 if width > 1 else 1.01)


def test_kenansville_removes_the_weakest_components_and_no_more() -> None:
    """The model predicts class 0 while the weaker of two tones is present: only that one is removed."""
    t = torch.arange(256) / 256
    tone = torch.sin(2 * math.pi * 20 * t)
    torch.manual_seed(0)
    x = (0.5 * torch.sin(2 * math.pi * 40 * t) + 0.1 * tone + 0.001 * torch.randn(2, 256)).float()
    calls = []

    def model(x: Tensor) -> Tensor:
        calls.append(len(x))
        s = x @ tone / 128 - 0.05
        return torch.stack([s, -s], 1)

    x_adv = run("kenansville", model, x, torch.zeros(2, dtype=torch.long), ThreatModel("l2", bounds=(-1.0, 1.0)))  # type: ignore[arg-type]
    assert len(calls) <= 36
    spectrum = torch.fft.rfft(x_adv).abs() / 128
    assert (model(x_adv).argmax(1) == 1).all()
    assert (spectrum[:, 20] < 1e-4).all()
    assert (spectrum[:, 40] > 0.49).all()
    removed = x.flatten(1) - x_adv
    assert (norm_of(removed, "l2") < 0.1 * math.sqrt(128) + 0.05).all()


def test_kenansville_finds_a_success_between_two_failures() -> None:
    """The weak tone gives away the class; silence has the label of the clip. Only what removes the weak tone and keeps
    the strong one succeeds."""
    t = torch.arange(256) / 256
    weak, strong = (torch.sin(2 * math.pi * f * t) for f in (20, 40))
    x = (0.5 * strong + 0.1 * weak).expand(3, -1)
    counts = torch.zeros(3, dtype=torch.long)

    def model(x: Tensor) -> Tensor:
        counts[: len(x)] += 1
        s = torch.stack([x @ weak / 128 - 0.05, 0.25 - x @ strong / 128], 1).amax(1)
        return torch.stack([s, -s], 1)

    assert (model(torch.zeros_like(x)).argmax(1) == 0).all()
    counts.zero_()
    y = torch.tensor([0, 0, 1])
    x_adv = run("kenansville", model, x, y, ThreatModel("l2"))  # type: ignore[arg-type]
    torch.testing.assert_close(x_adv[:2], 0.5 * strong.expand(2, -1), atol=1e-5, rtol=0)
    assert torch.equal(x_adv[2], x[2]), "misclassified before"
    assert counts[0] <= 1 + 20 + 15


def test_kenansville_refuses_spectra_and_targets() -> None:
    model, x, y = problem()
    with pytest.raises(ValueError, match="waveform"):
        run("kenansville", model, x[:, None], y, ThreatModel("l2"))
    with pytest.raises(ValueError, match="target"):
        run("kenansville", model, x, y, ThreatModel("l2"), targeted=True)


@pytest.mark.parametrize("name", [*DECISIONS, "kenansville"])
def test_decisions_keep_to_a_finite_budget(name: str) -> None:
    model, x, y = problem()
    model.b -= 0.9 * (x @ model.w + model.b)
    model.b[2:] += 10
    threat = ThreatModel("l2", 0.01)
    keys = {} if name == "kenansville" else {"queries": 200}
    assert threat.contains(run(name, model, x, y, threat, **keys), x).all()


@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_probes_are_not_rounded_away_at_a_budget_of_one_step(name: str) -> None:
    """The margin of a linear model rises, though a third of the budget is less than half a step of 16 bits."""
    step = 2.0**-15
    w = torch.linspace(-1, 1, 64)
    model = lambda x: torch.stack([100 + x @ w, x @ w * 0], 1)  # noqa: E731
    x, y = torch.zeros(3, 64), torch.zeros(3, dtype=torch.long)
    threat = ThreatModel("linf", step, (-1.0, 1 - step), grid=step)
    x_adv = run(name, model, x, y, threat, queries=400)  # type: ignore[arg-type]
    assert (model(x_adv)[:, 0] < model(x)[:, 0]).all()
    assert threat.contains(x_adv.double(), x.double(), tolerance=0).all()


class Island:
    """Class 2 within 1 of a point 8 away from silence, class 1 beyond 1 along another axis, else class 0. Noise does
    not reach the island. Counts the queries per example."""

    def __init__(self, batch: int):
        self.center = torch.zeros(40)
        self.center[1] = 8
        self.counts, self.index = torch.zeros(batch, dtype=torch.long), torch.arange(batch)

    def __call__(self, x: Tensor) -> Tensor:
        self.counts[self.index] += 1
        island = 1 - (x - self.center).norm(dim=1)
        return torch.stack([torch.zeros_like(island), x[:, 0] - 1, 100 * island], 1)

    def select(self, index: Tensor) -> Island:
        part = object.__new__(Island)
        part.__dict__.update(self.__dict__)
        part.index = self.index[index]
        return part


def three_classes() -> tuple[Island, Tensor, tuple[Tensor, Tensor]]:
    """The model of an island, two silent clips of class 0, and examples of all classes."""
    model = Island(2)
    on_island = model.center + 0.1 * torch.arange(1, 6)[:, None] * torch.eye(40)[3:8]
    examples = torch.cat([on_island, torch.zeros(1, 40), 2 * torch.eye(40)[:1]])
    return model, torch.zeros(2, 40), (examples, torch.tensor([2, 2, 2, 2, 2, 0, 1]))


@pytest.mark.parametrize("name", DECISIONS)
def test_a_target_that_noise_does_not_reach_is_reached_from_its_examples(name: str) -> None:
    model, x, examples = three_classes()
    y, threat = torch.tensor([2, 2]), ThreatModel("l2")
    assert torch.equal(run(name, model, x, y, threat, queries=400, targeted=True), x), "no start"
    x_adv = run(name, model, x, y, threat, queries=400, targeted=True, examples=examples)
    assert (model(x_adv).argmax(1) == 2).all()
    assert (norm_of(x_adv - x, "l2") >= 7 - 1e-4).all(), "the shore"
    assert (norm_of(x_adv - x, "l2") < 7.05).all()
    assert (model.counts <= 400 + 400 + 1).all()


def test_examples_of_other_classes_are_no_start_and_without_a_target_there_are_none() -> None:
    model, x, examples = three_classes()
    for y, targeted, labels in (([2, 2], True, [0, 0, 0, 0, 0, 1, 1]), ([0, 0], False, [2] * 7)):
        arguments = (model, x, torch.tensor(y), ThreatModel("l2"), RandomStreams(0, "ab", "start"), targeted)
        tries = 0 if not targeted else 1
        point, has_start = start(Oracle(ActiveBatch(*arguments), 100), tries, (examples[0], torch.tensor(labels)))
        assert torch.equal(point, x)
        assert not has_start.any()


def test_the_start_is_the_nearest_boundary_among_the_examples() -> None:
    """A far example lies beyond a boundary near the clip, a near one beyond a far boundary; a clip of the target
    class needs no start."""

    def model(x: Tensor) -> Tensor:  # along axis 0 class 1 begins at 3, along axis 1 at 0.5
        inside = ((x[:, 0] >= 3) | (x[:, 1] >= 0.5)).float()
        return torch.stack([1 - inside, inside], 1)

    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [4.0, 0.0]])
    examples = torch.tensor([[3.2, 0.0], [0.0, 5.0], [9.0, 9.0]]), torch.tensor([1, 1, 0])
    streams = RandomStreams(0, "abc", "start")
    oracle = Oracle(ActiveBatch(model, x, torch.tensor([1, 1, 1]), ThreatModel("l2"), streams, True), 100)
    point, has_start = start(oracle, 0, examples)
    assert has_start.all()
    torch.testing.assert_close(point[:2], torch.tensor([[0.0, 0.5]] * 2), atol=0.02, rtol=0)
    assert torch.equal(point[2], x[2])
    assert oracle.used.tolist() == [1 + 2 * (1 + 8)] * 2 + [1]
    assert NEARER * 3 > 0.5
