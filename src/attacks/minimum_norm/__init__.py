"""Minimum-norm attacks by gradients: they minimize the perturbation."""
