"""Parts of a multipart answer, written to a file as they come: no part is held in memory, none may be endless.

Source: RFC 2046 5.1; DICOM PS3.18 8.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email.message import Message

__all__ = ["Multipart", "boundary_of"]

_LARGEST_PREAMBLE = 64 * 1024
_LARGEST_HEAD = 16 * 1024
_LONGEST_BOUNDARY = 200


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type of multipart/related states.

    Raises ValueError if it is something else, or states none.

    >>> boundary_of('multipart/related; type="application/dicom"; boundary=abc')
    b'abc'
    """
    message = Message()
    message["Content-Type"] = content_type[:1000].replace("\r", " ").replace("\n", " ")
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/related" or not isinstance(boundary, str) or not boundary:
        raise ValueError("no multipart answer")
    if len(boundary) > _LONGEST_BOUNDARY or not boundary.isascii():
        raise ValueError("an impossible boundary")
    return boundary.encode()


class Multipart:
    """Reads a multipart body from blocks of bytes, part by part.

    blocks: of any size; an empty one ends them.
    """

    def __init__(self, blocks: Iterator[bytes], boundary: bytes) -> None:
        self._blocks = blocks
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first boundary may be the very beginning
        self._begun = self._inside = self._ended = False

    def next_part(self) -> bool:
        """Go to the next part, past what is left of this one; False after the last.

        Raises ConnectionError if the body ends early, ValueError if what stands before a part is too long.
        """
        if self._ended:
            return False
        if not self._begun:
            self._copy(None, _LARGEST_PREAMBLE)
            self._begun = True
        elif self._inside:
            self._copy(None, None)
        self._inside = False
        while len(self._buffer) < 2:
            self._fill()
        if self._buffer.startswith(b"--"):
            self._ended = True
            return False
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _LARGEST_HEAD:
                raise ValueError("a part with an endless header")
            self._fill()
        del self._buffer[: end + 4]
        self._inside = True
        return True

    def copy_part(self, write: Callable[[bytearray], None]) -> None:
        """Hand the part to `write`, piece by piece. Raises ConnectionError if the body ends inside it."""
        self._copy(write, None)
        self._inside = False

    def _fill(self) -> None:
        block = next(self._blocks, b"")
        if not block:
            raise ConnectionError("the answer ended early")
        self._buffer += block

    def _copy(self, write: Callable[[bytearray], None] | None, limit: int | None) -> None:
        """Move everything up to the delimiter to `write`, and the delimiter away."""
        size, keep = 0, len(self._delimiter) - 1
        while True:
            at = self._buffer.find(self._delimiter)
            ready = at if at >= 0 else max(0, len(self._buffer) - keep)
            size += ready
            if limit is not None and size > limit:
                raise ValueError("an endless preamble")
            if write is not None:
                write(self._buffer[:ready])
            del self._buffer[: ready + (len(self._delimiter) if at >= 0 else 0)]
            if at >= 0:
                return
            self._fill()
