"""Training: settings, batches, objectives and the loop. `fit` trains one victim and writes it to disk."""

from src.training.loop import fit
from src.training.objectives import OBJECTIVES
from src.training.settings import Training

__all__ = ["OBJECTIVES", "Training", "fit"]
