"""One transformation per file; each registers itself under its name."""
