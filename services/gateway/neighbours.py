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
        self._resumes: dict[Stream, bool] = {}
        """Whether it takes requests that were sent before, of those who have said so or not."""
        self._turn = 0

    def opened(self, stream: Stream) -> None:
        """A stream is up."""
        self._streams[_place(stream)] = stream

    def closed(self, stream: Stream) -> bool:
        """A stream is down; False: it is an older connection, replaced meanwhile."""
        self._stalled.pop(stream, None)
        if not self.is_connected(stream):
            return False
        del self._streams[_place(stream)]
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
        return self.again(stream) is stream

    def again(self, stream: Stream) -> Stream | None:
        """The stream to the same place, if it was connected anew; None: nobody is there."""
        return self._streams.get(_place(stream))

    @staticmethod
    def is_same(stream: Stream, other: Stream) -> bool:
        """Whether both lead, or led, to the same place."""
        return _place(stream) == _place(other)

    def has(self, service: str) -> bool:
        """Whether there is a stream to it."""
        return bool(self._of(service))

    def told(self, stream: Stream, *, resumes: bool) -> None:
        """A service said whether it takes requests that were sent before."""
        if self.is_connected(stream):
            for gone in [each for each in self._resumes if _place(each) == _place(stream) and each is not stream]:
                del self._resumes[gone]
            self._resumes[stream] = resumes

    def resumes(self, stream: Stream) -> bool | None:
        """Whether it takes, or took, requests that were sent before; None: it has not said."""
        return self._resumes.get(stream)

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


def _place(stream: Stream) -> tuple[str, str]:
    return stream.peer.service, stream.peer.instance
