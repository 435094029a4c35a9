"""Attacks that follow gradients within a budget."""
