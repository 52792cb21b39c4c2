"""Imported by the server process that data workers are forked from, and by nothing else.

The server must survive the signals that launchers send to all descendants of a rank. If it died, the rank would take
its workers for dead, and could not read the step after which it saves. The server ends when the rank does.
"""

import signal

# What the workers need, imported once here and not in each of them.
import janus_pt.data.workers  # noqa: F401

# SIGINT is not here: multiprocessing's fork server ignores it already.
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
