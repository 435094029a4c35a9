"""Gradient attacks within a budget."""
