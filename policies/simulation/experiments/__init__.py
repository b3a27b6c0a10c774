"""The experiments of the papers, one module each: the set-up as published, and published figures beside obtained ones.

Owns what every experiment is asked with and how its runs are spread over processes. A module here has `POLICIES`, the
names of those it compares, `OWN`, the documents of those among them that are not shipped, `run(options, progress) ->
figures` (JSON-ready values) and `table(figures) -> str` (the same for people). Only the command line calls them, so
they may read files and start processes.
"""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

Progress = Callable[[int, int], None]
"""Told how many pieces of work are done, and of how many."""
Task = TypeVar("Task")
Done = TypeVar("Done")


class ExperimentError(Exception):
    """Something that was asked for cannot be done; one sentence, naming the file or option."""


class Options(Struct, frozen=True, kw_only=True):
    """What `fairlead experiment` was asked for. Empty and None: as the paper has it."""

    policies: dict[str, bytes]
    """Documents by the name they are reported under, in the order asked."""
    data: Path | None = None
    """Folder of published traces; None: a synthetic trace of the same statistics."""
    qps: tuple[float, ...] = ()
    """Nominal requests per second."""
    seeds: tuple[int, ...] = ()
    executor_efficiency: float | None = None
    """Share of the memory bandwidth that KV reads reach."""
    strict_share: float | None = None
    """Share of the requests that are of the strictest class."""
    duration_s: float | None = None
    """Virtual seconds of one run."""
    processes: int = 1


def read_text(folder: Path, name: str) -> str:
    """The text of a file of the data folder.

    Raises:
        ExperimentError: it is not there, cannot be read, or is no text.
    """
    path = folder / name
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ExperimentError(
            f"{path}: cannot be read: {error.strerror}; --data names the folder it lies in"
        ) from error
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{path}: is not a text file: {error.reason} at byte {error.start}") from error


def spread(
    function: Callable[[Task], Done], tasks: Sequence[Task], *, processes: int, on_done: Callable[[], None]
) -> list[Done]:
    """`function` of every task, in their order, by up to that many processes; `on_done` is called after each.

    Function and tasks must pickle, unless there is one process: that is this one.

    Raises:
        ExperimentError: a process died.
    """
    if min(processes, len(tasks)) <= 1:
        return [_and_tell(function(task), on_done) for task in tasks]
    # Spawned, not forked: a progress bar has a thread, and a fork would copy its locks as they are.
    pool = ProcessPoolExecutor(min(processes, len(tasks)), get_context("spawn"), _die_of_interrupts)
    try:
        futures = [pool.submit(function, task) for task in tasks]
        for future in as_completed(futures):
            _and_tell(future.result(), on_done)
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise ExperimentError(
            "a process of the experiment was killed, perhaps for want of memory; try fewer with --processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _and_tell(done: Done, on_done: Callable[[], None]) -> Done:
    on_done()
    return done


def _die_of_interrupts() -> None:
    """Ctrl-C reaches every process: the first one says so, these end without a traceback each."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
