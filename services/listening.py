"""The socket that HTTP clients connect to: made here, listened on by one gateway or by several at once.

`fairlead up` binds it and hands it to every gateway that it starts, so that a connection that comes while a gateway
starts again waits for it, or meets another. Knows no HTTP.
"""

import socket

from services.settings import HttpSettings

BACKLOG = 1024
"""Connections that wait for a gateway."""


def bind(http: HttpSettings) -> socket.socket:
    """A listening socket on the deployment's address.

    Raises:
        OSError: it cannot be used.
    """
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound_waits(listening, http)
        listening.bind((http.host, http.port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def bound_waits(listening: socket.socket, http: HttpSettings) -> None:
    """How much and how long the kernel keeps what a client does not read; of connections that come from now on."""
    # Otherwise the kernel keeps megabytes for a reader that does not read, and the limit would mean nothing.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, http.stream_buffer_bytes)
    # A client whose machine is gone says nothing, and one that waits in the queue is sent nothing that would tell.
    probe_s = max(1, round(http.unread_s / 4))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(http.unread_s * 1000))
