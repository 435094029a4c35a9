"""The planted example is really there and not found by chance; a working attack finds it, a crippled one does not."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from experiments import self_test as self_test_study
from src.datasets.store import Clips
from src.evaluation import reference_search
from src.evaluation.planted_test import Problem, SelfTest, plant, self_test
from src.losses import fooled
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import NORMS, ThreatModel, norm_of

Net = tuple[torch.nn.Module, Tensor, Tensor]
BUDGETS = {"linf": 0.001, "l2": 0.1, "l1": 2.0, "l0": 400.0}


def streams(purpose: str, clips: int = 8) -> RandomStreams:
    return RandomStreams(0, [f"clip{i}" for i in range(clips)], purpose)


@pytest.fixture
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(100, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).requires_grad_(False)


def outcome_of(attack: object, trained_net: Net, norm: str, points: int = 20) -> SelfTest:
    model, x, _ = trained_net
    threat = ThreatModel(norm, BUDGETS[norm], (-1.0, 1.0))
    return self_test(attack, model, x[:8], threat, streams=streams, points=points)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_finds_what_crippled_attacks_miss(trained_net: Net, norm: str) -> None:
    outcome = outcome_of(partial(ATTACKS["pgd"], steps=100), trained_net, norm)
    assert outcome.planted >= 6
    assert outcome.found >= 0.95 * outcome.planted
    assert outcome.by_chance == outcome.by_search == 0
    assert "the attack finds what is there" in str(outcome)
    weak = {"a path of a tenth of eps": partial(ATTACKS["pgd"], step=0.1), "one step": ATTACKS["fgsm"]}
    if norm != "l1":
        weak["few queries"] = partial(ATTACKS["square"], queries=300)
    for name, attack in weak.items():
        missing = outcome_of(attack, trained_net, norm, points=1)
        assert missing.found <= 0.2 * missing.planted, name
        assert "THE ATTACK MISSES" in str(missing), name


def test_minimum_norm_attack_finds_a_few_planted_entries(trained_net: Net) -> None:
    outcome = outcome_of(ATTACKS["fmn"], trained_net, "l0")
    assert outcome.found >= 0.95 * outcome.planted > 4
    assert outcome.by_search == 0


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
def test_every_loss_climbs_to_it(trained_net: Net, loss: str) -> None:
    outcome = outcome_of(partial(ATTACKS["pgd"], loss=loss), trained_net, "linf", points=1)
    assert outcome.found >= 0.95 * outcome.planted


@pytest.mark.parametrize("norm", NORMS)
def test_point_is_legal_and_class_one_and_the_clip_is_not(net: torch.nn.Module, norm: str) -> None:
    x = 0.3 * torch.randn(8, 100).clamp(-3, 3)
    mask = torch.rand(8, 100) < 0.5
    eps = torch.linspace(0.5, 1, 8) * {"linf": 0.1, "l2": 1.0, "l1": 4.0, "l0": 20.0}[norm]
    threat = ThreatModel(norm, eps.floor() if norm == "l0" else eps, (-1.0, 1.0), mask)
    planted, point, is_planted = plant(net, x, threat, streams("plant"))
    zero = torch.zeros(8, dtype=torch.long)
    assert int(is_planted.sum()) >= 6
    assert fooled(planted(point), zero)[is_planted].all()
    assert not fooled(planted(x), zero)[is_planted].any()
    assert threat.contains(point, x).all()
    assert ((point == x) | mask).all()
    assert (norm_of(point - x, norm) > 0.5 * threat.budgets(x))[is_planted].all()


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_use_the_whole_budget(norm: str) -> None:
    x = torch.zeros(4, 2000)
    eps = torch.tensor([1.0, 2.0, 3.0, 40.0])
    points = reference_search.random_point(x, ThreatModel(norm, eps), streams("random", 4))
    if norm == "l0":  # without bounds, silence has no size that a change could have
        points = reference_search.random_point(x + 1, ThreatModel(norm, eps), streams("random", 4)) - 1
    assert torch.allclose(norm_of(points, norm), eps, rtol=1e-5)


def test_example_without_a_budget_is_left_out(net: torch.nn.Module) -> None:
    eps = torch.full((8,), 0.05)
    eps[3] = 0
    _, _, is_planted = plant(net, torch.randn(8, 100), ThreatModel("linf", eps), streams("plant"))
    assert is_planted.tolist() == [True] * 3 + [False] + [True] * 4


def test_planting_does_not_depend_on_the_batch(net: torch.nn.Module) -> None:
    x, threat = torch.randn(8, 100), ThreatModel("linf", 0.05)
    _, together, _ = plant(net, x, threat, streams("plant"))
    rng = streams("plant")
    for i in range(8):
        index = torch.tensor([i])
        _, alone, _ = plant(net, x[index], threat.select(index), rng.select(index))
        assert torch.allclose(alone, together[index], atol=1e-5)


def test_more_steps_reach_higher(net: torch.nn.Module) -> None:
    x, threat = torch.randn(8, 100), ThreatModel("linf", 0.5)
    score = lambda z: net(z)[:, 0]  # noqa: E731
    (_, one), (point, many) = (reference_search.maximize(score, x, threat, steps) for steps in (1, 60))
    assert (many >= one).all()
    assert (many > one).any()
    assert torch.equal(score(point), many)


def test_random_model_is_tested_too(net: torch.nn.Module) -> None:
    def noisy(x: Tensor) -> Tensor:
        return net(x) + 0.001 * torch.randn(len(x), 10)

    outcome = self_test(
        partial(ATTACKS["pgd"], early_exit=False), noisy, torch.randn(8, 100), ThreatModel("linf", 0.1), streams=streams
    )
    assert outcome.found == outcome.planted > 5


def test_an_attack_that_does_nothing_finds_nothing(net: torch.nn.Module) -> None:
    outcome = self_test(
        lambda model, x, *args, **keys: x.clone(), net, torch.randn(8, 100), ThreatModel("linf", 0.1), streams=streams
    )
    assert outcome.found == 0
    assert "MISSES" in str(outcome)


def test_constant_model_and_infinite_budget_are_refused() -> None:
    constant = torch.nn.Linear(100, 10).requires_grad_(False)
    constant.weight.zero_()
    x = torch.randn(8, 100)
    with pytest.raises(ValueError, match="could not plant"):
        self_test(ATTACKS["pgd"], constant, x, ThreatModel("linf", 0.01), streams=streams)
    with pytest.raises(ValueError, match="finite eps"):
        self_test(ATTACKS["pgd"], constant, x, ThreatModel("linf"), streams=streams)


@pytest.mark.parametrize(
    ("planted", "found", "verdict"),
    [
        (20, 19, "the attack finds what is there: 95.0%"),
        (16, 14, "too few clips to tell"),  # at 95 %, two or more of 16 are missed in every fifth test
        (16, 13, "THE ATTACK MISSES"),
        (200, 180, "THE ATTACK MISSES what is known to be there: 90.0%"),
    ],
)
def test_verdict_allows_for_the_number_of_clips(planted: int, found: int, verdict: str) -> None:
    assert verdict in str(SelfTest(planted, found, 0, 0, 50))


def test_interval_is_exact() -> None:
    low, high = SelfTest(10, 10, 0, 0, 1).interval
    assert low == pytest.approx(0.025 ** (1 / 10))
    assert high == 1.0


def test_what_chance_finds_too_is_said_to_prove_little() -> None:
    assert "says little" in str(SelfTest(100, 100, 6, 6, 50))
    assert "says little" in str(SelfTest(100, 100, 0, 6, 50))
    assert "says little" not in str(SelfTest(100, 100, 5, 5, 50))


def test_table_of_the_experiment(trained_net: Net, clips: Clips) -> None:
    head, rule, row = self_test_study.table({"net": trained_net[0]}, clips.select(range(4)), ["linf 0.001"], points=3)  # type: ignore[dict-item]
    cells = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert rule.count("---") == len(cells)
    assert [cells[key] for key in ("model", "budget", "random point", "best of 3")] == [
        "net",
        "linf 0.001",
        "0.00",
        "0.00",
    ]
    assert cells["PGD-100"].startswith("1.00 [")
    assert cells["crippled PGD-40"].startswith("0.00 [")


def test_one_problem_gives_the_outcome_of_the_self_test(net: torch.nn.Module) -> None:
    x, threat = torch.randn(8, 100), ThreatModel("linf", 0.1)
    problem = Problem.of(net, x, threat, streams, points=5)
    for attack in (ATTACKS["pgd"], partial(ATTACKS["pgd"], step=0.1)):
        assert problem.test(attack) == self_test(attack, net, x, threat, streams=streams, points=5)
