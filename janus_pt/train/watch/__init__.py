"""Watching a run while it trains: other ranks, requests to stop, losses and gradients."""
