"""One JSON file read into one frozen, checked `Config`. Imports no torch."""
