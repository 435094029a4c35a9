"""How an attack passes defenses: with a substitute's gradient, with the identity's, or not at all (transfer)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from src import api, config
from src.commands import attack as attack_commands
from src.commands import sanity
from src.evaluation.passing import check_passing, gradient_of, own_options
from src.victims import checkpoint
from src.victims.adaptive import adaptive
from src.victims.stage import Defense
from src.victims.victim import Victim
from tests.conftest import call, rows
from tests.test_attacks_universal import RATE, TIME, make_clips
from tests.test_wiring_stores import CPU, EPS, Study, make_victim, study, tone_clips, trained  # noqa: F401


class Mirror(Defense):
    """Turns every sample's sign and hides it: the identity's gradient points the wrong way, its substitute's the right
    one."""

    bounds = (-1.0, 1.0)
    differentiable = False

    def __init__(self) -> None:
        super().__init__("mirror")

    def forward(self, x: Tensor) -> Tensor:
        return -x.detach()

    def substitute(self, x: Tensor, value: Tensor) -> Tensor:
        return -x


class Weights(torch.nn.Module):
    """A linear classifier of waveforms, not symmetric in their sign."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, TIME, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def defended(defense: Defense) -> Victim:
    victim = Victim([], Weights(), classes=("low", "middle", "high"), sample_rate=RATE, n_samples=TIME)
    return victim.defended([defense])


@pytest.fixture(scope="module")
def mirrored() -> Victim:
    return defended(Mirror())


def success(victim: Victim, gradient: str) -> float:
    clips = make_clips(1, "test").select(range(6))
    with torch.no_grad():
        labels = victim(clips.waveforms()).argmax(1)
    from dataclasses import replace

    made = api.attack(
        victim, replace(clips, labels=labels), "pgd", eps=0.05, speech=False, mask="none",
        options={"gradient": gradient, "steps": 5, "random_start": False, "early_exit": False, "loss": "margin"},
    )  # fmt: skip
    return float(np.mean([row["success_wav"] for row in api.judge(victim, made)]))


def test_only_the_substitute_knows_the_way(mirrored: Victim) -> None:
    assert success(mirrored, "substitute") == 1.0
    assert success(mirrored, "identity") == 0.0, "the gradient of the identity leads away"
    assert success(mirrored, "undefended") == 0.0, "and so does that of the model without the defense"


def test_a_transfer_never_asks_the_defense_but_is_judged_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = defended(Mirror())
    asked: list[bool] = []
    forward = Mirror.forward
    monkeypatch.setattr(Mirror, "forward", lambda self, x: asked.append(torch.is_grad_enabled()) or forward(self, x))
    crafter = attack_commands.attacked_model(
        config_of("ATTACK.pgd.gradient=undefended"), trained(victim=victim), CPU
    ).crafter
    clips = make_clips(1, "test").select(range(3))
    x, valid = clips.waveforms(), clips.valid()
    model = crafter.attacked_model(clips.ids, x, valid, "undefended")
    asked.clear()
    torch.testing.assert_close(model(x), victim.undefended()(x), rtol=1e-4, atol=1e-4)
    assert not asked
    torch.testing.assert_close(
        crafter.attacked_model(clips.ids, x, valid, "substitute")(x), victim(x), rtol=1e-4, atol=1e-4
    )
    assert asked


def config_of(*overrides: str, folder: Path | None = None) -> config.Config:
    import tempfile

    with tempfile.TemporaryDirectory() as created:
        path = (folder or Path(created)) / "config.ini"
        path.write_text("[ATTACK]\nnames = pgd\neps = 0.002\nspeech = no\n")
        return config.load(path, list(overrides))


def test_an_undefended_model_is_transferred_from_itself() -> None:
    attacked = attack_commands.attacked_model(config_of("ATTACK.pgd.gradient=undefended"), trained(), CPU)
    clips = make_clips(1, "test").select(range(3))
    model = attacked.crafter.attacked_model(clips.ids, clips.waveforms(), clips.valid(), "undefended")
    assert model is attacked.crafter.frozen_tail
    assert not sanity.is_transferred(config_of("ATTACK.pgd.gradient=undefended"), attacked, "pgd")


def test_the_representation_of_a_defense_has_no_way_around_it() -> None:
    victim = make_victim({"name": "quantize"})
    loaded = config_of("ATTACK.pgd.gradient=undefended", "ATTACK.stage=quantize")
    with pytest.raises(ValueError, match="pgd: gradient = undefended: the attacked quantize is itself a defense"):
        attack_commands.attacked_model(loaded, trained(victim=victim), CPU)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ATTACK.pgd.gradient=identiti"], "did you mean 'identity'"),
        (
            ["ATTACK.names=square", "ATTACK.square.gradient=identity"],
            "[ATTACK.square] gradient = identity: square follows",
        ),
        (["ATTACK.random_signs.gradient=undefended"], "random_signs asks no model"),
        (["ATTACK.adaptive=no", "ATTACK.pgd.gradient=identity"], "which adaptive = no switches off"),
        (
            ["ATTACK.v.attack=nes", "ATTACK.v.gradient=identity"],
            "[ATTACK.v] gradient = identity: nes follows no gradient",
        ),
    ],
)
def test_what_would_change_nothing_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="ATTACK") as error:
        config_of(*overrides)
    assert message in str(error.value)


def test_the_default_is_the_substitute_and_no_option_of_the_function() -> None:
    assert gradient_of({}) == "substitute"
    assert own_options({"steps": 3, "gradient": "identity"}) == {"steps": 3}
    loaded = config_of("ATTACK.adaptive=no", "ATTACK.fgsm.gradient=identity")
    check_passing(loaded.attack.spec("pgd"), {"gradient": "substitute"}, False)
    with pytest.raises(ValueError, match="unknown key of pgd 'gradien'"):
        api.attack(make_victim(), make_clips(1, "test"), "pgd", eps=0.1, options={"gradien": "identity"})


def test_stores_differ_by_the_way(study: Study) -> None:  # noqa: F811
    folders = {
        study.command(*change).store(trained(), "pgd", EPS).folder
        for change in ([], ["ATTACK.pgd.gradient=identity"], ["ATTACK.pgd.gradient=undefended"])
    }
    assert len(folders) == 3


def test_a_black_box_transfers_too(mirrored: Victim) -> None:
    clips = make_clips(1, "test").select(range(2))
    made = api.attack(
        mirrored, clips, "square", eps=0.1, speech=False, options={"gradient": "undefended", "queries": 20}
    )
    assert len(made.facts) == 2


def test_signs_of_a_transfer_are_not_those_of_a_gradient(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    keys = [
        "ATTACK.names=pgd,transfer", "ATTACK.transfer.attack=pgd", "ATTACK.transfer.gradient=undefended",
        "ATTACK.transfer.loss=margin", "ATTACK.transfer.early_exit=no", "ATTACK.pgd.gradient=identity",
        "ATTACK.pgd.steps=3", "ATTACK.transfer.steps=3", "ATTACK.eps=0.001", "ATTACK.checks=2", "ATTACK.wavs=0",
        "DATA.n_test=3", "DEFENSE.names=quantize", "RESULTS.results_dir=passing",
    ]  # fmt: skip
    assert call(workspace, monkeypatch, "attack.py", *(part for key in keys for part in ("--set", key))) == 0
    signs = json.loads((workspace / "passing/attack/manifest.json").read_text())["signs"]
    assert "zero_gradient" in {sign["name"] for sign in signs["resnet, transfer"] if "transferred" in sign["says"]}
    assert "transfer_is_better" in {sign["name"] for sign in signs["resnet, pgd"]}
    assert {row["attack"] for row in rows(workspace / "passing/attack/rows.csv")} == {"pgd", "transfer", "random_signs"}


def test_bpda_with_the_identity_reaches_the_crafter(mirrored: Victim) -> None:
    attacked = attack_commands.attacked_model(config_of(), trained(victim=mirrored), CPU)
    clips = make_clips(1, "test").select(range(2))
    x, valid = clips.waveforms(), clips.valid()
    grads = {}
    for gradient in ("substitute", "identity"):
        leaf = x.clone().requires_grad_()
        model = attacked.crafter.attacked_model(clips.ids, x, valid, gradient)  # type: ignore[arg-type]
        (grads[gradient],) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    assert torch.equal(grads["identity"], -grads["substitute"])
    assert adaptive(attacked.crafter.frozen_tail) is not attacked.crafter.frozen_tail


def test_no_representation_behind_merged_frames_is_attacked() -> None:
    """Refused before any work: nothing can be made audible that is found there."""
    victim = checkpoint.build(
        model="resnet", model_options={"widths": (4, 8)}, classes=("a", "b"), sample_rate=RATE, n_samples=RATE,
        defenses=[{"name": "feco", "at": "mel"}],
    )  # fmt: skip
    for stage in ("feco", "log_mel"):
        with pytest.raises(ValueError, match=f"attacked {stage} stands behind the defense 'feco', which merges frames"):
            attack_commands.attacked_model(config_of(f"ATTACK.stage={stage}"), trained(victim=victim), CPU)
    attack_commands.attacked_model(config_of("ATTACK.stage=mel"), trained(victim=victim), CPU)


def test_no_threshold_is_estimated_where_there_is_none() -> None:
    """The last logit of a closed set is a class: taken for a threshold, it would weaken the attack silently."""
    loaded = config_of("ATTACK.names=fakebob", "ATTACK.fakebob.threshold=estimated")
    with pytest.raises(ValueError, match="fakebob: threshold = estimated: net has no threshold"):
        attack_commands.attacked_model(loaded, trained(), CPU)
