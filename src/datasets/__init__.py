"""Data: one loader per corpus, and the clip store that every later script reads."""
