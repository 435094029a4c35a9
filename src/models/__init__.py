"""One classifier per file; each registers itself under its name."""
