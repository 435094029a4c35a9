"""Attacks on smoothed classifiers: they succeed beyond the margin, never inside a certified radius, and contradictions
are reported. The classifier is linear, so that the smoothed one is known exactly: it is the same half-space."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from src.evaluation.smoothed_attacks import (
    SMOOTHED_ATTACK_FIELDS,
    Attempt,
    attack_defended,
    attack_smoothed,
    contradicts,
    escalate,
    outcome,
    vote,
    waveform_chains,
)
from src.registry import DEFENSES
from src.smoothing import ABSTAIN, Certificate, Certifier, CertifySettings, ShapedNoise, summary
from src.victims import checkpoint
from src.victims.chain import Chain

FREE = (-math.inf, math.inf)
SIGMA, MARGIN = 0.5, 0.4
SIZE = 400


class Linear(nn.Module):
    """Class 1 where the projection on `direction` (unit norm) is positive; the logits grow steeply."""

    def __init__(self, direction: Tensor):
        super().__init__()
        self.register_buffer("direction", direction)

    def forward(self, z: Tensor) -> Tensor:
        score = 3 * (z @ self.direction)
        return torch.stack([-score, score], 1)


def direction() -> Tensor:
    return nn.functional.normalize(torch.randn(SIZE, generator=torch.Generator().manual_seed(1)), dim=0)


def certifier(shaped: ShapedNoise | None = None, **keys: object) -> Certifier:
    options = {"n": 2000, "n0": 32, "attack_steps": 10, "attack_n": 2000, "batch_size": 400, **keys}
    model = Linear(direction()).eval()
    return Certifier(lambda x: x, model, CertifySettings(**options), 16000, shaped)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["white", "falling"])
def test_attack_stops_at_the_margin(shape: str) -> None:
    amplitude = torch.linspace(2, 0.5, SIZE // 2 + 1)
    shaped = ShapedNoise(amplitude, SIZE) if shape == "falling" else None
    white_or_shaped = certifier(shaped)
    w = direction()
    x = MARGIN * w
    # In the norm of the noise, the margin is that of the direction seen through it.
    scale = 1.0 if shaped is None else 1 / float(shaped(w[None])[0].norm())
    margin = MARGIN * scale
    certificate = white_or_shaped(x, "clip", SIGMA)
    assert certificate.label == 1
    assert 0.8 * margin < certificate.radius <= margin
    radii = [0.9 * margin, 1.2 * margin]
    row = attack_smoothed(white_or_shaped, FREE, x, 1, "clip", SIGMA, certificate, radii)
    assert tuple(row) == SMOOTHED_ATTACK_FIELDS[5:-1]
    assert row["clean"] == 1
    assert row["broken_at"] >= 0.9 * margin  # close to the border the vote may abstain
    assert row["flipped_at"] == pytest.approx(1.2 * margin)
    assert row["contradicts"] is False
    assert attack_smoothed(white_or_shaped, FREE, x, 1, "clip", SIGMA, certificate, radii) == row
    # Legal values of the stage bind white noise only: under shaped noise the attacked variable is unfiltered.
    bound = attack_smoothed(white_or_shaped, (-1e-3, 1e-3), x, 1, "clip", SIGMA, certificate, radii)
    assert (bound == row) is (shape == "falling")
    # The same certificate with a radius beyond the margin is wrong, and is caught.
    wrong = Certificate(1, 1.3 * margin, 10)
    assert attack_smoothed(white_or_shaped, FREE, x, 1, "clip", SIGMA, wrong, [])["contradicts"] is True
    # So is one for the other class, without any attack.
    assert (
        attack_smoothed(white_or_shaped, FREE, x, 0, "clip", SIGMA, Certificate(0, 0.1, 10), [])["contradicts"] is True
    )


@pytest.mark.parametrize("kind", ["gain", "shift"])
def test_parameters_are_attacked_too(kind: str) -> None:
    """Class 1 up to a peak of 0.5: 6 dB above 0.25. Class 1 while the impulse is in the first half."""

    def peak(x: Tensor) -> Tensor:
        score = 20 * (0.5 - x.abs().amax(-1)) if kind == "gain" else x[:, :200].sum(1) - x[:, 200:].sum(1)
        return torch.stack([-score, score], 1)

    x = (
        0.25 * torch.cos(torch.arange(400) / 9.0)
        if kind == "gain"
        else torch.zeros(400).index_fill(0, torch.tensor(100), 0.5)
    )
    semantic = Certifier(lambda x: x, peak, CertifySettings(kind=kind, attack_n=500, batch_size=16), 1000)  # type: ignore[arg-type]
    sigma, limit, beyond = (2.0, 6.02, 11.0) if kind == "gain" else (30.0, 99.5, 140.0)
    row = attack_smoothed(semantic, FREE, x, 1, "clip", sigma, semantic(x, "clip", sigma), [limit - 2, beyond])
    assert row["flipped_at"] == beyond
    assert row["contradicts"] is False


def test_budgets_increase_until_another_class_wins() -> None:
    answers = {0.0: 1, 1.0: ABSTAIN, 2.0: 0}
    seen = []

    def attack(start: Tensor, budget: float) -> Tensor:
        seen.append(budget)
        return start + budget

    tries = escalate(attack, lambda point, _: answers[float(point)], torch.zeros(1, 1), 1, [4, 2, 1, 0])
    assert seen == [1, 2]
    assert outcome(tries, 1) == {"clean": 1, "broken_at": 1, "flipped_at": 2}
    assert outcome(tries[:1], 1) == {"clean": 1, "broken_at": math.inf, "flipped_at": math.inf}
    assert outcome([Attempt(0, 0, 0)], 1) == {"clean": 0, "broken_at": 0, "flipped_at": 0}


def test_contradicting_a_certificate() -> None:
    certificate = Certificate(1, 0.5, 100)
    assert contradicts(certificate, Attempt(0.4, 0.4, 0))
    assert not contradicts(certificate, Attempt(0.4, 0.4, ABSTAIN)), "an abstention claims nothing"
    assert not contradicts(certificate, Attempt(0.4, 0.4, 1))
    assert not contradicts(certificate, Attempt(0.5, 0.5, 0)), "the border itself is not certified"
    assert not contradicts(Certificate(ABSTAIN, 0.0, 100), Attempt(0.0, 0.0, 0))


@pytest.mark.parametrize("name", ["quantize", "noise_at_snr"])
def test_defenses_are_attacked_through_their_randomness_and_rounding(name: str) -> None:
    model = Linear(direction()).eval()
    chain = Chain([DEFENSES[name](sample_rate=16000)], model).eval()
    settings = CertifySettings(radii=(0.3, 0.6), attack_steps=10, attack_n=200)
    x = MARGIN * direction()
    row = attack_defended(chain, settings, x, 1, "clip", name)
    assert (row["clean"], row["broken_at"], row["flipped_at"]) == (1, 0.6, 0.6)
    assert row["certified"] == row["radius"] == row["contradicts"] == "none"
    assert attack_defended(chain, settings, x, 1, "clip", name) == row


def test_every_baseline_stands_in_front_of_the_model(clips) -> None:  # type: ignore[no-untyped-def]
    victim = checkpoint.build(model="bc_resnet", classes=list("abcd"), sample_rate=16000, n_samples=16000).eval()
    baselines = CertifySettings().baselines
    victims = {name: checkpoint.defend(victim, [{"name": name}]) for name in baselines}
    chains = waveform_chains({"undefended": victim, **victims})
    assert list(chains) == ["undefended", *baselines]
    x = clips.waveforms(slice(1))
    with torch.no_grad():
        torch.testing.assert_close(chains["undefended"](x), victim(x), rtol=1e-4, atol=1e-4)
    for name in baselines:
        assert next(iter(chains[name].stages)).name == name
        assert chains[name](x).shape == (1, 4)


def test_vote_abstains_and_ignores_nan() -> None:
    x = torch.zeros(1, SIZE)
    noisy = Chain([DEFENSES["noise_at_snr"](sample_rate=16000)], Linear(direction()).eval())
    assert vote(noisy, x, 200, 0.001, 0, "clip") == ABSTAIN
    assert vote(noisy, x + direction(), 200, 0.001, 0, "clip") == 1
    broken = Chain([], nn.Linear(SIZE, 2))
    nn.init.constant_(broken.classifier.weight, math.nan)  # type: ignore[union-attr, arg-type]
    assert vote(broken, x, 1, 0.001, 0, "clip") == ABSTAIN


def test_certified_and_attacked_side_by_side() -> None:
    def row(
        sigma: str, certified: str, radius: str, broken: str, wrong: str = "0", name: str = "smoothed"
    ) -> dict[str, str]:
        return {
            "classifier": name, "sigma": sigma, "id": "a", "label": "1", "certified": certified, "radius": radius,
            "broken_at": broken, "contradicts": wrong,
        }  # fmt: skip

    rows = [
        row("0.1", "1", "0.3", "0.5"),
        row("0.1", "-1", "0", "0.2"),
        row("0.1", "0", "0.9", "0"),
        row("0.1", "1", "0.1", "inf"),
        row("none", "none", "none", "0.2", "none", "pagn"),
    ]
    lines = summary.side_by_side(rows, [0.2, 0.5])
    assert [list(line.values()) for line in lines] == [
        ["smoothed, sigma 0.1", "certified", "0.50", "0.25", "0.00"],
        ["smoothed, sigma 0.1", "under attack", "0.75", "0.50", "0.25"],
        ["pagn", "under attack", "1.00", "0.00", "0.00"],
    ]
    verdict, contradicted = summary.certificate_verdict(rows, 0.001)
    assert not contradicted
    assert "3 certificate" in verdict
    verdict, contradicted = summary.certificate_verdict([*rows, row("0.1", "1", "0.4", "0.1", "1")], 0.001)
    assert contradicted
    assert "CERTIFICATE CONTRADICTED" in verdict
    assert summary.certificate_verdict(rows[1:2], 0.001) == (
        "No certificate was checked: none has a radius.",
        False,
    )


def test_a_random_chain_has_no_certificate() -> None:
    tail = Chain([DEFENSES["noise_at_snr"](sample_rate=16000)], Linear(direction()).eval())
    for chains in ((Chain([]), tail), (tail, Chain([]))):
        with pytest.raises(ValueError, match=r"draws fresh noise in every pass \('noise_at_snr'\)"):
            Certifier(*chains, CertifySettings(), 16000)


def test_a_clip_that_is_wrong_without_attack_breaks_at_nothing() -> None:
    (attempt,) = escalate(lambda start, budget: start + budget, lambda point, _: 0, torch.zeros(1, 3), 1, [0.5, 1.0])
    assert (attempt.budget, attempt.distance, attempt.predict) == (0.0, 0.0, 0)


@pytest.mark.parametrize(("name", "votes"), [("quantize", 1), ("noise_at_snr", 200)])
def test_a_random_defense_is_judged_by_many_draws_and_any_other_by_one(
    name: str, votes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: list[int] = []

    def counted(chain: Chain, x: Tensor, n: int, *args: object) -> int:
        draws.append(n)
        return 0  # another class at once: no attack is needed

    monkeypatch.setattr("src.evaluation.smoothed_attacks.vote", counted)
    chain = Chain([DEFENSES[name](sample_rate=16000)], Linear(direction()).eval()).eval()
    attack_defended(chain, CertifySettings(radii=(0.3,), attack_steps=1, attack_n=200), direction(), 1, "clip", name)
    assert draws == [votes]


def test_certificates_are_computed_without_autograd() -> None:
    modes: list[bool] = []

    def model(z: Tensor) -> Tensor:
        modes.append(torch.is_inference_mode_enabled())
        return torch.stack([-z.sum(1), z.sum(1)], 1)

    Certifier(lambda x: x, model, CertifySettings(n0=16, n=16, batch_size=16), 16000)(torch.ones(8), "clip", 0.1)  # type: ignore[arg-type]
    assert modes
    assert all(modes)


@pytest.mark.parametrize(("amplitude", "radius"), [(0.9, -20 * math.log10(0.9)), (1.0, 0.0), (1.5, 0.0)])
def test_a_gain_certificate_ends_where_the_clip_would_clip(amplitude: float, radius: float) -> None:
    def constant(z: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0]).expand(len(z), 2)

    settings = CertifySettings(kind="gain", n0=16, n=500, batch_size=128)
    loud = amplitude * torch.sin(torch.arange(401) * math.pi / 2)
    certificate = Certifier(lambda x: x, constant, settings, 16000)(loud, "clip", 3.0)  # type: ignore[arg-type]
    assert certificate.label == 1
    assert certificate.radius == pytest.approx(radius, abs=1e-5)
    quiet = Certifier(lambda x: x, constant, settings, 16000)(loud / 100, "clip", 3.0)  # type: ignore[arg-type]
    assert 1 < quiet.radius < 40  # the noise draws decide here, not the headroom


@pytest.mark.parametrize("name", ["quantize", "noise_at_snr"])
def test_one_lucky_draw_does_not_end_the_attack_on_a_random_defense(name: str) -> None:
    """Against noise the attack goes on to the last step, because success under one draw is none; else it stops."""
    passes: list[Tensor] = []

    class Counted(Linear):
        def forward(self, z: Tensor) -> Tensor:
            if z.requires_grad:
                passes.append(z)
            return super().forward(z)

    chain = Chain([DEFENSES[name](sample_rate=16000)], Counted(direction()).eval()).eval()
    settings = CertifySettings(radii=(4.0,), attack_steps=12, attack_n=100)
    row = attack_defended(chain, settings, MARGIN * direction(), 1, "clip", name)
    assert row["flipped_at"] == 4.0
    draws = {len(z) for z in passes}
    if name == "quantize":
        assert 0 < len(passes) < settings.attack_steps
        assert draws == {1}
    else:
        assert len(passes) >= settings.attack_steps
        assert draws == {settings.attack_draws}, "all draws of a step in one pass"
