"""Tries grammars in a process of its own: `python -m services.gateway.trials FOLDER VOCABULARY_SIZE`.

A schema of two hundred bytes can take minutes and gigabytes to compile, and nothing stops a library in a thread. A
process ends itself when it has used up its time, and takes nobody with it.

It says `READY` once. Then a line in is a `Trial`, a line out the `Verdict` on it, both JSON. Knows no requests.
"""

import signal
import sys
from pathlib import Path

import msgspec

from engine.config import read_eos_ids
from engine.grammar import lark
from engine.grammar.compiler import Compiler, GrammarError
from services.gateway.own_process import bound_memory, say

LIMIT_S = 1.0
"""Computing time of one trial, all of it: an executor may have to wait that long."""
READY = b"ready\n"
LIMIT_BYTES = 128 * 2**20
"""What a trial may take beside the tokenizer."""
MAX_PROBLEM_CHARACTERS = 500
"""The library quotes what it does not understand."""


class Trial(msgspec.Struct):
    """A grammar, and the schemas that went into it."""

    grammar: str
    schemas: list[dict[str, object]]


class Verdict(msgspec.Struct):
    """What is wrong with a grammar; empty: nothing."""

    problem: str
    schema: int | None = None
    """Which of the schemas is at fault, where it is one alone."""


def judge(compiler: Compiler, trial: Trial) -> Verdict:
    """Compile a grammar and make its first mask, as an executor will."""
    try:
        compiler.compile(trial.grammar).compute_bitmask()
    except GrammarError as error:
        for index, schema in enumerate(trial.schemas):
            problem = lark.problem_of(schema)
            if problem:
                return Verdict(" ".join(problem.split())[:MAX_PROBLEM_CHARACTERS], index)
        return Verdict(str(error)[:MAX_PROBLEM_CHARACTERS])
    return Verdict("")


def main(folder: Path, vocabulary_size: int) -> None:
    """Judge what comes until nothing more does. SIGPROF ends the process when a trial takes too long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway stops first, and then this process has no more input
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # or, killed, reads no more answers: nothing to complain about
    compiler = Compiler(folder, vocabulary_size, read_eos_ids(folder))
    judge(compiler, Trial("start:", []))  # reads the tokenizer, which is nobody's trial
    bound_memory(LIMIT_BYTES)
    say(READY)
    for line in sys.stdin.buffer:
        trial = msgspec.json.decode(line, type=Trial)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        verdict = judge(compiler, trial)
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(msgspec.json.encode(verdict) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
