"""Tries the grammars of requests before they are admitted: a wrong schema is a 400 and never a broken answer."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.config import read_eos_ids
from engine.grammar import lark
from engine.grammar.compiler import Compiler, GrammarError
from services.errors import RequestError
from services.gateway.structure import Structure


class Grammars:
    """Compiles as the executor will, in one thread: half a second for the largest grammar must not stop streams."""

    def __init__(self, folder: Path, vocabulary_size: int) -> None:
        self._compiler = Compiler(folder, vocabulary_size, read_eos_ids(folder))
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._thread.submit(self._compiler.read_tokenizer)  # a first request must not wait for it

    async def check(self, structure: Structure, grammar: str) -> None:
        """Compile the grammar of a structure.

        Raises:
            RequestError: it cannot be followed; the sentence names the schema at fault, if it is one alone.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._check, structure, grammar)

    def _check(self, structure: Structure, grammar: str) -> None:
        try:
            self._compiler.matcher(grammar)
        except GrammarError as error:
            for param, schema in structure.schemas():
                problem = " ".join(lark.problem_of(schema).split())
                if problem:
                    message = f"{param}: this schema cannot be followed: {problem}"
                    raise RequestError("invalid_value", message, param=param) from error
            param = "tools" if structure.callable_tools else "response_format"
            message = f"{param}: the answer cannot be held to this form: {error}"
            raise RequestError("invalid_value", message, param=param) from error
