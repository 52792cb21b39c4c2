"""Memory, traffic and time of a configuration by formula, without building a model."""
