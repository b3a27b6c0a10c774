"""Renders conversations in a process of its own: `python -m services.gateway.render_process FOLDER MAX_CHARACTERS`.

It says `READY` once, or what is wrong with the template. Then a line in is a `Conversation`, a line out its `Prompt`,
both JSON. A template that uses up its time ends the process, one that uses up its memory is told so. Knows no requests.
"""

import gc
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from engine.chat_template import NO_TEMPLATE, ChatTemplate
from engine.interface import EngineError
from services.gateway.own_process import bound_memory, say

LIMIT_S = 1.0
"""Computing time of one conversation, and of the template's compilation. A megabyte takes some hundredths of it."""
LIMIT_BYTES = 512 * 2**20
"""What a conversation may take beside what is there before the first."""
READY = b"ready\n"
MAX_PROBLEM_CHARACTERS = 500


class Conversation(msgspec.Struct):
    """As a template is given it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


class Prompt(msgspec.Struct, omit_defaults=True):
    """What a template made of it."""

    text: str = ""
    problem: str = ""
    """What is wrong instead; empty: nothing."""


def render(template: ChatTemplate, conversation: Conversation, max_characters: int) -> Prompt:
    """The prompt of a conversation."""
    try:
        text = template.render(conversation.messages, conversation.tools)
    except EngineError as error:
        return Prompt(problem=str(error)[:MAX_PROBLEM_CHARACTERS])
    if len(text) > max_characters:
        return Prompt(problem=f"come to {len(text)} characters; at most {max_characters} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Prompt(problem="the model's chat template makes of these messages what is no text")
    return Prompt(text)


def main(folder: Path, max_characters: int) -> None:
    """Render what comes until nothing more does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway stops first, and then this process has no more input
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # or, killed, reads no more answers: nothing to complain about
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold what was asked
    bound_memory(LIMIT_BYTES)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        template = ChatTemplate.load(folder)
        if template is None:
            raise EngineError(NO_TEMPLATE)
    except EngineError as error:
        say(f"{error}\n".encode())
        return
    gc.freeze()
    say(READY)
    for line in sys.stdin.buffer:
        conversation = msgspec.json.decode(line, type=Conversation)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        prompt = render(template, conversation, max_characters)
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(msgspec.json.encode(prompt) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
