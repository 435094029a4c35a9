"""The classifier under attack: a chain of named stages, its adaptive and frozen copies, its checkpoint."""
