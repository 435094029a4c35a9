"""Attacks specific to audio: frequency bands, room acoustics, masking, time-frequency gains, SNR budgets."""
