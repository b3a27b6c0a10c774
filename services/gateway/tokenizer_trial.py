"""Tries a model's tokenizer in a process of its own: `python -m services.gateway.tokenizer_trial FOLDER`.

Patterns of a tokenizer.json run in the gateway, over whatever clients send, and nothing stops them there. What makes
bad ones backtrack is the same few characters over and over and then another: texts of that kind are tokenised here
first, in a process that ends itself when one takes too long. It says `READY`, or what is wrong. Knows no requests.
"""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.interface import EngineError
from engine.tokenizer import Tokenizer
from services.gateway.own_process import say

LIMIT_S = 0.5
"""Computing time of one text: an honest tokenizer takes a hundredth of a second."""
LOAD_S = 60.0
READY = b"ready\n"
CHARACTERS = 2**14
"""Of a text: at the square of its length a pattern takes seconds."""
UNITS = (
    "a",
    "A",
    "0",
    " ",
    "\n",
    "\t",
    "\u3000",
    "\u00a0",
    "_",
    "-",
    ".",
    "'",
    "\u00e9",
    "\u6f22",
    "\u0301",
    "a ",
    "a0",
    "a-",
    " \n",
)
ENDINGS = ("!", "a")
MAX_OWN_UNITS = 48
LITERAL = re.compile(r"\w{2,}|[^\w\\()\[\]{}|?*+^$]|\w")


def units(patterns: list[str]) -> list[str]:
    """What is repeated: of each kind of characters one, and what the patterns themselves name."""
    own = dict.fromkeys(literal for pattern in patterns for literal in LITERAL.findall(pattern))
    return list(dict.fromkeys([*UNITS, *list(own)[:MAX_OWN_UNITS]]))


def texts(patterns: list[str]) -> Iterator[str]:
    """What is tokenised."""
    for unit in units(patterns):
        repeated = unit * (CHARACTERS // len(unit))
        yield from (repeated + ending for ending in ENDINGS)


def main(folder: Path) -> None:
    """Tokenise all of them. SIGPROF ends the process over one that takes too long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is over in a moment
    signal.setitimer(signal.ITIMER_PROF, LOAD_S)
    try:
        tokenizer = Tokenizer.load(folder)
        for text in texts(tokenizer.patterns):
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            tokenizer.encode(text)
    except EngineError as error:
        say(f"{error}\n".encode())
        return
    say(READY)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
