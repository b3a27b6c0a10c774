"""`fairlead replay --log DIR --verify`: does this version decide what the recorded one did.

Knows the recorded logs' files and the terminal; comparing is policies/event_log.py.
"""

from collections.abc import Iterator
from pathlib import Path

from policies.admission.core import AdmissionCore
from policies.event_log import Core, CutShortError, Difference, EventLogError, Record, read_records, verify
from policies.events import Started
from policies.scheduling.core import SchedulerCore
from services.replay_inputs import ReplayError, read_bytes


def verify_logs(folder: Path) -> int:
    """Print what each core's log says; 0 where all commands are identical, 1 where some are not.

    Raises:
        ReplayError: a log cannot be read or verified.
    """
    cores: dict[str, Core] = {"admission": AdmissionCore(), "scheduler": SchedulerCore()}
    status = 0
    for name, core in cores.items():
        path = folder / f"{name}.log"
        try:
            num_records, difference, cut = _compare(core, read_bytes(path))
        except EventLogError as error:
            raise ReplayError(f"{path}: {error}") from error
        if difference is None:
            print(f"{path}: {num_records} records, identical commands{cut}")
        else:
            status = 1
            print(f"{path}: after {num_records} identical records: {difference}")
    return status


def _compare(core: Core, log: bytes) -> tuple[int, Difference | None, str]:
    """Records answered identically, the first difference, and how the log ends if it is cut short.

    Raises:
        EventLogError: there is nothing to verify, or a record in it is none of this version's.
    """
    num_records = 0

    def counted() -> Iterator[Record]:
        nonlocal num_records
        for record in read_records(log):
            if num_records == 0 and not isinstance(record.event, Started):
                raise EventLogError(f"begins with {type(record.event).__name__}; a log to verify begins with Started")
            yield record
            num_records += 1

    cut = ""
    try:
        difference = verify(core, counted())
    except CutShortError as error:
        difference, cut = None, f"; {error}"
    if num_records == 0 and difference is None:
        raise EventLogError("holds no whole record, so there is nothing to verify")
    return num_records, difference, cut
