"""Knowledge distillation (Hinton et al. 2015, "Distilling the knowledge in a neural network")."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from src.registry import METHODS, Fraction, Positive
from src.training.methods.learner import Learner


@METHODS.register("distillation")
def distillation(
    learner: Learner,
    x: Tensor,
    y: Tensor,
    *,
    teacher: str = "",
    temperature: Positive = 1.0,
    weight: Fraction = 1.0,
) -> Tensor:
    """Cross-entropy against the probabilities of a trained model, which hears the same augmented waveforms through its
    own front end; mixup must be off.

    weight * T^2 * CE(softmax(teacher / T), softmax(logits / T)) + (1 - weight) * CE(labels, softmax(logits)), with the
    temperature T, means over the batch. The factor T^2 keeps the gradient of the first term in the scale of the second.
    Label smoothing concerns the second term, feature augmentation (SpecAugment) the student alone.

    Args:
        teacher: name of a trained model in model_dir, with the same classes, sample rate and clip length; it may have
            another front end.
        temperature: T, which divides the logits of both before the softmax.
        weight: of the teacher's probabilities against the labels; 1 uses no labels.
    """
    if learner.taught is None:
        raise ValueError("distillation needs the logits of a teacher for every batch")
    logits = learner(x)
    soft = F.cross_entropy(logits / temperature, (learner.taught / temperature).softmax(1))
    return weight * temperature**2 * soft + (1 - weight) * learner.loss(logits, y)
