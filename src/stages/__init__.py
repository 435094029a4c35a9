"""Front-end steps, one differentiable stage per file, and the front ends that chain them."""
