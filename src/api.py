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

from src.attacks.registration import spec_of
from src.budget import Budget
from src.datasets import store
from src.datasets.store import Clips
from src.evaluation import AttackSettings, Crafter, Judge
from src.evaluation.passing import COMMON_KEYS, check_passing
from src.output import results
from src.registry import ATTACKS, INVERSIONS, keys_of, validated
from src.smoothing import Certificate, Certifier, CertifySettings
from src.smoothing.settings import ATTACKING
from src.victims import checkpoint
from src.victims.stage import WAVEFORM
from src.victims.victim import Victim


@dataclass(frozen=True)
class Adversarial:
    """What an attack made of clips.

    Attributes:
        clips: the adversarial clips, 16-bit as a wav would hold them.
        facts: what is known of each: prediction, predictions at the stage and in audio, distance, SNR, PESQ, calls ...
        original: the clips before the attack, with labels in their own classes.
        victim: the model that was attacked.
        targeted: whether the attack aimed at the label `facts[i]["target"]`.
        seed: of the draws of a randomized model.
    """

    clips: Clips
    facts: Sequence[Mapping[str, Any]]
    original: Clips
    victim: Victim
    targeted: bool
    seed: int = 0


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


def fitting(victim: Victim, clips: Clips) -> Clips:
    """The clips with labels that count in the model's classes.

    Raises:
        ValueError: they have another sample rate, length or class than those the model was trained for.
    """
    checkpoint.check_fits(victim, None, sample_rate=clips.sample_rate, n_samples=clips.n_samples)
    return clips.relabeled(victim.classes)


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
    ensemble: Sequence[Victim] = (),
    **settings: Any,
) -> Adversarial:
    """Attack clips with a registered attack.

    Args:
        name: of the attack, e.g. pgd.
        eps: the budget, in units of the attacked stage or as an SNR such as "30 dB"; None for an attack that looks for
            the smallest perturbation.
        inversion: back to audio where the stage is not the waveform.
        options: keys of the attack, e.g. {"steps": 100}.
        fit_clips: training clips that an attack such as universal is fitted to first, or that one from predicted labels
            begins at where it aims at a target.
        ensemble: other models that are attacked together with this one, for clips that transfer.
        settings: keys of the section [ATTACK]: stage, norm, mask, targeted, seed, batch_size ...

    Raises:
        ValueError: an unknown attack, key or stage, a value out of range, a budget that is missing, clips that do not
            fit the model, or a combination that the attack cannot do.
    """
    options = validated([*COMMON_KEYS, *ATTACKS.keys(name)], options or {}, f"key of {name}")
    ATTACKS.check_options(name, {**options, "sample_rate": victim.sample_rate})
    if eps is None and spec_of(name).has_budget:
        raise ValueError(f"{name} needs a budget: give eps")
    budget = None if eps is None else Budget.parse(eps)
    values = {**settings, "names": (name,)} | ({"eps": (budget,)} if budget else {})
    attack_settings = AttackSettings(**validated(keys_of(AttackSettings), values, "setting of [ATTACK]"))
    check_passing(spec_of(name), options, attack_settings.adaptive)
    original, clips, fit_clips = clips, fitting(victim, clips), fit_clips and fitting(victim, fit_clips)
    inverted, device = functools.partial(INVERSIONS[inversion]), torch.device(device)
    partners = [Crafter(other, attack_settings, inverted, device) for other in ensemble]
    crafter = Crafter(victim, attack_settings, inverted, device, partners)
    begins_there = spec_of(name).takes_examples
    fitted = crafter.fit(fit_clips, name, options, budget) if fit_clips and not begins_there else None
    crafted = list(crafter.craft(clips, name, options, budget, fitted, fit_clips))
    adversarial = replace(clips, samples=np.stack([clip.samples for clip in crafted]))
    return Adversarial(
        adversarial, [clip.facts for clip in crafted], original, victim, attack_settings.targeted, attack_settings.seed
    )


def judge(victim: Victim, adversarial: Adversarial, *, device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """Score adversarial clips on a model: one row per clip with its predictions and whether the wav fools it. A model
    that was not the one attacked is judged on the wav alone, at its own sample rate and length.

    Raises:
        ValueError: clips of a class that the model does not know, or that do not fit the attacked model.
    """
    if victim is adversarial.victim:
        fitting(victim, adversarial.clips)
    clean = None if victim is adversarial.victim else adversarial.original
    rows = Judge(victim, torch.device(device), seed=adversarial.seed).rows(
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
        settings: keys of the section [CERTIFY]: n0, n, alpha, mode, radii, seed ...; the noise is white.

    Raises:
        ValueError: an unknown stage or setting, one out of range, or a clip of another length than the model's.
    """
    values = {**settings, "stage": stage, "sigma": (sigma,)}
    keys = [key for key in keys_of(CertifySettings) if key.name not in ("noise", *ATTACKING)]
    certify_settings = CertifySettings(**validated(keys, values, "setting of [CERTIFY]"))
    for name, tensor in ({"x": x} | ({} if valid is None else {"valid": valid})).items():
        if tensor.dim() != 1 or (len(tensor) != victim.n_samples and not victim.uses_mask):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, the model takes clips [{victim.n_samples}]")
    certifier = Certifier(*victim.frozen().split(stage), certify_settings, victim.sample_rate)
    return certifier(x, "clip", sigma, valid)


def write_wav(path: str | Path, x: Tensor, sample_rate: int) -> None:
    """Write a waveform [time] in [-1, 1] as a 16-bit wav, rounded and clipped."""
    results.write_wav(Path(path), x.detach().cpu().numpy(), sample_rate)
