"""Decision-based attacks: they see predicted labels only."""
