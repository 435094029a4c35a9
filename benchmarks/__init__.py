"""Side-by-side measurements: ours, a peer and the raw limit in one run on the same clips."""
