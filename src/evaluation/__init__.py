"""Evaluation of attacks: craft adversarial clips, judge them on any model, and sum up the rows."""

from src.evaluation import summary, worst_case
from src.evaluation.craft import CraftedClip, Crafter, threat_norm, with_options
from src.evaluation.judge import ATTACK_FIELDS, ATTACK_KEY, Judge
from src.evaluation.settings import AttackSettings

__all__ = [
    "ATTACK_FIELDS",
    "ATTACK_KEY",
    "AttackSettings",
    "CraftedClip",
    "Crafter",
    "Judge",
    "summary",
    "threat_norm",
    "with_options",
    "worst_case",
]
