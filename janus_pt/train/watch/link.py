"""A connection between two ranks that carries short messages; the kernel says when the other end is gone.

When a process ends, however it ends, its kernel closes its connections; when a host vanishes, this
side's kernel notices that nothing is acknowledged any more. Neither needs the other process's Python,
whose interpreter lock may be held for minutes by a read of a slow disk.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

HOST_LOST_S = 15
"""Seconds without an acknowledgement after which a host is taken for lost."""
KEEPALIVE_PROBES = 3
MESSAGE_BYTES = 65536

Message = list[Any]
"""A word that says what it is, then its values, in JSON's types."""


class Link:
    """One end of a connection. Nothing here waits."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._received = b""

    def fileno(self) -> int:
        """For a selector."""
        return self._connection.fileno()

    def send(self, *message: Any) -> None:
        """Send a message; it is lost if the other end is gone, which `receive` tells."""
        with contextlib.suppress(OSError):
            self._connection.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> tuple[list[Message], bool]:
        """The messages that have come, and whether the connection is closed."""
        closed = False
        try:
            content = self._connection.recv(MESSAGE_BYTES)
            closed = not content
            self._received += content
        except BlockingIOError:
            # Nothing has come: the connection is open, and does not block.
            pass
        except OSError:
            closed = True
        *lines, self._received = self._received.split(b"\n")
        messages = []
        for line in lines:
            # A line from a stranger, who found the port.
            with contextlib.suppress(ValueError):
                messages.append(json.loads(line))
        return [message for message in messages if isinstance(message, list) and message], closed

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def listen() -> socket.socket:
    """A socket to which other hosts connect, at a free port."""
    if socket.has_dualstack_ipv6():
        address: tuple[str, int] = ("", 0)
        return socket.create_server(
            address, family=socket.AF_INET6, dualstack_ipv6=True, backlog=socket.SOMAXCONN
        )
    return socket.create_server(("", 0), backlog=socket.SOMAXCONN)


def watched(connection: socket.socket) -> Link:
    """A link whose other end is on another host, which may vanish without closing it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every_s = HOST_LOST_S // KEEPALIVE_PROBES
    options = {
        "TCP_KEEPIDLE": every_s,
        "TCP_KEEPINTVL": every_s,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        # Probes are sent on a silent connection only; on one with messages under way this one counts.
        "TCP_USER_TIMEOUT": HOST_LOST_S * 1000,
    }
    for name, value in options.items():
        # Not every system has all of them.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Link(connection)
