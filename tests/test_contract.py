"""The contract of every registered attack: feasible under ball, bounds and mask; the same under a seed, singly and in a
batch; inputs, parameters and mode unchanged; any rank; true to its specification."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from src.attacks.registration import registered_attack, spec_of
from src.evaluation import AttackSettings, with_options
from src.random_streams import RandomStreams
from src.registry import ATTACKS
from src.threat import ThreatModel, norm_of

QUICK = {
    "steps": 4, "batch_size": 3, "queries": 100, "search_steps": 2, "masking_steps": 3, "rounds": 3, "iterations": 5,
    "targets": 2, "shrink_steps": 2, "refine": 3,
}  # fmt: skip
SPECS = {name: spec_of(name) for name in ATTACKS.names()}
CASES = [(name, norm) for name, spec in SPECS.items() for norm in spec.norms]
EPS = {"linf": 0.02, "l2": 0.4, "l1": 6.0, "l0": 40.0}


class Net(nn.Module):
    """A small smooth net with batch norm, in float64 so that sums over a batch decide nothing."""

    def __init__(self, entries: int):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(entries, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.5), nn.Linear(24, 5)
        ).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(3 * x)


def problem(*shape: int) -> tuple[Net, Tensor, Tensor, Tensor]:
    """(net in evaluation mode, inputs in [-0.5, 0.5], labels that the net gives, mask of the first three quarters)."""
    net = Net(math.prod(shape)).eval()
    x = (torch.rand(4, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 0.5).clamp(-0.4, 0.4)
    mask = (torch.arange(shape[-1]) < shape[-1] * 3 // 4).expand(4, *[1] * (len(shape) - 1), -1)
    with torch.no_grad():
        return net, x, net(x).argmax(1), mask


def supplied(name: str) -> dict[str, int]:
    """What the program supplies to the fit of an attack."""
    return {"sample_rate": 16000} if SPECS[name].needs_sample_rate else {}


def quick(name: str) -> dict[str, int]:
    return {key.name: QUICK[key.name] for key in ATTACKS.keys(name) if key.name in QUICK}


def run(
    name: str, net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, ids: str = "abcd", targeted: bool = False
) -> Tensor:
    fitted = fit(name, net, x.shape[1:], threat.norm, targeted) if SPECS[name].fitted else None
    function = with_options(name, quick(name), 16000, fitted)
    return function(net, x, y, threat, rng=RandomStreams(0, ids, name), targeted=targeted)


def fit(name: str, net: nn.Module, shape: torch.Size, norm: str, targeted: bool) -> dict[str, Tensor]:
    """What a fitted attack learns on the clips of the problem, in two batches."""
    _, x, y, mask = problem(*shape)
    y = (y + 1) % 5 if targeted else y
    if norm not in SPECS[name].norms or (targeted and not SPECS[name].targetable):
        return {}  # the attack itself has to refuse
    threat = ThreatModel(norm, EPS[norm], (-0.5, 0.5), mask)
    return registered_attack(name).fit(
        net,
        x,
        y,
        threat,
        rng=RandomStreams(0, "efgh", f"fit {name}"),
        targeted=targeted,
        **quick(name),
        **supplied(name),
    )


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_waveforms(name: str, norm: str) -> None:
    net, x, y, mask = problem(640)
    before = [x.clone(), y.clone(), *(p.clone() for p in net.state_dict().values())]
    modes = [module.training for module in net.modules()]
    threat = ThreatModel(norm, torch.linspace(0.5, 1.0, 4, dtype=torch.float64) * EPS[norm], (-0.5, 0.5), mask)
    x_adv = run(name, net, x, y, threat)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert threat.contains(x_adv, x).all()
    assert torch.equal(x_adv[..., 480:], x[..., 480:]), "the masked part is bitwise the same"
    assert torch.equal(run(name, net, x, y, threat), x_adv), "the same under the same seed"
    for original, present in zip(before, [x, y, *net.state_dict().values()], strict=True):
        assert torch.equal(original, present)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert [module.training for module in net.modules()] == modes
    for i in (0, 3):
        index = torch.tensor([i])
        alone = run(name, net, x[index], y[index], threat.select(index), "abcd"[i])
        torch.testing.assert_close(alone, x_adv[index], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS.names())
def test_spectra(name: str) -> None:
    net, x, y, mask = problem(8, 32)
    threat = ThreatModel(SPECS[name].norms[0], EPS[SPECS[name].norms[0]], (-0.5, math.inf), mask)
    if SPECS[name].stages == "waveform":
        with pytest.raises(ValueError, match="waveform"):
            run(name, net, x, y, threat)
        return
    x_adv = run(name, net, x, y, threat)
    assert threat.contains(x_adv, x).all()
    assert torch.equal(x_adv[..., 24:], x[..., 24:])


@pytest.mark.parametrize("name", ATTACKS.names())
def test_empty_batch_wrong_norm_and_targets(name: str) -> None:
    net, x, y, _ = problem(640)
    norm = SPECS[name].norms[0]
    assert run(name, net, x[:0], y[:0], ThreatModel(norm, 0.1, (-0.5, 0.5)), "").shape == (0, 640)
    unsupported = next((n for n in EPS if n not in SPECS[name].norms), None)
    if unsupported:
        with pytest.raises(ValueError, match="choices"):
            run(name, net, x, y, ThreatModel(unsupported, 0.1))
    if not SPECS[name].targetable:
        with pytest.raises(ValueError, match="target"):
            run(name, net, x, y, ThreatModel(norm, 0.1), targeted=True)


@pytest.mark.parametrize("name", ATTACKS.names())
def test_the_config_is_checked_against_the_spec(name: str) -> None:
    spec = SPECS[name]
    natural = spec.norms[0]
    assert AttackSettings(names=(name,), norm=natural).names == (name,)
    for norm in sorted(set(EPS) - set(spec.norms)):
        if spec.has_budget:
            with pytest.raises(ValueError, match=f"{name} has no norm {norm}"):
                AttackSettings(names=("fgsm", name) if norm in SPECS["fgsm"].norms else (name,), norm=norm)
        else:  # it uses its own
            assert AttackSettings(names=(name,), norm=norm).norm == norm
    if not spec.targetable:
        with pytest.raises(ValueError, match=f"{name} cannot aim"):
            AttackSettings(names=(name,), norm=natural, targeted=True)
    if spec.stages == "waveform":
        with pytest.raises(ValueError, match=f"{name} perturbs waveforms"):
            AttackSettings(names=("pgd", name), norm=natural, stage="log_mel")


class Watched:
    """A model that records how it is used."""

    def __init__(self, net: nn.Module):
        self.net, self.calls, self.differentiated = net, 0, False

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.differentiated |= x.requires_grad
        return self.net(x)


@pytest.mark.parametrize("name", ATTACKS.names())
def test_the_attack_uses_what_its_spec_declares(name: str) -> None:
    net, x, y, _ = problem(640)
    spec, model = SPECS[name], Watched(net)
    assert (spec.name, spec.kind == "control") == (name, "Control:" in (ATTACKS[name].__doc__ or ""))
    x_adv = run(name, model, x, y, ThreatModel(spec.norms[0], EPS[spec.norms[0]], (-0.5, 0.5)))
    assert model.differentiated == (spec.access == "gradients")
    assert (model.calls == 0) == (spec.access == "none")
    if spec.access == "labels":  # the size of the logits decides nothing
        assert torch.equal(
            run(name, lambda x: 7 * net(x), x, y, ThreatModel(spec.norms[0], EPS[spec.norms[0]], (-0.5, 0.5))), x_adv
        )
    assert spec.needs_sample_rate == ("sample_rate" in inspect.signature(ATTACKS[name]).parameters)
    assert spec.takes_examples == ("examples" in inspect.signature(ATTACKS[name]).parameters)
    assert spec.takes_tap == ("tap" in inspect.signature(ATTACKS[name]).parameters)
    assert spec.reports == ("report" in inspect.signature(ATTACKS[name]).parameters)
    assert not {"sample_rate", "examples", "tap", "report"} & {key.name for key in ATTACKS.keys(name)}


@pytest.mark.parametrize("name", [n for n in ATTACKS.names() if SPECS[n].targetable])
def test_targeted_runs(name: str) -> None:
    net, x, y, _ = problem(640)
    threat = ThreatModel(SPECS[name].norms[0], EPS[SPECS[name].norms[0]], (-0.5, 0.5))
    x_adv = run(name, net, x, (y + 1) % 5, threat, targeted=True)
    assert threat.contains(x_adv, x).all()


@pytest.mark.parametrize("name", [n for n in ATTACKS.names() if SPECS[n].kind == "minimum_norm"])
def test_minimum_norm_without_a_budget(name: str) -> None:
    net, x, y, _ = problem(640)
    x_adv = run(name, net, x, y, ThreatModel(SPECS[name].norms[0], math.inf, (-0.5, 0.5)))
    assert ThreatModel(bounds=(-0.5, 0.5)).contains(x_adv, x).all()


@pytest.mark.parametrize("name", ["random_signs", "random_uniform", "random_gaussian"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_controls_have_the_whole_size(name: str, norm: str) -> None:
    net, x, y, mask = problem(640)
    x_adv = run(name, net, x, y, ThreatModel(norm, EPS[norm], mask=mask))
    torch.testing.assert_close(norm_of(x_adv - x, norm), torch.full((4,), EPS[norm], dtype=x.dtype))


@pytest.mark.parametrize("name", ATTACKS.names())
def test_only_fitted_attacks_are_fitted(name: str) -> None:
    net, x, y, _ = problem(640)
    norm = SPECS[name].norms[0]
    rng, threat = RandomStreams(0, "abcd", ""), ThreatModel(norm, EPS[norm], (-0.5, 0.5))
    attack = registered_attack(name)
    if not SPECS[name].fitted:
        with pytest.raises(ValueError, match=f"{name} is not a fitted attack"):
            attack.fit(net, x, y, threat, rng=rng, targeted=False)
        return
    tensors = attack.fit(net, x, y, threat, rng=rng, targeted=False, **quick(name), **supplied(name))
    again = attack.fit(
        net, x, y, threat, rng=RandomStreams(0, "abcd", ""), targeted=False, **quick(name), **supplied(name)
    )
    assert all(torch.equal(tensors[key], again[key]) and not tensors[key].requires_grad for key in tensors)
    with pytest.raises(ValueError, match="needs clips"):
        attack.fit(
            net, x[:0], y[:0], threat, rng=rng.select(torch.tensor([], dtype=torch.long)), targeted=False,
            **supplied(name),
        )  # fmt: skip
    with pytest.raises(ValueError, match="fit it first"):
        with_options(name, {}, 16000)
    assert {key.name for key in ATTACKS.keys(name)}, "the config keys are those of fit"
