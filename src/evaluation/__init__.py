"""Evaluation of attacks: run them, verify what they return, judge it on the true victim, and sum up the rows."""

from src.evaluation import summary
from src.evaluation.evaluate import ATTACK_FIELDS, ATTACK_KEY, Evaluation, Outcome, threat_norm, with_options
from src.evaluation.settings import AttackSettings

__all__ = [
    "ATTACK_FIELDS",
    "ATTACK_KEY",
    "AttackSettings",
    "Evaluation",
    "Outcome",
    "summary",
    "threat_norm",
    "with_options",
]
