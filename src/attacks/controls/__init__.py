"""Random perturbations of an attack's size, which an attack has to beat."""
