"""Evaluations with one planted fault each, and sound ones: what the signs of failure make of both. Every fault has to
be caught by one of the indicators that are meant for it, and no sound evaluation may show a sign.

    python experiments/planted_faults.py data/keywords_study/models/resnet.pt data/speech_commands

writes the table of docs/checks.md. It takes validation clips that the model classifies correctly."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import api  # noqa: E402
from src.attacks.core import gradient  # noqa: E402
from src.budget import Budget  # noqa: E402
from src.evaluation import with_options  # noqa: E402
from src.evaluation.indicators import Indicator  # noqa: E402
from src.evaluation.sanity_checks import Evaluation, check  # noqa: E402
from src.losses import cross_entropy, margin  # noqa: E402
from src.random_streams import RandomStreams  # noqa: E402
from src.registry import ATTACKS, DEFENSES  # noqa: E402
from src.threat import ThreatModel, column  # noqa: E402
from src.victims.adaptive import Eot, adaptive, is_randomized  # noqa: E402
from src.victims.chain import with_lengths  # noqa: E402
from src.victims.stage import Defense  # noqa: E402
from src.victims.victim import Victim  # noqa: E402

PAGE = ROOT / "docs/checks.md"
BEGIN, END = "<!-- table: experiments/planted_faults.py -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Clips:
    """A model and clips that it classifies correctly.

    Attributes:
        x: waveforms, [clips, time].
        y: labels, [clips].
        valid: bool [clips, time], the samples that are not padding.
        eps: linf budget that fools most clips, but not all.
        margins: median margins of the clean clips under scaled logits: one that cross-entropy bears, and one that
            makes its gradient vanish.
    """

    victim: Victim
    x: Tensor
    y: Tensor
    valid: Tensor
    eps: float
    margins: tuple[float, float] = (65.0, 330.0)

    def streams(self, purpose: str) -> RandomStreams:
        return RandomStreams(0, [f"clip{i}" for i in range(len(self.y))], purpose)

    def evaluation(
        self,
        name: str = "pgd",
        options: Mapping[str, Any] | None = None,
        *,
        attack: Callable[..., Tensor] | None = None,
        defenses: Sequence[Defense] = (),
        victim: Victim | None = None,
        norm: str = "linf",
        eps: float | str | None = None,
        stage: str = "waveform",
        is_adaptive: bool = True,
        surrogate: bool = False,
        targeted: bool = False,
    ) -> Evaluation:
        """The attack against the victim behind the defenses.

        Args:
            attack: runs in place of the registered one.
            eps: the budget; None for that of linf, or of a minimum-norm attack.
            surrogate: the attack sees the victim without the defenses.
        """
        victim = victim or self.victim
        defended = victim.defended(defenses) if defenses else victim
        head, tail = defended.split(stage)
        chain, undefended = with_lengths(tail, self.valid, head), with_lengths(victim.split(stage)[1], self.valid, head)
        model: Any = undefended if surrogate else chain
        if is_adaptive:
            model = adaptive(model, rng=self.streams("eot"), draws=5)
        elif is_randomized(model):
            model = Eot(model, 1, self.streams("eot")).eval()
        with torch.no_grad():
            z = head(self.x)
        mask = head.mask(self.valid)
        evaluation = Evaluation.of(
            name, options or {}, chain=chain, model=model, x=z, y=(self.y + 1) % 3 if targeted else self.y,
            attack=attack or with_options(name, options or {}, victim.sample_rate), streams=self.streams,
            threat=ThreatModel(norm, bounds=defended.bounds(stage), mask=mask), targeted=targeted,
            is_adaptive=is_adaptive, undefended=undefended if defenses else None,
        )  # fmt: skip
        if not evaluation.spec.has_budget:
            return evaluation
        budget = Budget.parse(self.eps if eps is None else eps).eps(z, norm, mask)
        return replace(evaluation, threat=replace(evaluation.threat, eps=budget))

    def scaled(self, to_margin: float) -> Victim:
        """The victim with its logits multiplied, so that the median margin of these clips is `to_margin`."""
        with torch.no_grad():
            factor = to_margin / float(margin(self.victim(self.x, self.valid), self.y).abs().median())
        return _replaced(self.victim, Scaled(self.victim.classifier, factor))

    def behind(self, stage: Defense) -> Evaluation:
        """PGD on a victim with this stage in front, which nobody knows to be a defense."""
        return replace(self.evaluation(defenses=[stage]), undefended=None)


def _replaced(victim: Victim, classifier: nn.Module) -> Victim:
    facts = {"classes": victim.classes, "sample_rate": victim.sample_rate, "n_samples": victim.n_samples}
    return Victim(list(victim.stages), classifier, **facts).eval()  # type: ignore[arg-type]


class Scaled(nn.Module):
    """A classifier with larger logits."""

    def __init__(self, classifier: Any, factor: float):
        super().__init__()
        self.classifier, self.factor = classifier, factor
        self.uses_mask = bool(getattr(classifier, "uses_mask", False))

    def forward(self, *features: Tensor) -> Tensor:
        return self.factor * self.classifier(*features)


class Front(Defense):
    """A waveform stage that says nothing of what it does."""

    def __init__(self, change: Callable[[Tensor], Tensor]):
        super().__init__("front")
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


def detached(x: Tensor) -> Tensor:
    return x.detach()


def rounded(x: Tensor) -> Tensor:
    """Rounded to 12 bits: the gradient is zero almost everywhere."""
    return (x * 2048).round() / 2048


def shattered(x: Tensor) -> Tensor:
    """A change of 3e-5 at most, one 16-bit step, whose slope is 30 times that of the clip and changes its sign."""
    return x + 3e-5 * torch.sin(1e6 * x)


def undefined_when_quiet(x: Tensor) -> Tensor:
    """Level normalization with a logarithm that is undefined for the quieter half of the clips."""
    rms = x.square().mean(1, keepdim=True).sqrt()
    return x * (1 + 0 * (rms - rms.median()).log())


PGD = ATTACKS["pgd"]


def wrong_sign(model: Any, x: Tensor, y: Tensor, threat: ThreatModel, **keys: Any) -> Tensor:
    """Descends the loss."""
    x_adv = x
    for _ in range(40):
        grad, _, _ = gradient(model, x_adv, lambda logits: margin(logits, y))
        x_adv = threat.project(x_adv - 0.0625 * column(threat.budgets(x), x) * threat.ascent(grad), x)
    return x_adv


def wrong_label(model: Any, x: Tensor, y: Tensor, threat: ThreatModel, **keys: Any) -> Tensor:
    """Leads away from the next label instead of the clip's own."""
    with torch.no_grad():
        n_classes = model(x).shape[1]
    return PGD(model, x, (y + 1) % n_classes, threat, **keys)


def last_iterate(model: Any, x: Tensor, y: Tensor, threat: ThreatModel, **keys: Any) -> Tensor:
    """Goes back towards the clip at every success, to make the perturbation small, and returns the last iterate."""
    x_adv = x
    for _ in range(41):
        grad, value, _ = gradient(model, x_adv, lambda logits: margin(logits, y))
        forward = x_adv + 0.0625 * column(threat.budgets(x), x) * threat.ascent(grad)
        x_adv = threat.project(torch.where(column(value > 0, x), x + 0.8 * (x_adv - x), forward), x)
    return x_adv


def restarted_from_clip(model: Any, x: Tensor, y: Tensor, threat: ThreatModel, **keys: Any) -> Tensor:
    """Every step begins at the clip again."""
    x_adv = x
    for _ in range(40):
        grad, _, _ = gradient(model, x_adv, lambda logits: cross_entropy(logits, y))
        x_adv = threat.project(x + 0.0625 * column(threat.budgets(x), x) * threat.ascent(grad), x)
    return x_adv


def half_budget(model: Any, x: Tensor, y: Tensor, threat: ThreatModel, **keys: Any) -> Tensor:
    return PGD(model, x, y, replace(threat, eps=threat.budgets(x) / 2), **keys)


def constant_size(model: Any, x: Tensor, y: Tensor, threat: ThreatModel, **keys: Any) -> Tensor:
    """Three 16-bit steps at most, whatever eps is."""
    return PGD(model, x, y, replace(threat, eps=threat.budgets(x).clamp(max=1e-4)), **keys)


@dataclass(frozen=True)
class Case:
    """One evaluation.

    Attributes:
        name: what it is, for the table.
        build: the evaluation on some clips.
        signs: any of these indicators has to fail; none where the evaluation is sound.
    """

    name: str
    build: Callable[[Clips], Evaluation]
    signs: tuple[str, ...] = ()

    def failing(self, indicators: Sequence[Indicator]) -> list[Indicator]:
        return [indicator for indicator in indicators if indicator.failed]

    def as_wanted(self, indicators: Sequence[Indicator]) -> bool:
        """Whether the fault was caught by an indicator that is meant for it, or the sound evaluation shows no sign."""
        failing = {indicator.name for indicator in self.failing(indicators)}
        return bool(failing & set(self.signs)) if self.signs else not failing


def instead(attack: Callable[..., Tensor]) -> Callable[[Clips], Evaluation]:
    return lambda clips: clips.evaluation(attack=attack)


def defense(name: str, **options: Any) -> Defense:
    built: Defense = DEFENSES[name](sample_rate=16000, **options)
    return built


FAULTS = (
    Case("`detach()` in the model", lambda c: c.behind(Front(detached)), ("zero_gradient",)),
    Case("cross-entropy on saturated logits (x 100)", lambda c: c.evaluation(victim=c.scaled(c.margins[1])),
         ("zero_gradient", "black_box_is_better")),
    Case("too few steps: 3", lambda c: c.evaluation(options={"steps": 3}), ("incomplete",)),
    Case("too small steps: a path of a tenth of eps", lambda c: c.evaluation(options={"step": 0.1}),
         ("incomplete", "reach")),
    Case("wrong sign: the loss is minimized", instead(wrong_sign), ("unbounded_accuracy", "reference_is_better")),
    Case("wrong label", instead(wrong_label), ("reference_is_better",)),
    Case("last iterate returned instead of the best", instead(last_iterate), ("silent_success",)),
    Case("random defense without EOT", lambda c: c.evaluation(defenses=[defense("noise_at_snr")], is_adaptive=False),
         ("not_adaptive", "unstable")),
    Case("`quantize` without BPDA", lambda c: c.evaluation(defenses=[defense("quantize")], is_adaptive=False),
         ("not_adaptive", "zero_gradient")),
    Case("undeclared rounding to 12 bits in the model", lambda c: c.behind(Front(rounded)), ("zero_gradient",)),
    Case("undeclared wiggle that shatters the gradient", lambda c: c.evaluation(defenses=[Front(shattered)]),
         ("transfer_is_better", "black_box_is_better")),
    Case("attack of the surrogate without the defense",
         lambda c: c.evaluation(defenses=[defense("quantize")], surrogate=True), ("silent_success",)),
    Case("projection onto half of eps", instead(half_budget), ("reach",)),
    Case("constant size, whatever eps is", instead(constant_size), ("reach", "unbounded_accuracy")),
    Case("NaN logits for every second clip", lambda c: c.behind(Front(undefined_when_quiet)), ("not_finite",)),
    Case("every step begins at the clip again", instead(restarted_from_clip), ("reach",)),
)  # fmt: skip
SOUND = (
    Case("PGD", lambda c: c.evaluation()),
    Case("PGD, margin loss, targeted", lambda c: c.evaluation(options={"loss": "margin"}, targeted=True)),
    Case("PGD in l2", lambda c: c.evaluation(norm="l2", eps="42 dB")),
    Case("PGD at the magnitude", lambda c: c.evaluation(norm="l2", eps="42 dB", stage="magnitude")),
    Case("PGD through EOT on `noise_at_snr`",
         lambda c: c.evaluation(options={"early_exit": False}, defenses=[defense("noise_at_snr", snr_db=30.0)])),
    Case("PGD through BPDA on `quantize`",
         lambda c: c.evaluation(options={"early_exit": False}, defenses=[defense("quantize", step=8)])),
    Case("PGD, cross-entropy on large logits (x 20)", lambda c: c.evaluation(victim=c.scaled(c.margins[0]))),
    Case("APGD", lambda c: c.evaluation("apgd")),
    Case("APGD in l1", lambda c: c.evaluation("apgd", norm="l1", eps=8000 * c.eps)),
    Case("AutoAttack (targets 2, queries 100)", lambda c: c.evaluation("autoattack", {"targets": 2, "queries": 100})),
    Case("CW (3 x 50 steps)", lambda c: c.evaluation("cw", {"steps": 50, "search_steps": 3}, norm="l2")),
    Case("DDN", lambda c: c.evaluation("ddn", norm="l2")),
    Case("FMN in linf", lambda c: c.evaluation("fmn")),
    Case("Square (500 queries)", lambda c: c.evaluation("square", {"queries": 500})),
    Case("NES (500 queries)", lambda c: c.evaluation("nes", {"queries": 500})),
    Case("`snr_pgd` at 45 dB", lambda c: c.evaluation("snr_pgd", {"snr_db": 45.0})),
    Case("`band_limited` above 4 kHz", lambda c: c.evaluation("band_limited")),
    Case("`gain_mask`", lambda c: c.evaluation("gain_mask")),
    Case("Kenansville", lambda c: c.evaluation("kenansville", norm="l2")),
    Case("HopSkipJump (500 queries)", lambda c: c.evaluation("hopskipjump", {"queries": 500}, norm="l2")),
)  # fmt: skip


def load(model: Path, data: Path, count: int, eps: float) -> Clips:
    """The first `count` validation clips that the model classifies correctly."""
    victim = api.load_model(model)
    clips = api.fitting(victim, api.load_clips(data, "validation"))
    x, y, valid = clips.waveforms(), clips.labels, clips.valid()
    frozen = victim.frozen()
    with torch.no_grad():
        right = (frozen(x, valid).argmax(1) == y).nonzero().flatten()[:count]
    return Clips(frozen, x[right], y[right], valid[right], eps)


def line(case: Case, indicators: Sequence[Indicator]) -> str:
    """A row of the table: the case, whether it was judged rightly, and the signs with their values."""
    failing = case.failing(indicators)
    signs = ", ".join(
        f"**{i.name}** {i.value:.2g}" if i.name in case.signs else f"{i.name} {i.value:.2g}" for i in failing
    )
    wanted = ("caught" if case.signs else "passed") if case.as_wanted(indicators) else "**WRONG**"
    return f"| {case.name} | {wanted} | {signs or '-'} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path, help="a trained keyword model")
    parser.add_argument("data", type=Path, help="folder of prepared clips")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--eps", type=float, default=0.0005, help="linf")
    parser.add_argument("--only", help="print only the cases whose names contain this, and leave the page alone")
    args = parser.parse_args()
    clips = load(args.model, args.data, args.clips, args.eps)
    tables, wrong = [], 0
    for title, cases in (("planted fault", FAULTS), ("sound evaluation", SOUND)):
        lines = [f"| {title} | verdict | signs of failure, with their values |", "|---|---|---|"]
        for case in cases:
            if args.only and args.only not in case.name:
                continue
            indicators = check(case.build(clips))
            wrong += not case.as_wanted(indicators)
            lines.append(line(case, indicators))
            print(lines[-1], flush=True)
        tables.append("\n".join(lines))
    if not args.only:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(tables) + f"\n\n{END}{after}", encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
