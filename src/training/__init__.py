"""Training: settings, batches, methods and the loop. `fit` trains one victim and saves it."""

from src.training.loop import fit
from src.training.settings import TrainingSettings

__all__ = ["TrainingSettings", "fit"]
