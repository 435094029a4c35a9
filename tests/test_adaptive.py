"""BPDA and EOT: the right value forward, the right gradient backward, and an attack that gets through with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from src.losses import fooled
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.adaptive import Bpda, Eot, adaptive, once
from src.victims.chain import Chain
from src.victims.stage import Stage


class Round(Stage):
    """A quantiser: its gradient is zero everywhere."""

    differentiable = False

    def __init__(self) -> None:
        super().__init__("round")

    def forward(self, x: Tensor) -> Tensor:
        return (x * 4).round() / 4


class Squared(Round):
    """A quantiser after a square, with the square as its smooth substitute."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x**2)

    def substitute(self, x: Tensor) -> Tensor:
        return x**2


class Noise(Stage):
    """Additive noise from the examples' own streams."""

    randomized = True

    def __init__(self, sigma: float):
        super().__init__("noise")
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x)

    def draw(self, x: Tensor, rng: RandomStreams) -> Tensor:
        return x + self.sigma * rng.normal(x)


class Shorten(Round):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::2].round()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(16, 4).requires_grad_(False)


X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


def test_bpda_forward_is_exact_and_backward_the_identity() -> None:
    leaf = X.clone().requires_grad_()
    out = Bpda(Round())(leaf)
    assert torch.equal(out, Round()(X))
    weight = torch.randn_like(X)
    (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
    assert torch.equal(grad, weight)


def test_bpda_with_a_substitute() -> None:
    leaf = X.clone().requires_grad_()
    out = Bpda(Squared())(leaf)
    assert torch.equal(out, Squared()(X))
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    torch.testing.assert_close(grad, 2 * X)


def test_bpda_needs_a_substitute_where_the_shape_changes() -> None:
    with pytest.raises(ValueError, match="substitute"):
        Bpda(Shorten())(X.clone().requires_grad_())
    assert Bpda(Shorten())(X).shape == (5, 8)


def test_a_plain_chain_comes_back_as_it_is() -> None:
    chain = Chain([], net())
    assert adaptive(chain) is chain


def test_attack_needs_bpda_and_gets_through_with_it() -> None:
    chain = Chain([Round()], net()).eval()
    y, threat = chain(X).argmax(1), ThreatModel("linf", 0.6)

    def success(model: nn.Module) -> float:
        x_adv = ATTACKS["pgd"](model, X, y, threat, rng=RandomStreams(0, "abcde", "pgd"), targeted=False)
        return float(fooled(chain(x_adv), y).float().mean())

    wrapped = adaptive(chain)
    assert torch.equal(wrapped(X), chain(X))
    assert not wrapped.training
    assert success(wrapped) == 1.0
    assert success(chain) < 1.0


def test_eot_is_the_log_of_the_mean_probability() -> None:
    chain = Chain([Noise(0.5)], net())
    eot = adaptive(chain, rng=RandomStreams(0, "abcde", "eot"), draws=7)
    assert isinstance(eot, Eot)
    same = RandomStreams(0, "abcde", "eot")
    mean = torch.stack([once(chain, X, same).softmax(1) for _ in range(7)]).mean(0)
    torch.testing.assert_close(eot(X), mean.log())
    with pytest.raises(ValueError, match="random streams"):
        adaptive(chain)


def test_eot_draws_belong_to_the_example() -> None:
    chain = Chain([Noise(0.5)], net())
    keep = torch.tensor([3, 1])
    whole = Eot(chain, 3, RandomStreams(0, "abcde", "eot"))(X)
    part = Eot(chain, 3, RandomStreams(0, "abcde", "eot")).select(keep)(X[keep])
    torch.testing.assert_close(whole[keep], part)


def test_both_at_once_pass_a_gradient() -> None:
    chain = Chain([Noise(0.1), Round()], net())
    leaf = X.clone().requires_grad_()
    model = adaptive(chain, rng=RandomStreams(0, "abcde", "eot"), draws=3)
    (grad,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    assert (grad != 0).float().mean() > 0.9


def test_bpda_keeps_what_the_stage_knows() -> None:
    stage = Noise(0.1)
    stage.bounds, stage.differentiable = (-2.0, 2.0), False
    wrapped = Bpda(stage)
    assert (wrapped.name, wrapped.bounds, wrapped.randomized) == ("noise", (-2.0, 2.0), True)
    assert wrapped.differentiable
    assert torch.equal(wrapped.draw(X, RandomStreams(0, "abcde", "x")), stage.draw(X, RandomStreams(0, "abcde", "x")))
