"""Virtual runs recorded as live ones are: every event and answer of both cores, as bytes."""

from pathlib import Path
from typing import Any

from policies.commands import Command
from policies.event_log import encode_record
from policies.simulation.driver import ADMISSION, SCHEDULER, Simulation
from policies.simulation.executor_model import Device
from policies.simulation.outcome import Outcome
from policies.simulation.recording import Recording, read_recording
from policies.simulation.workload import TraceRequest

SLAI = (Path(__file__).resolve().parents[1] / "policies" / "slai.yaml").read_bytes()


def logs(document: bytes, requests: list[TraceRequest], device: Device) -> tuple[Outcome, dict[str, bytes]]:
    """What happened, and the logs of it."""
    written = {ADMISSION: bytearray(), SCHEDULER: bytearray()}

    def observe(core: str, now: float, event: Any, commands: list[Command]) -> None:
        written[core] += encode_record(now, event, commands)

    outcome = Simulation(document, requests, device, observer=observe).run()
    return outcome, {core: bytes(log) for core, log in written.items()}


def recorded(document: bytes, requests: list[TraceRequest], device: Device) -> tuple[Outcome, Recording]:
    """What happened, and what is read from the logs of it."""
    outcome, written = logs(document, requests, device)
    return outcome, read_recording(written[ADMISSION], written[SCHEDULER])
