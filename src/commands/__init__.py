"""What a script does, piece by piece. It may import everything in src; only scripts import it."""
