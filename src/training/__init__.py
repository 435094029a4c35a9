"""Training: settings, batches, methods and the loop. `fit` trains one victim and writes it to disk."""

from src.training.loop import fit
from src.training.settings import TrainingSettings

__all__ = ["TrainingSettings", "fit"]
