"""`python -m janus_pt`: the command line where its script is not on the path."""

from __future__ import annotations

from janus_pt.commands.main import main

if __name__ == "__main__":
    main()
