"""One attack per file; each registers itself under its name."""
