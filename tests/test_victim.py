"""A victim can be cut at every representation, and its frozen copy computes the same."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from src.registry import DEFENSES
from src.victims import checkpoint
from src.victims.frozen_convolution import FrozenConv2d
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
    full = victim(model, front_end, options)
    x = clips.waveforms(slice(2))
    logits = full(x)
    for name in full.representations:
        head, tail = full.split(name)
        torch.testing.assert_close(tail(head(x)), logits)
        low, high = full.bounds(name)
        assert (head(x) >= low).all()
        assert (head(x) <= high).all()


@pytest.mark.parametrize(("model", "front_end", "options"), CASES)
def test_frozen_computes_the_same(clips, model: str, front_end: str, options: dict[str, object]) -> None:
    full = victim(model, front_end, options)
    with torch.no_grad():  # statistics and weights as after some training, not the fresh ones that hide mistakes
        for module in full.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    frozen = full.frozen()
    # Noise, because in near silence a max-pool decides between values that differ by rounding alone.
    noise = torch.randn(4, clips.n_samples, generator=torch.Generator().manual_seed(0))
    x = (clips.waveforms(slice(4)) + 0.3 * noise).requires_grad_()
    logits, fast = full(x), frozen(x)
    scale = logits.detach().abs().max()
    assert (logits - fast).abs().max() <= 1e-5 * max(1.0, float(scale))
    gradient, fast_gradient = (torch.autograd.grad(z.square().sum(), x)[0] for z in (logits, fast))
    assert (gradient - fast_gradient).norm() <= 1e-4 * gradient.norm()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in full.classifier.parameters())


def test_unknown_representation_lists_choices() -> None:
    with pytest.raises(ValueError, match=r"no representation 'log-mel' \(choices: waveform, magnitude, mel, log_mel"):
        victim("bc_resnet", "log_mel", {}).split("log-mel")


def test_lipschitz_of_the_head() -> None:
    full = victim("bc_resnet", "log_mel", {})
    assert full.lipschitz("waveform") == 1.0
    assert full.lipschitz("magnitude") > 1
    assert full.lipschitz("mel") is None  # a power spectrum has no global constant


def built() -> Victim:
    torch.manual_seed(0)
    return checkpoint.build(
        model="resnet", model_options={"widths": (4, 8)}, front_end_options={"normalize": "band_mean"},
        classes=["a", "b", "c"], sample_rate=16000, n_samples=8000,
    ).eval()  # fmt: skip


def test_defenses_stand_where_they_are_put_in_the_order_they_come() -> None:
    x = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    victim = built()
    entries = [
        {"name": "quantize", "options": {"step": 512}},
        {"name": "median", "at": "log_mel"},
        {"name": "median"},
        {"name": "quantize", "options": {"step": 64}},
        {"name": "median", "options": {"width": 3}, "at": "log_mel"},
    ]
    defended = checkpoint.defend(victim, entries)
    assert defended.representations == (
        "waveform", "quantize", "median", "quantize_2", "magnitude", "mel", "log_mel", "median_2", "median_3",
        "normalize",
    )  # fmt: skip
    assert [stage.position for stage in defended.defenses] == ["waveform"] * 3 + ["log_mel"] * 2
    quantize, median, fine, first, second = defended.defenses
    head, tail = victim.split("log_mel")
    with torch.no_grad():
        by_hand = tail(second(first(head(fine(median(quantize(x)))))))
        torch.testing.assert_close(defended(x), by_hand)
        torch.testing.assert_close(defended.undefended()(x), victim(x))
        before, behind = defended.split("log_mel")
        torch.testing.assert_close(behind(before(x)), defended(x))
    assert victim.defenses == ()
    assert defended.bounds("log_mel") == victim.bounds("log_mel")
    assert defended.lipschitz("magnitude") is None, "a quantizer has no Lipschitz constant"
    assert not defended.training


def test_defenses_are_in_the_checkpoint(tmp_path: Path) -> None:
    entries = [
        {"name": "quantize", "options": {"step": 300}, "at": "waveform"},
        {"name": "median", "options": {"width": 7}, "at": "mel"},
    ]
    defended = checkpoint.defend(built(), [entries[0], {"name": "median", "at": "mel"}])
    assert checkpoint.defenses_of(defended) == entries, "defaults are written out"
    assert checkpoint.defenses_of(checkpoint.defend(built(), entries[::-1])) == entries, "one order for one chain"
    checkpoint.save(tmp_path / "m.pt", defended, {"epochs": 1})
    loaded, facts = checkpoint.load(tmp_path / "m.pt")
    assert facts == {"epochs": 1}
    assert checkpoint.defenses_of(loaded) == entries
    assert checkpoint.recipe_of(loaded) == checkpoint.recipe_of(defended)
    x = 0.1 * torch.randn(2, 8000)
    with torch.no_grad():
        assert torch.equal(loaded(x), defended(x))
    plain = checkpoint.recipe_of(built())
    assert "defenses" not in plain, "files without defenses are what they were"


def test_what_no_recipe_can_rebuild_is_not_saved(tmp_path: Path) -> None:
    by_hand = built().defended([DEFENSES["median"](sample_rate=16000)])
    with pytest.raises(ValueError, match=r"use checkpoint\.build_defense"):
        checkpoint.save(tmp_path / "m.pt", by_hand, {})
    victim = built()
    bare = Victim(
        list(victim.stages),
        victim.classifier,
        classes=["a", "b", "c"],
        sample_rate=16000,
        n_samples=8000,  # type: ignore[arg-type]
    )
    with pytest.raises(ValueError, match="no recipe"):
        checkpoint.save(tmp_path / "m.pt", bare, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "at", "message"),
    [
        ("quantize", "log_mel", "needs a waveform; 'log_mel' has 40 x 51 values"),
        (
            "median",
            "quantize",
            "no defense can stand at 'quantize' (choices: waveform, magnitude, mel, log_mel",
        ),
        ("median", "meld", "no defense can stand at 'meld'"),
    ],
)
def test_a_defense_that_cannot_stand_there_is_refused(name: str, at: str, message: str) -> None:
    victim = checkpoint.defend(built(), [{"name": "quantize"}])
    with pytest.raises(ValueError, match=re.escape(message)):
        checkpoint.defend(victim, [{"name": name, "at": at}])


def test_legal_values_of_every_representation() -> None:
    victim = built()
    assert victim.bounds("waveform") == (-1.0, 1.0)
    assert victim.bounds("magnitude") == (0.0, math.inf)
    defended = checkpoint.defend(victim, [{"name": "median"}, {"name": "median", "at": "log_mel"}])
    assert defended.bounds("median") == (-1.0, 1.0)
    assert defended.bounds("median_2") == (-math.inf, math.inf), "a feature has no bounds behind a defense"


def test_a_frozen_copy_wants_no_gradients_and_keeps_depthwise_layers() -> None:
    frozen = built().frozen()
    assert not any(p.requires_grad for p in frozen.parameters())

    def kinds(model: str) -> set[type]:
        copy = victim(model, "log_mel", {}).frozen()
        return {type(module) for module in copy.classifier.modules()}

    assert FrozenConv2d in kinds("resnet"), "dense convolutions are replaced"
    assert FrozenConv2d not in kinds("bc_resnet"), "a depthwise one would lose more than the dense ones gain"
