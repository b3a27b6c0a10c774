"""All stamps of a request's tokens as one attribute, for requests whose tokens get no spans of their own.

Columns as in `requests.STAMP_COLUMNS`, but for the start of the scheduler, in microseconds since the request was
received, as differences down each column (small numbers), zlib, base64. Exact to the microsecond.
"""

import base64
import zlib

import numpy as np

from services.telemetry.keeper.parts import Int64Array
from services.telemetry.keeper.rows import CAUSE, STAMP_COLUMNS

NS_PER_US = 1000
COLUMNS = STAMP_COLUMNS[:-1]


def pack(stamps: Int64Array, received_ns: int) -> str:
    """[n, STAMP_COLUMNS] as text."""
    table = stamps[:, : len(COLUMNS)].copy()
    table[:, :CAUSE] = (table[:, :CAUSE] - received_ns) // NS_PER_US
    return base64.b64encode(zlib.compress(_differences(table).T.astype("<i4").tobytes(), 1)).decode()


def _differences(table: Int64Array) -> Int64Array:
    table[1:] -= table[:-1].copy()
    return table


def unpack(text: str) -> Int64Array:
    """[n, COLUMNS]: stamps in microseconds since the request was received.

    Raises:
        ValueError: `pack` did not write this.
    """
    try:
        flat = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<i4")
    except zlib.error as error:
        raise ValueError(f"not an array of token stamps: {error}") from error
    if not len(flat):
        return np.empty((0, len(COLUMNS)), np.int64)
    columns = flat.reshape(len(COLUMNS), -1)
    table: Int64Array = np.cumsum(columns.T.astype(np.int64), axis=0)
    return table
