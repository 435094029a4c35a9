"""Objectives: the sign of the margin is success whatever the sign of the logits; DLR is invariant to scaling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.losses import LOSSES, cross_entropy, dlr, fooled, margin

seeds = st.integers(0, 10**6)


def logits(seed: int, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, classes, generator=generator), torch.randint(classes, (8,), generator=generator)


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(-100, 100), st.booleans())
def test_margin_is_positive_exactly_when_fooled(seed: int, shift: float, targeted: bool) -> None:
    z, y = logits(seed)
    assert torch.equal(margin(z + shift, y, targeted) > 0, fooled(z + shift, y, targeted))
    torch.testing.assert_close(margin(z + shift, y, targeted), margin(z, y, targeted), rtol=0, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.01, 100), st.booleans())
def test_dlr_is_invariant_to_scaling(seed: int, scale: float, targeted: bool) -> None:
    z, y = logits(seed)
    torch.testing.assert_close(dlr(z * scale, y, targeted), dlr(z, y, targeted), rtol=1e-4, atol=1e-4)
    assert torch.equal(dlr(z, y, targeted) > 0, margin(z, y, targeted) > 0)


def test_dlr_of_a_correct_prediction_is_between_minus_one_and_zero() -> None:
    z, _ = logits(0)
    value = dlr(z, z.argmax(1))
    assert (value >= -1 - 1e-5).all()
    assert (value <= 0).all()


def test_dlr_needs_classes() -> None:
    for classes, targeted in ((2, False), (3, True)):
        z, y = logits(0, classes)
        with pytest.raises(ValueError, match="classes"):
            dlr(z, y, targeted)


@pytest.mark.parametrize("name", list(LOSSES))
def test_larger_is_nearer_to_success(name: str) -> None:
    z = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
    nearer_logits = torch.tensor([[2.0, 1.9, 0.0, -1.0]])
    label, target = torch.tensor([0]), torch.tensor([1])
    loss = LOSSES[name]
    assert loss(nearer_logits, label) > loss(z, label)
    assert loss(nearer_logits, target, True) > loss(z, target, True)
    assert loss(z, label).shape == (1,)


def test_cross_entropy_and_nan() -> None:
    z, y = logits(1)
    torch.testing.assert_close(cross_entropy(z, y), -z.log_softmax(1).gather(1, y[:, None]).squeeze(1))
    torch.testing.assert_close(cross_entropy(z, y, True), -cross_entropy(z, y))
    z[0, 3] = torch.nan
    assert not fooled(z, y)[0]
    assert not fooled(z, y, True)[0]
