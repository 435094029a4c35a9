"""Roles of speakers, for corpora without lists of them: background, enrolled, imposter."""

from __future__ import annotations

from collections.abc import Mapping

from src.datasets.splits import seeded_split
from src.random_streams import derive_seed


def seeded_roles(
    speakers: Mapping[str, str],
    enrolled: int,
    imposters: int,
    validation: float,
    test: float,
    seed: int,
    *,
    groups: Mapping[str, str] | None = None,
    background: bool = True,
) -> dict[str, str]:
    """The split of every utterance, by the role of its speaker.

    Speakers are drawn: the first `enrolled` are enrolled, the next `imposters` are imposters, and all others are the
    background. An enrolled speaker's utterances are enrollment, calibration (the share `validation`) and test (the
    share `test`) clips, a background speaker's training and validation clips. No imposter is in two splits: the first
    half of them (rounded down) is calibration, the rest test.

    Args:
        speakers: clip id -> speaker.
        groups: clip id -> session, whose clips stay in one split; None where every clip stands alone.
        background: some of these speakers must be left to train on.

    Returns:
        clip id -> split.

    Raises:
        ValueError: no speaker is left for the background.
    """
    names = sorted(set(speakers.values()), key=lambda name: (derive_seed(seed, name, "role"), name))
    if background and enrolled + imposters >= len(names):
        raise ValueError(
            f"{enrolled} enrolled speakers and {imposters} imposters leave none of the {len(names)} to train on"
        )
    role_of = dict.fromkeys(names, "background")
    role_of |= dict.fromkeys(names[:enrolled], "enrolled")
    role_of |= dict.fromkeys(names[enrolled : enrolled + imposters // 2], "calibration")
    role_of |= dict.fromkeys(names[enrolled + imposters // 2 : enrolled + imposters], "test")
    members: dict[str, dict[str, str]] = {"background": {}, "enrolled": {}}
    splits = {}
    for clip, speaker in speakers.items():
        role = role_of[speaker]
        if role in members:
            members[role][clip] = speaker
        else:
            splits[clip] = role
    as_role = {"train": "enrollment", "validation": "calibration", "test": "test"}
    of_enrolled = seeded_split(members["enrolled"], groups or {}, validation, test, seed)
    splits |= {clip: as_role[split] for clip, split in of_enrolled.items()}
    return splits | seeded_split(members["background"], groups or {}, validation, 0.0, seed)


def check_roles(splits: Mapping[str, str], speakers: Mapping[str, str]) -> None:
    """Refuse splits in which a speaker has two roles: results on speakers that the network, the back end or the
    threshold has met before would be too good.

    Args:
        splits: clip id -> split.
        speakers: clip id -> speaker.

    Raises:
        ValueError: names one such speaker.
    """
    splits_of: dict[str, set[str]] = {}
    for clip, split in splits.items():
        splits_of.setdefault(speakers[clip], set()).add(split)
    for speaker, found in sorted(splits_of.items()):
        background, trials = found & {"train", "validation"}, found & {"enrollment", "calibration", "test"}
        if background and trials:
            first, second = sorted(background)[0], sorted(trials)[0]
            raise ValueError(
                f"speaker {speaker} is in the split {first}, whose speakers are the background, and in {second}"
            )
        if trials == {"calibration", "test"}:
            raise ValueError(f"speaker {speaker}, who is not enrolled, is an imposter both in calibration and in test")
