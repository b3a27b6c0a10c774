"""What is said of a collector that does not take everything."""

import logging

import pytest

from services.telemetry.sending import METRICS, TRACES, RefusedError, Sender


class TracesOnly:
    """Of a backend that keeps traces and nothing else."""

    def __init__(self) -> None:
        self.down = False

    async def send(self, signal: str, body: bytes) -> None:
        del body
        if self.down or signal == METRICS:
            raise RefusedError(f"no {signal} here", retry=False)

    async def close(self) -> None:
        """Nothing is open."""


async def test_a_collector_without_metrics_is_one_line_however_often_it_takes_traces(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    transport = TracesOnly()
    sender = Sender(transport)
    for down in (False, False, True, False):
        transport.down = down
        for signal in (TRACES, METRICS):
            sender.put(signal, b"", 3)
        await sender.drain(10)
    await sender.close()
    assert caplog.messages == [
        "the collector did not take metrics: no metrics here; serving is not affected",
        "the collector did not take traces: no traces here; serving is not affected",
        "the collector takes traces again",
    ]
    assert (sender.sent, sender.dropped) == ({TRACES: 9, METRICS: 0}, {TRACES: 3, METRICS: 12})
