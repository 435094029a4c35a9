"""Evaluation of attacks: run them, verify what they return, judge it on the true victim, and sum up the rows."""

from src.evaluation import summary
from src.evaluation.evaluate import FIELDS, KEY, Evaluation, Outcome, bound, threat_norm
from src.evaluation.settings import Attack

__all__ = ["FIELDS", "KEY", "Attack", "Evaluation", "Outcome", "bound", "summary", "threat_norm"]
