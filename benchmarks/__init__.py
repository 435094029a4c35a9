"""Side-by-side measurements of ours, a peer and the raw limit, in one run on the same clips."""
