"""Earshot: attack, defend and certify audio classifiers, and listen to the result."""
