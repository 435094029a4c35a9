"""The toolkit from Python, for a notebook: load a model and clips, attack, judge, certify, write a wav.

    from src import api as earshot

Everything here calls the components that the scripts call; nothing reads config.ini or writes result files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.datasets import store
from src.datasets.store import Clips
from src.evaluation import AttackSettings, Crafter, Judge
from src.output import results
from src.registry import ATTACKS, INVERSIONS, choose
from src.smoothing import Certificate, Certifier, CertifySettings
from src.threat import Budget
from src.victims import checkpoint
from src.victims.stage import WAVEFORM
from src.victims.victim import Victim


@dataclass(frozen=True)
class Adversarial:
    """What an attack made of clips.

    Attributes:
        clips: the adversarial clips, 16-bit as a wav would hold them.
        facts: what is known of each: prediction, predictions at the stage and in audio, distance, SNR, PESQ, calls ...
        original: the clips before the attack.
        victim: the model that was attacked.
        targeted: whether the attack aimed at the label `facts[i]["target"]`.
    """

    clips: Clips
    facts: Sequence[Mapping[str, Any]]
    original: Clips
    victim: Victim
    targeted: bool


def load_model(path: str | Path) -> Victim:
    """A trained model with its front end, from raw samples [batch, time] in [-1, 1] to logits [batch, classes].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or a damaged one.
    """
    return checkpoint.load(Path(path))[0]


def load_clips(data_dir: str | Path, split: str = "test") -> Clips:
    """Prepared clips (see prepare_dataset.py): samples, labels, ids and classes.

    Raises:
        FileNotFoundError: nothing prepared there.
        ValueError: an unknown or empty split, or a damaged store.
    """
    return store.load(Path(data_dir).expanduser(), split)


def attack(
    victim: Victim,
    clips: Clips,
    name: str,
    *,
    eps: float | str | None = None,
    inversion: str = "gain_mask",
    device: torch.device | str = "cpu",
    options: Mapping[str, Any] | None = None,
    fit_clips: Clips | None = None,
    **settings: Any,
) -> Adversarial:
    """Attack clips with a registered attack.

    Args:
        name: of the attack, e.g. pgd.
        eps: the budget, in units of the attacked stage or as an SNR such as "30 dB"; None for an attack that looks for
            the smallest perturbation.
        inversion: back to audio where the stage is not the waveform.
        options: keys of the attack, e.g. {"steps": 100}.
        fit_clips: training clips that an attack such as universal is fitted to first.
        settings: keys of the section [ATTACK]: stage, norm, mask, targeted, seed, batch_size ...

    Raises:
        ValueError: an unknown attack, key or stage, or a combination that the attack cannot do.
    """
    for key in options or ():
        choose(key, [known.name for known in ATTACKS.keys(name)], f"key of {name}")
    clips = clips.relabeled(victim.classes)
    budget = None if eps is None else Budget.parse(eps)
    if budget:
        settings["eps"] = (budget,)
    attack_settings = AttackSettings(names=(name,), **settings)
    crafter = Crafter(victim, attack_settings, functools.partial(INVERSIONS[inversion]), torch.device(device))
    fitted = crafter.fit(fit_clips, name, options or {}, budget) if fit_clips else None
    crafted = list(crafter.craft(clips, name, options or {}, budget, fitted))
    adversarial = replace(clips, samples=np.stack([clip.samples for clip in crafted]))
    return Adversarial(adversarial, [clip.facts for clip in crafted], clips, victim, attack_settings.targeted)


def judge(victim: Victim, adversarial: Adversarial, *, device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """Score adversarial clips on a model: one row per clip with its predictions and whether the wav fools it. A model
    that was not the one attacked is judged on the wav alone."""
    clean = None if victim is adversarial.victim else adversarial.original
    rows = Judge(victim, torch.device(device)).rows(
        adversarial.clips, adversarial.facts, targeted=adversarial.targeted, clean=clean
    )
    return list(rows)


def certify(
    victim: Victim, x: Tensor, *, sigma: float, stage: str = WAVEFORM, valid: Tensor | None = None, **settings: Any
) -> Certificate:
    """Certify one waveform [time] by randomized smoothing at a stage: the label that the vote over noise gives, and the
    L2 radius at that stage within which no change can alter it.

    Args:
        sigma: standard deviation of the noise, in units of the stage.
        valid: bool [time], the samples that are not padding, for a model that leaves padding out.
        settings: keys of the section [CERTIFY]: n0, n, alpha, mode, radii, seed ...

    Raises:
        ValueError: an unknown stage, or settings out of range.
    """
    certify_settings = CertifySettings(stage=stage, sigma=(sigma,), **settings)
    certifier = Certifier(*victim.frozen().split(stage), certify_settings, victim.sample_rate)
    return certifier(x, "clip", sigma, valid)


def write_wav(path: str | Path, x: Tensor, sample_rate: int) -> None:
    """Write a waveform [time] in [-1, 1] as a 16-bit wav, rounded and clipped."""
    results.write_wav(Path(path), x.detach().cpu().numpy(), sample_rate)
