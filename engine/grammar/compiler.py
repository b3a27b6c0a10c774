"""Compiles grammars for one checkpoint's tokenizer, and keeps those used last. Torch-free: the gateway has every
grammar tried before a request is admitted.
"""

import json
from collections import OrderedDict
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.config import read_json
from engine.interface import EngineError

MAX_GRAMMAR_BYTES = 128 * 2**10
"""Of one grammar's text; compiled it may take a hundred times as much."""
MAX_CACHED = 64
MAX_CACHED_BYTES = 2**20
"""Of the texts of all grammars kept."""


class GrammarError(Exception):
    """No output can follow this grammar; the sentence says why."""


class Compiler:
    """Grammars of one tokenizer. Not to be used from two threads at once; the GIL is free while it compiles.

    `vocabulary_size` is the width of the model's logits, `eos_ids` the tokens that end an output: they are allowed
    only where the grammar accepts what was written so far.
    """

    def __init__(self, folder: Path, vocabulary_size: int, eos_ids: frozenset[int]) -> None:
        self._folder = folder
        self._vocabulary_size = vocabulary_size
        self._eos_ids = sorted(eos_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._num_bytes = 0

    def matcher(self, grammar: str) -> LLMatcher:
        """A matcher at the beginning of an output; errors as `compile`, for grammars not kept."""
        pristine = self._compiled.get(grammar)
        if pristine is None:
            pristine = self.compile(grammar)
            self._keep(grammar, pristine)
        else:
            self._compiled.move_to_end(grammar)
        return pristine.deep_copy()

    def read_tokenizer(self) -> LLTokenizer:
        """The library's view of the tokenizer: up to a second the first time, for vocabularies of a hundred thousand.

        Raises:
            GrammarError: the library cannot read it, or the model names no end.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        return self._tokenizer

    def compile(self, grammar: str) -> LLMatcher:
        """A matcher that is not kept.

        Takes milliseconds for most grammars, half a second for schemas of thousands of properties. There are short
        ones that take minutes: who lets clients write grammars tries them first where they can be stopped.

        Raises:
            GrammarError: the grammar is wrong or too large, or the library cannot read this tokenizer.
        """
        if len(grammar) > MAX_GRAMMAR_BYTES:
            raise GrammarError(f"its grammar has {len(grammar)} characters; at most {MAX_GRAMMAR_BYTES} are allowed")
        tokenizer = self.read_tokenizer()
        # Terse errors: the long form would tell a client the state of a parser.
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(" ".join(matcher.get_error().split()))
        return matcher

    def _load_tokenizer(self) -> LLTokenizer:
        if not self._eos_ids:
            raise GrammarError("the model names no end-of-sequence token, so a structured output could not end")
        path = self._folder / "tokenizer.json"
        try:
            # Texts that are tokenised in between must neither be cut nor filled up.
            text = json.dumps({**read_json(path), "truncation": None, "padding": None})
            return LLTokenizer(text, n_vocab=self._vocabulary_size, eos_token=self._eos_ids)
        except (EngineError, OSError, ValueError) as error:
            raise GrammarError(f"{path} cannot be used for structured output: {error}") from error

    def _keep(self, grammar: str, pristine: LLMatcher) -> None:
        self._compiled[grammar] = pristine
        self._num_bytes += len(grammar)
        while len(self._compiled) > MAX_CACHED or self._num_bytes > MAX_CACHED_BYTES:
            oldest, _ = self._compiled.popitem(last=False)
            self._num_bytes -= len(oldest)
