"""Where clips come from: one loader per corpus, and the store that every later script reads."""
