"""Attacks made for sound: bands, rooms, masking, gains, levels."""
