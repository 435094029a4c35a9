"""Threat models: projections are feasible, idempotent and nearest points; SNR budgets are exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.budget import Budget
from src.random_streams import RandomStreams
from src.threat import NORMS, ThreatModel, norm_of

seeds = st.integers(0, 10**6)
norms = st.sampled_from(NORMS)
EXAMPLES = settings(max_examples=60, deadline=None)


def points(seed: int, shape: tuple[int, ...] = (3, 4, 5)) -> tuple[Tensor, Tensor, Tensor]:
    """(x within [-1, 1], a far point, a mask)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    far = x + torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, far, torch.rand(shape, generator=generator) < 0.7


def budget(norm: str, size: float) -> float:
    return round(size * 10) if norm == "l0" else size


@EXAMPLES
@given(seeds, norms, st.floats(0, 3), st.booleans(), st.booleans())
def test_projection_is_inside_and_idempotent(seed: int, norm: str, size: float, bounded: bool, masked: bool) -> None:
    x, far, mask = points(seed)
    threat = ThreatModel(
        norm, budget(norm, size), (-1, 1) if bounded else (-math.inf, math.inf), mask if masked else None
    )
    projected = threat.project(far, x)
    assert threat.contains(projected, x).all()
    torch.testing.assert_close(threat.project(projected, x), projected, rtol=0, atol=1e-9)
    torch.testing.assert_close(threat.project(x, x), x, rtol=0, atol=0)


@EXAMPLES
@given(seeds, st.sampled_from(["linf", "l2", "l1"]), st.floats(0.01, 3), st.booleans())
def test_projection_is_the_nearest_point(seed: int, norm: str, size: float, masked: bool) -> None:
    """<far - p, q - p> <= 0 for every other legal q: the property that defines a projection onto a convex set."""
    x, far, mask = points(seed)
    threat = ThreatModel(norm, size, mask=mask if masked else None)
    p, q = threat.project(far, x), threat.project(points(seed + 1)[1], x)
    allowed = threat.masked(far - x) + x
    assert (((allowed - p) * (q - p)).flatten(1).sum(1) <= 1e-9).all()


@EXAMPLES
@given(seeds, st.sampled_from(["linf", "l2", "l1"]))
def test_ascent_is_steepest(seed: int, norm: str) -> None:
    _, gradient, mask = points(seed)
    threat = ThreatModel(norm, 1.0, mask=mask)
    step = threat.ascent(gradient)
    assert (norm_of(step, norm) <= 1 + 1e-9).all()
    dual = norm_of(threat.masked(gradient), {"linf": "l1", "l2": "l2", "l1": "linf"}[norm])
    torch.testing.assert_close((step * gradient).flatten(1).sum(1), dual)


@EXAMPLES
@given(seeds, st.sampled_from(["linf", "l2", "l1"]), st.floats(0, 2))
def test_random_start_is_inside(seed: int, norm: str, size: float) -> None:
    x, _, mask = points(seed)
    threat = ThreatModel(norm, size, (-1, 1), mask)
    assert threat.contains(threat.random_start(x, RandomStreams(seed, "abc", "start")), x).all()


@EXAMPLES
@given(seeds, st.floats(0, 2), st.booleans(), st.booleans())
def test_box_projects_as_project_does(seed: int, size: float, bounded: bool, masked: bool) -> None:
    x, far, mask = points(seed)
    threat = ThreatModel("linf", size, (-1, 1) if bounded else (-math.inf, math.inf), mask if masked else None)
    low, high = threat.box(x)
    torch.testing.assert_close(far.clamp(low, high), threat.project(far, x), rtol=0, atol=1e-12)


def test_infinite_box_and_projection() -> None:
    x, far, mask = points(0)
    threat = ThreatModel("linf", math.inf, mask=mask)
    assert torch.equal(far.clamp(*threat.box(x)), torch.where(mask, far, x))
    for norm in ("linf", "l2", "l1"):
        torch.testing.assert_close(ThreatModel(norm, math.inf).project(far, x), far)


def test_an_input_outside_the_bounds_may_stay() -> None:
    x = torch.tensor([[1.5, 0.0]])
    threat = ThreatModel("linf", 0.1, (-1, 1))
    assert torch.equal(threat.project(x, x), x)
    assert threat.contains(x, x).all()
    assert torch.equal(x.clamp(*threat.box(x)), x)


def test_contains_refuses() -> None:
    x = torch.zeros(1, 4)
    mask = torch.tensor([[True, True, True, False]])
    threat = ThreatModel("linf", 0.1, (-0.05, 1), mask)
    for bad in ([0.11, 0, 0, 0], [-0.06, 0, 0, 0], [0, 0, 0, 0.01], [math.nan, 0, 0, 0]):
        assert not threat.contains(torch.tensor([bad]), x).any()
    assert threat.contains(torch.tensor([[0.1, -0.05, 0.0, 0.0]]), x).all()


@EXAMPLES
@given(seeds, st.sampled_from(["linf", "l2"]), st.floats(-10, 60), st.booleans())
def test_snr_budget_is_exact(seed: int, norm: str, snr: float, masked: bool) -> None:
    """The largest legal perturbation has that SNR: any direction for l2, all unmasked entries +-eps for linf."""
    x, _, mask = points(seed)
    mask[:, 0, 0] = True
    used_mask = mask if masked else None
    eps = Budget(snr, True).eps(x, norm, used_mask)
    direction = torch.ones_like(x) if used_mask is None else used_mask.to(x.dtype)
    if norm == "l2":
        direction = direction / direction.flatten(1).norm(dim=1)[:, None, None]
    delta = direction * eps[:, None, None]
    measured = 20 * (norm_of(x, "l2") / norm_of(delta, "l2")).log10()
    torch.testing.assert_close(measured, torch.full((3,), snr, dtype=x.dtype), rtol=0, atol=1e-6)


def test_budget_refuses() -> None:
    for text in ("-1", "loud", "3 bels", "", "nan", "inf", "-inf dB", "1e999"):
        with pytest.raises(ValueError, match="budget"):
            Budget.parse(text)
    with pytest.raises(ValueError, match="dB"):
        Budget(20, True).eps(torch.ones(1, 4), "l1")
    with pytest.raises(ValueError, match="unknown norm"):
        ThreatModel("l3")
    with pytest.raises(ValueError, match="negative"):
        ThreatModel("l2", -1.0)


def test_select_keeps_what_belongs_to_an_example() -> None:
    x, _, mask = points(0)
    threat = ThreatModel("linf", torch.tensor([0.1, 0.2, 0.3], dtype=x.dtype), mask=mask)
    part = threat.select(torch.tensor([2, 0]))
    assert torch.equal(part.budgets(x[[2, 0]]), torch.tensor([0.3, 0.1], dtype=x.dtype))
    assert torch.equal(part.mask, mask[[2, 0]])
    shared = ThreatModel("linf", 0.1, mask=mask[:1]).select(torch.tensor([2]))
    assert torch.equal(shared.mask, mask[:1])


STEP = 2.0**-15


def on_grid(seed: int, level: float) -> tuple[Tensor, Tensor]:
    """(float32 clips [3, 4000] of 16-bit samples, noise of this level)."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(3, 4000, generator=generator) * 8000).round().clamp(-32768, 32767) * STEP
    return x, torch.randn(3, 4000, generator=generator) * level


@EXAMPLES
@given(seeds, norms, st.sampled_from([0.0, 1e-5, 2e-4, 0.01, 0.1, 3.0]), st.sampled_from([1e-6, 1e-4, 0.1]))
def test_snap_finds_a_legal_point_of_the_grid(seed: int, norm: str, size: float, level: float) -> None:
    x, noise = on_grid(seed, level)
    mask = torch.arange(4000) % 7 > 0
    threat = ThreatModel(norm, budget(norm, size), (-1, 1 - STEP), mask[None], STEP).floored()
    snapped = threat.snap(threat.project(x + noise, x), x)
    assert (snapped * 32768 == (snapped * 32768).round()).all()
    assert threat.contains(snapped.double(), x.double(), tolerance=0).all()
    torch.testing.assert_close(threat.snap(snapped, x), snapped, rtol=0, atol=0)
    torch.testing.assert_close(threat.snap(x, x), x, rtol=0, atol=0)


@pytest.mark.parametrize(("norm", "size"), [("l2", 0.02), ("l2", 0.005), ("l1", 0.5), ("l1", 5.0)])
def test_snap_wastes_little_of_the_budget(norm: str, size: float) -> None:
    """Plain rounding leaves the ball; what snap returns has nearly its radius."""
    x, noise = on_grid(0, 1e-4)
    threat = ThreatModel(norm, size, (-1, 1 - STEP), None, STEP)
    on_border = threat.project(x + noise * 1000, x)
    rounded = (on_border * 32768).round() / 32768
    assert (norm_of(rounded - x, norm) > size).any() or norm == "l1"
    used = norm_of(threat.snap(on_border, x) - x, norm) / size
    assert (used <= 1).all()
    assert (used > 0.98).all()


def test_snap_only_rounds_what_is_outside_the_ball() -> None:
    """A search for the smallest perturbation passes through points beyond the budget, and must see them as they are."""
    x, noise = on_grid(0, 1e-3)
    threat = ThreatModel("l2", 0.01, (-1, 1 - STEP), None, STEP)
    outside = threat.clip(x + noise, x)
    torch.testing.assert_close(threat.snap(outside, x), x + ((outside - x) * 32768).round() / 32768, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("size", [0.001, 0.003, 0.01])
def test_small_budgets_around_full_scale_are_kept(norm: str, size: float) -> None:
    """x + delta is rounded by more than a share of such a budget, in float32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.where(torch.rand(40, 2000, generator=generator) < 0.5, -1.0, 1 - STEP)
    threat = ThreatModel(norm, size, (-1, 1 - STEP), None, STEP)
    far = x + 0.01 * torch.randn(x.shape, generator=generator)
    snapped = threat.snap(threat.project(far, x), x, beyond=math.inf)
    assert threat.contains(snapped.double(), x.double(), tolerance=0).all()


@pytest.mark.parametrize(
    ("eps", "steps"),
    [(9.15527e-05, 3), (0.000183105, 6), (0.000793457, 26), (2e-4, 6), (5e-4, 16), (1 / 32768, 1), (3e-5, 0), (0.0, 0)],
)
def test_linf_budgets_are_rounded_down_to_the_grid(eps: float, steps: int) -> None:
    assert ThreatModel("linf", eps, grid=STEP).floored().eps == steps * STEP
    per_example = ThreatModel("linf", torch.tensor([eps, math.inf]), grid=STEP).floored().eps
    assert isinstance(per_example, Tensor)
    assert per_example.tolist() == [steps * STEP, math.inf]
    assert ThreatModel("l2", eps, grid=STEP).floored().eps == eps
    assert ThreatModel("linf", eps).floored().eps == eps


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("level", [1.0, 30.0, 3e4])
def test_what_project_makes_is_contained_whatever_the_level(norm: str, level: float) -> None:
    """Corner points of small balls around large values: float32 rounds them by far more than a share of eps."""
    x, noise = points(0, (8, 40, 50))[:2]
    x = (x * level).float()
    threat = ThreatModel(norm, 0.002 if norm == "linf" else 0.1)
    corner = threat.project(x + 1e3 * noise.float().sign(), x)
    assert threat.contains(corner, x).all()
    twice = x + 2 * (threat.project(x + noise.float(), x) - x)
    if level == 1.0:
        assert not threat.contains(twice, x).any(), "the slack is that of the rounding alone"


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_point_of_the_grid_is_inside_on_a_long_clip_that_is_loud_and_then_quiet(norm: str) -> None:
    """Five seconds at 32 kHz: where a norm loses digits, a perturbation of exactly the budget exceeds it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 160000, generator=generator) * 0.01
    x[:, :300] += torch.randn(6, 300, generator=generator) * 0.2
    x = (x.clamp(-0.9, 0.9) * 32768).round() / 32768
    far = x + torch.randn(6, 160000, generator=generator) * 0.05
    threat, exact = (
        ThreatModel(norm, norm_of(clip, norm) / 10, (-1.0, 1 - 1 / 32768), grid=1 / 32768) for clip in (x, x.double())
    )
    x_adv = threat.snap(threat.project(far, x), x)
    assert exact.contains(x_adv.double(), x.double(), 0).all()
    size = norm_of(x_adv.double() - x.double(), norm)
    torch.testing.assert_close(size, exact.budgets(x.double()), rtol=1e-3, atol=0)
