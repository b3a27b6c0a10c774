"""From stamps to parts: where the time between two tokens of a reader went.

A token's latency is the time since its reader got the one before. Much of a token's way overlaps with the delivery of
that one; such time kept nobody waiting and counts for no part. So parts are cut at the moment from which the reader
waited, and sum to the latency exactly. Pure: arrays in, arrays out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


def token_parts(before_ns: Int64Array, edges_ns: Int64Array) -> Int64Array:
    """Parts of tokens that follow others.

    Args:
        before_ns: int64 [n], when the reader got the token before.
        edges_ns: int64 [n, 7], `stamps.TOKEN_STAMPS` of each token. An edge before its left neighbour (clocks that do
            not quite agree) is moved up to it.

    Returns:
        int64 [n, 6], `stamps.TOKEN_PARTS` in ns, none negative; each row sums to `written - before`, or to 0 where that
        is negative.
    """
    num_rows, num_edges = edges_ns.shape
    # Column by column, each of them whole: along rows of seven numpy takes ten times as long.
    parts: Int64Array = np.empty((num_edges - 1, num_rows), np.int64)
    latest, left, right = edges_ns[:, 0].copy(), before_ns.copy(), np.empty_like(before_ns)
    # The last stamp is the gateway's own, as the one before it is: it is not moved by what other clocks say.
    last = edges_ns[:, -1]
    for column, part in enumerate(parts, start=1):
        np.maximum(latest, edges_ns[:, column], out=latest)
        np.minimum(latest, last, out=right)
        np.maximum(right, before_ns, out=right)
        np.subtract(right, left, out=part)
        left, right = right, left
    return parts.T


def parts_of_one(before_ns: int, edges_ns: Sequence[int]) -> list[int]:
    """Parts of a single token, as `token_parts`: of one, numbers are cheaper than arrays.

    Of a first token the edges are the boundaries of `stamps.FIRST_PARTS`, and the first of them is `before_ns`.
    """
    parts = []
    latest, left, last = edges_ns[0], before_ns, edges_ns[-1]
    for edge in edges_ns[1:]:
        latest = max(latest, edge)
        right = max(min(latest, last), before_ns)
        parts.append(right - left)
        left = right
    return parts
