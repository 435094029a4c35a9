"""One inversion per file; each registers itself under its name."""
