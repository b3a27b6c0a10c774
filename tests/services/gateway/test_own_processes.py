"""Processes that a gateway starts end with it, and have nothing to complain about when it was killed."""

import subprocess
import sys

import msgspec
import pytest

from engine.demo import CHECKPOINT
from services.gateway.render_process import Conversation
from services.gateway.trials import Trial

TRIAL = Trial('start: "a"', [])
CONVERSATION = Conversation([{"role": "user", "content": "Hello"}], [])


@pytest.mark.parametrize(
    ("module", "number", "asked"), [("trials", 4096, TRIAL), ("render_process", 1000, CONVERSATION)]
)
def test_an_answer_that_nobody_reads_any_more_ends_the_process_without_a_word(
    module: str, number: int, asked: msgspec.Struct
) -> None:
    command = [sys.executable, "-m", f"services.gateway.{module}", str(CHECKPOINT), str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdout.close()
        process.stdin.write(msgspec.json.encode(asked) + b"\n")
        process.stdin.flush()
        assert process.stderr.read() == b""
