"""A victim can be cut at every representation, and its frozen copy computes the same."""

from __future__ import annotations

import pytest
import torch

from src.victims import checkpoint
from src.victims.victim import Victim

CASES = [
    ("cnn", "linear_mel", {"divisor": 1.0}),
    ("bc_resnet", "log_mel", {"normalize": "dataset", "pre_emphasis": 0.97}),
    ("tc_resnet8", "mfcc", {}),
    ("bc_resnet", "log_mel", {"log": "db", "offset": 1e-10}),
]


def victim(model: str, front_end: str, options: dict[str, object]) -> Victim:
    torch.manual_seed(0)
    return checkpoint.build(
        model=model,
        front_end=front_end,
        front_end_options=options,
        classes=list("abcd"),
        sample_rate=16000,
        n_samples=16000,
    ).eval()


@pytest.mark.parametrize(("model", "front_end", "options"), CASES)
def test_every_cut_gives_the_whole(clips, model: str, front_end: str, options: dict[str, object]) -> None:
    own = victim(model, front_end, options)
    x = clips.waveforms(slice(2))
    logits = own(x)
    for name in own.representations:
        head, tail = own.split(name)
        torch.testing.assert_close(tail(head(x)), logits)
        low, high = own.bounds(name)
        assert (head(x) >= low).all()
        assert (head(x) <= high).all()


@pytest.mark.parametrize(("model", "front_end", "options"), CASES)
def test_frozen_computes_the_same(clips, model: str, front_end: str, options: dict[str, object]) -> None:
    own = victim(model, front_end, options)
    with torch.no_grad():  # statistics and weights as after some training, not the fresh ones that hide mistakes
        for module in own.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    frozen = own.frozen()
    # Noise, because in near silence a max-pool decides between values that differ by rounding alone.
    noise = torch.randn(4, clips.n_samples, generator=torch.Generator().manual_seed(0))
    x = (clips.waveforms(slice(4)) + 0.3 * noise).requires_grad_()
    logits, fast = own(x), frozen(x)
    scale = logits.detach().abs().max()
    assert (logits - fast).abs().max() <= 1e-5 * max(1.0, float(scale))
    gradient, fast_gradient = (torch.autograd.grad(z.square().sum(), x)[0] for z in (logits, fast))
    assert (gradient - fast_gradient).norm() <= 1e-4 * gradient.norm()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in own.classifier.parameters())


def test_unknown_representation_lists_choices() -> None:
    with pytest.raises(ValueError, match=r"no representation 'log-mel' \(choices: waveform, magnitude, mel, log_mel"):
        victim("bc_resnet", "log_mel", {}).split("log-mel")


def test_lipschitz_of_the_head() -> None:
    own = victim("bc_resnet", "log_mel", {})
    assert own.lipschitz("waveform") == 1.0
    assert own.lipschitz("magnitude") > 1
    assert own.lipschitz("mel") is None  # a power spectrum has no global constant
