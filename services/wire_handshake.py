"""The first messages of a stream: each end proves that it knows the secret, and says what it speaks (`framing`)."""

from services.wire_parts import Count, Id, Message, Name

PROTOCOL = 2
"""Raised when a neighbour must know of the other what it does: 2 is pinged each second, answers, and pings itself."""
OLDEST_PROTOCOL = 1
"""One version back is spoken, too; `framing` says how two neighbours agree."""


class Challenge(Message, tag="challenge"):
    """The listener's first frame: prove that you know the secret."""

    nonce: bytes
    """Its end says what the listener speaks."""
    protocol: Count = 1
    """Neighbours of protocol 1 accept no other number; later ones look at the nonce."""


class Hello(Message, tag="hello"):
    """The connector's answer."""

    protocol: Count
    """The newest that both speak: what is spoken from here on."""
    service: Name
    instance: Name
    epoch: Id
    """Grows with every start of the instance; frames of an older epoch are dropped."""
    nonce: bytes
    proof: bytes
    """HMAC-SHA256(secret, b"connect" + challenge nonce + own nonce + service/instance/epoch)."""


class Welcome(Message, tag="welcome"):
    """The listener's proof in return; from here on frames are messages."""

    service: Name
    instance: Name
    epoch: Id
    proof: bytes
