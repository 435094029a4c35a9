"""Attacks, one per file, in folders by what the attacker needs; each registers itself under its name."""
