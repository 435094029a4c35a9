"""Random controls: perturbations of an attack's size without its direction, which an attack has to outperform."""
