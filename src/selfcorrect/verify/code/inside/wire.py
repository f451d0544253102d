"""Length-prefixed frames on a stream socket."""

from __future__ import annotations

import socket
import struct


class FrameTooLarge(Exception):
    """The peer announced more bytes than it may send."""


def send_frame(sock: socket.socket, data: bytes) -> None:
    sock.sendall(struct.pack("!I", len(data)) + data)


def _read_exactly(sock: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(min(size - len(parts), 1 << 18))
        if not part:
            return None
        parts += part
    return bytes(parts)


def recv_frame(sock: socket.socket, limit: int) -> bytes | None:
    """Read one frame of at most ``limit`` bytes; None when the peer is gone.

    Raises:
        FrameTooLarge: before any of the body is read.
    """
    try:
        head = _read_exactly(sock, 4)
        if head is None:
            return None
        (size,) = struct.unpack("!I", head)
        if size > limit:
            raise FrameTooLarge(f"a message of {size} bytes; the limit is {limit}")
        return _read_exactly(sock, size)
    except (ConnectionError, BrokenPipeError):
        return None
