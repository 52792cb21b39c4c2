"""`janus-pt gpu-check`, as a script."""

from __future__ import annotations

from janus_pt.commands.main import main

if __name__ == "__main__":
    main("gpu-check")
