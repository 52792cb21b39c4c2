"""Files, errors, processes, text: what every room needs. Knows nothing of models."""
