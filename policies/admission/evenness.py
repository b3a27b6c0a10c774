"""How evenly something is divided, as one number. Knows numbers alone."""

from collections.abc import Iterable


def jain(shares: Iterable[float]) -> float:
    """Jain's index: 1 when all shares are equal, 1/n when one has everything; 1 for no shares at all."""
    shares = list(shares)
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
