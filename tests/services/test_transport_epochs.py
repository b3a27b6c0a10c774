"""Which starts of its peers a listener remembers."""

import pytest

from services import transport
from services.framing import HandshakeError
from services.transport import Identity, Listener


class Incoming:
    """A connection that has proved itself."""

    def __init__(self, listener: Listener, peer: Identity) -> None:
        self.peer = peer
        self._listener = listener
        listener.admit(listener.expect(self), peer)  # type: ignore[type-var]

    def supersede(self) -> None:
        self._listener.forget(self)  # type: ignore[arg-type]


def test_of_instances_that_do_not_come_back_only_so_many_are_remembered(monkeypatch) -> None:
    monkeypatch.setattr(transport, "MOST_ABSENT", 3)
    listener = Listener(None, None)  # type: ignore[arg-type]
    there = Incoming(listener, Identity("admission", "0", 7))
    for number in range(10):
        Incoming(listener, Identity("gateway", str(number), 5)).supersede()
    assert list(listener._epochs) == [("admission", "0"), *(("gateway", str(number)) for number in (6, 7, 8, 9))]
    with pytest.raises(HandshakeError, match="gateway 7 has epoch 4; epoch 5 came before"):
        Incoming(listener, Identity("gateway", "7", 4))
    # One that comes again is among the last to be forgotten, and one that is there is not.
    Incoming(listener, Identity("gateway", "7", 6)).supersede()
    for number in (10, 11):
        Incoming(listener, Identity("gateway", str(number), 5)).supersede()
    assert ("gateway", "7") in listener._epochs
    with pytest.raises(HandshakeError, match="admission 0 has epoch 6"):
        Incoming(listener, Identity("admission", "0", 6))
    assert there in listener._streams
