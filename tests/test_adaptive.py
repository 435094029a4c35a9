"""BPDA and EOT: the right value forward, the right gradient backward, and an attack that gets through with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from src.attacks.model import confirmed, votes
from src.evaluation.call_counter import CallCounter
from src.evaluation.predict import ballots, majority
from src.evaluation.recorder import Recorder
from src.losses import fooled
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel
from src.victims.adaptive import Bpda, Eot, adaptive, once
from src.victims.chain import Chain
from src.victims.stage import Stage, replicated


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

    def substitute(self, x: Tensor, value: Tensor) -> Tensor:
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


class Framed(Round):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 4, -1).round()


def test_bpda_needs_a_substitute_where_the_shape_changes() -> None:
    with pytest.raises(ValueError, match="substitute"):
        Bpda(Framed())(X.clone().requires_grad_())
    assert Bpda(Framed())(X).shape == (5, 4, 4)


def test_the_gradient_is_replicated_where_the_length_changes() -> None:
    """Half the length: each value stands for two of the input, which both get half of its gradient."""
    leaf = X.clone().requires_grad_()
    out = Bpda(Shorten())(leaf)
    assert torch.equal(out, Shorten()(X))
    weight = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
    assert torch.equal(grad, weight.repeat_interleave(2, 1) / 2)


@pytest.mark.parametrize(("n", "length"), [(16, 8), (16, 5), (16, 16), (7, 21), (7, 10)])
def test_replication_keeps_the_time_and_the_level(n: int, length: int) -> None:
    x = torch.linspace(0, 1, n).expand(2, 3, n).clone().requires_grad_()
    out = replicated(x, length)
    assert out.shape == (2, 3, length)
    torch.testing.assert_close(replicated(torch.ones(2, n), length), torch.ones(2, length))
    centers = (torch.arange(length) + 0.5) / length * n - 0.5  # of the intervals, in samples of x
    assert ((out[0, 0] * (n - 1) - centers).abs() <= 0.75).all(), "a ramp stays a ramp"
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (grad > 0).all(), "no part of the input is left without gradient"


def test_the_identity_instead_of_a_better_substitute() -> None:
    def gradient(stage: Stage, identity: bool) -> Tensor:
        leaf = X.clone().requires_grad_()
        model = adaptive(Chain([stage], nn.Identity()), identity=identity)
        (grad,) = torch.autograd.grad(model(leaf).sum(), leaf)  # type: ignore[arg-type]
        return grad

    torch.testing.assert_close(gradient(Squared(), False), 2 * X)
    assert torch.equal(gradient(Squared(), True), torch.ones_like(X))
    assert torch.equal(gradient(Shorten(), True), torch.full_like(X, 0.5))


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


class Coin(Stage):
    """Adds a large value to the first entry in a share of the draws: a model that errs with this probability there."""

    randomized = True

    def __init__(self, share: float):
        super().__init__("coin")
        self.share = share

    def draw(self, x: Tensor, rng: RandomStreams) -> Tensor:
        heads = rng.uniform(x[:, :1]) < self.share
        return torch.cat([x[:, :1] + 100 * heads, x[:, 1:]], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(x, RandomStreams(0, [str(i) for i in range(len(x))], "forward"))


def coin_model(share: float, gap: float = 1.0) -> Chain:
    """Wrong where the coin shows heads, or the second entry exceeds the gap."""
    layer = nn.Linear(16, 2, bias=True).requires_grad_(False)
    layer.weight.zero_()
    layer.bias.zero_()
    layer.weight[1, :2] = 1.0
    layer.bias[1] = -gap
    return Chain([Coin(share)], layer).eval()


IDS = [str(i) for i in range(8)]


@pytest.mark.parametrize(("share", "stands"), [(0.0, False), (0.5, False), (0.7, False), (0.99, True)])
def test_a_success_takes_the_votes_of_fresh_draws(share: float, stands: bool) -> None:
    x, y = torch.zeros(8, 16), torch.zeros(8, dtype=torch.long)
    eot = adaptive(coin_model(share), rng=RandomStreams(0, IDS, "eot"), draws=4)
    assert votes(eot, x).shape == (20, 8, 2)  # type: ignore[union-attr]
    lucky = torch.ones(8, dtype=torch.bool)
    assert (confirmed(eot, x, lucky, y, False) == stands).float().mean() >= 7 / 8
    assert not confirmed(eot, x, ~lucky, y, False).any(), "failures are not asked again"


def test_a_deterministic_model_needs_no_votes() -> None:
    model = net()
    counter = CallCounter.start(model, 5)
    assert votes(model, X) is None
    assert votes(counter, X) is None
    assert confirmed(counter, X, torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.long), False).all()
    assert counter.forwards.sum() == 0


@pytest.mark.parametrize("name", ["pgd", "apgd", "standard", "ddn", "fmn", "cw", "hopskipjump", "square"])
def test_attacks_do_not_stop_on_the_boundary_of_a_random_model(name: str) -> None:
    """Half of the draws at margin 0 are wrong; only a point beyond the noise fools the majority for certain."""
    chain = Chain([Noise(0.3)], coin_model(0.0, gap=0.5).classifier).eval()
    x, y = torch.zeros(8, 16), torch.zeros(8, dtype=torch.long)
    bounded = name in ("pgd", "apgd", "standard", "square")
    threat = ThreatModel("linf" if bounded else "l2", 2.0 if bounded else float("inf"))
    in_samples = {"queries": 400, "space": "samples", "sample_rate": 16000}
    options = {"hopskipjump": in_samples, "square": {"queries": 100}, "cw": {"steps": 50}}.get(name, {})
    eot = adaptive(chain, rng=RandomStreams(0, IDS, "eot"), draws=10)
    x_adv = ATTACKS[name](eot, x, y, threat, rng=RandomStreams(0, IDS, name), targeted=False, **options)
    labels = ballots(chain, x_adv, RandomStreams(1, IDS, "judge"))
    assert labels.shape == (20, 8)
    assert (labels == 1).float().mean() > 0.65, "about half without votes"
    assert (majority(labels) == 1).all()


def test_every_draw_is_counted() -> None:
    eot = adaptive(coin_model(0.0), rng=RandomStreams(0, IDS, "eot"), draws=7)
    counter = CallCounter.start(eot, 8)
    x = torch.zeros(8, 16, requires_grad=True)
    (counter(x).sum() + 0 * x.sum()).backward()
    assert counter.forwards.tolist() == [7] * 8
    assert counter.backwards.tolist() == [7] * 8
    part = counter.select(torch.tensor([2]))
    votes(part, torch.zeros(1, 16))
    assert counter.forwards.tolist() == [7, 7, 27, 7, 7, 7, 7, 7]


def test_the_majority_of_the_draws_decides() -> None:
    x = torch.zeros(8, 16)
    for share, label in ((0.2, 0), (0.8, 1)):
        labels = ballots(coin_model(share), x, RandomStreams(0, IDS, "judge"))
        assert (majority(labels) == label).all()
        assert abs((labels == 1).float().mean() - share) < 0.15
    assert ballots(Chain([], net()), X, RandomStreams(0, "abcde", "judge")).shape == (1, 5)


@pytest.mark.parametrize("name", ["cw", "ddn", "pgd"])
def test_a_random_model_is_attacked_the_same_alone_in_a_batch_and_under_observation(name: str) -> None:
    """Examples that are done draw no more numbers, whatever the others need; and a recorder is asked for votes too."""
    chain = Chain([Noise(0.3)], net()).eval()
    y, ids = chain.classify(X).argmax(1), list("abcde")
    threat = ThreatModel("linf" if name == "pgd" else "l2", 1.0 if name == "pgd" else float("inf"))
    options = {"cw": {"steps": 20, "search_steps": 2}, "ddn": {"steps": 20}, "pgd": {"steps": 5}}[name]

    def attack(index: Tensor, recorded: bool = False) -> Tensor:
        some = [ids[i] for i in index]
        model = adaptive(chain, rng=RandomStreams(0, some, "eot"), draws=4)
        if recorded:
            model = Recorder.of(model, X[index], y[index], threat.select(index), False)  # type: ignore[assignment]
        rng = RandomStreams(0, some, name)
        return ATTACKS[name](model, X[index], y[index], threat, rng=rng, targeted=False, **options)

    together = attack(torch.arange(5))
    assert not torch.equal(together, X)
    for i in range(5):
        torch.testing.assert_close(attack(torch.tensor([i])), together[i : i + 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attack(torch.arange(5), recorded=True), together, rtol=0, atol=0)
