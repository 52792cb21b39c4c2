"""Imported by the server process that data workers are forked from, and by nothing else.

The server outlives signals that launchers send to all descendants of a rank: without it the rank would take its
workers for dead, and could not read the step after which it is to save. It ends when the rank does.
"""

import signal

import janus_pt.data.workers  # noqa: F401  what the workers need

for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
