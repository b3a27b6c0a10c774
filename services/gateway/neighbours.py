"""The services behind a gateway, as far as it is connected to them: one scheduler, one admission process or several.

Owns which of them can be given work, and whose turn it is. Knows no messages.
"""

from services.streams import Stream

ADMISSION, SCHEDULER = "admission", "scheduler"


class Neighbours:
    """Streams by service and instance."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], Stream] = {}
        self._stalled: dict[Stream, None] = {}
        self._turn = 0

    def opened(self, stream: Stream) -> None:
        """A stream is up."""
        self._streams[stream.peer.service, stream.peer.instance] = stream

    def closed(self, stream: Stream) -> bool:
        """A stream is down; False: it is an older connection, replaced meanwhile."""
        self._stalled.pop(stream, None)
        place = (stream.peer.service, stream.peer.instance)
        if self._streams.get(place) is not stream:
            return False
        del self._streams[place]
        return True

    def stalled(self, stream: Stream) -> None:
        """A service does not read."""
        self._stalled[stream] = None

    def resumed(self, stream: Stream) -> None:
        """It reads again."""
        self._stalled.pop(stream, None)

    @property
    def scheduler(self) -> Stream | None:
        """Its stream; None: there is none."""
        return next(iter(self._of(SCHEDULER)), None)

    def is_connected(self, stream: Stream) -> bool:
        """Whether messages for it arrive."""
        return self._streams.get((stream.peer.service, stream.peer.instance)) is stream

    def missing(self) -> list[str]:
        """What is not there or does not read, in words."""
        reasons = [f"no stream to {service}" for service in (ADMISSION, SCHEDULER) if not self._of(service)]
        for service in (ADMISSION, SCHEDULER):
            streams = self._of(service)
            if streams and all(stream in self._stalled for stream in streams):
                reasons.append(f"{service} does not read its stream")
        return reasons

    @property
    def has_admission(self) -> bool:
        """Whether an admission process reads."""
        return any(stream not in self._stalled for stream in self._of(ADMISSION))

    def admission(self) -> Stream | None:
        """The admission process whose turn it is, of those that read; None: there is none."""
        reading = [stream for stream in self._of(ADMISSION) if stream not in self._stalled]
        if not reading:
            return None
        self._turn += 1
        return reading[self._turn % len(reading)]

    def _of(self, service: str) -> list[Stream]:
        return [stream for (name, _), stream in self._streams.items() if name == service]
