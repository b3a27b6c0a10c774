"""Whether a model's tokenizer may run in the gateway: it is tried in a process that may die (`tokenizer_trial`)."""

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from engine.interface import EngineError
from engine.tokenizer import Tokenizer
from services.gateway.tokenizer_trial import CHARACTERS, LIMIT_S, READY

ANSWER_S = 300.0
"""However busy the machine is; then something else is wrong."""


async def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Try the patterns of a folder's tokenizer, if it has any.

    Raises:
        EngineError: one takes too long over a text, or the trial does not end as it should.
    """
    if not tokenizer.patterns:
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.gateway.tokenizer_trial",
        str(folder),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    try:
        async with asyncio.timeout(ANSWER_S):
            said, _ = await process.communicate()
    except TimeoutError:
        said = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if said == READY:
        return
    file = folder / "tokenizer.json"
    if process.returncode == -signal.SIGPROF:
        raise EngineError(
            f"{file}: its patterns take more than {LIMIT_S:g} s over a text of {CHARACTERS} characters; "
            "any client could hold up the gateway with one"
        )
    raise EngineError(said.decode().strip() or f"{file}: its trial ended with status {process.returncode}")
