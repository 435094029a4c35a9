"""Training methods, one per file; each registers itself and computes the loss of a batch."""
