"""The config section [SPEAKER]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from src.registry import BACK_ENDS, Listed, Natural
from src.victims.recognizer import Task


@dataclass(frozen=True, kw_only=True)
class SpeakerSettings:
    """Recognizers of enrolled speakers, made of trained networks that give embeddings.

    Args:
        tasks: csi: which of the enrolled speakers it is; sv: whether it is the one enrolled speaker, a recognizer for
            each; osi: which of them, or nobody.
        back_ends: how embeddings are scored, a recognizer for each.
        score_norms: none, or as_norm: scores relative to those of background clips, a recognizer for each.
        cohort_top: background clips nearest to either side that as_norm counts; one alone has no spread.
        speakers: who is enrolled; empty for all speakers of the split enrollment.
        utterances: enrolled clips per speaker, drawn with the seed; 0 for all.
        false_accept_rate: share of the calibration trials of imposters that the threshold may accept, or eer: the
            point where it accepts as large a share of them as it rejects of the enrolled.
        target_prior: share of trials by the claimed speaker that minDCF assumes.
    """

    tasks: Listed[Task] = ("osi",)
    back_ends: Listed[BACK_ENDS.Name] = ("cosine",)  # type: ignore[name-defined]
    score_norms: Listed[Literal["none", "as_norm"]] = ("none",)
    cohort_top: Annotated[int, Ge(2)] = 50
    speakers: tuple[str, ...] = ()
    utterances: Natural = 0
    false_accept_rate: Annotated[float, Ge(0), Le(1)] | Literal["eer"] = "eer"
    target_prior: Annotated[float, Gt(0), Lt(1)] = 0.01

    def __post_init__(self) -> None:
        for key in ("tasks", "back_ends", "score_norms", "speakers"):
            values = getattr(self, key)
            if repeated := [value for i, value in enumerate(values) if value in values[:i]]:
                raise ValueError(f"{key} names {repeated[0]} twice")
