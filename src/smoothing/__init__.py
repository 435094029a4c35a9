"""Certified robustness by randomized smoothing: bounds on probabilities, the smoothed classifier, shaped noise, gain
and time shift, and summaries of the rows of a run."""

from src.smoothing.bounds import BettingTest, lower_bound, round_down
from src.smoothing.certifier import UNITS, Certifier, certificate_notes, check_certifiable, spectrum
from src.smoothing.noise import ShapedNoise
from src.smoothing.settings import CertifySettings
from src.smoothing.smooth import ABSTAIN, Certificate, Smooth, tune
from src.smoothing.summary import CERTIFICATE_FIELDS

__all__ = [
    "ABSTAIN",
    "CERTIFICATE_FIELDS",
    "UNITS",
    "BettingTest",
    "Certificate",
    "Certifier",
    "CertifySettings",
    "ShapedNoise",
    "Smooth",
    "certificate_notes",
    "check_certifiable",
    "lower_bound",
    "round_down",
    "spectrum",
    "tune",
]
