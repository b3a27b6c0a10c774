"""HTTP/1.1's chunked transfer coding, for bytes that are written past aiohttp's writer."""

from functools import lru_cache

CHUNK_END = b"\r\n"
CHUNK_HEADS = tuple(b"%x\r\n" % size for size in range(1024))
"""A table, because formatting a number costs as much as all else that is done for a token."""


def chunk_head(size: int) -> bytes:
    """What precedes the `size` bytes of a chunk; `CHUNK_END` follows them."""
    return CHUNK_HEADS[size] if size < len(CHUNK_HEADS) else b"%x\r\n" % size


@lru_cache(1024)
def tail_of(suffix: bytes) -> bytes:
    """What ends the chunk of an event with this suffix: one object for all streams, so that it stays in the cache."""
    return suffix + CHUNK_END


def http_chunk(payload: bytes) -> bytes:
    """A whole chunk."""
    return chunk_head(len(payload)) + payload + CHUNK_END
