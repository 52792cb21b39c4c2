"""Tasks: what is read, how it is decoded and how it is scored, one declarative row each."""
