"""JANUS: joint autoregressive and non-autoregressive sequence-generation pretraining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus_pt.inference.janus_model import JanusModel

__version__ = "0.1.0"
__all__ = ["JanusModel"]


def __getattr__(name: str) -> Any:
    """`JanusModel`, imported when it is first asked for: tools that only read data need no torch."""
    if name == "JanusModel":
        from janus_pt.inference.janus_model import JanusModel

        return JanusModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
