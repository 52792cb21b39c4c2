"""JANUS: joint autoregressive and non-autoregressive sequence-generation pretraining."""

__version__ = "0.1.0"
