"""Text to token ids and back, and chat templates. Torch-free: the gateway uses it.

Owns `tokenizer.json`, `tokenizer_config.json` and the chat template of a checkpoint folder; knows no requests.
"""

import codecs
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

import tokenizers
from jinja2 import Template, TemplateError, meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers.decoders import DecodeStream

from engine.config import read_config, read_eos_ids, read_json, read_optional_json
from engine.grammar.hermes import as_plain_messages
from engine.interface import EngineError

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
SENTENCEPIECE_SPACE = "\u2581"


class TextStream(Protocol):
    """Tokens of one output in, text out: complete characters only.

    The text continues a prompt, so a first token's leading space is kept.
    """

    def push(self, token_id: int) -> str:
        """The characters that this token completes; empty for special tokens and within a character."""

    def finish(self) -> str:
        """What is left, with U+FFFD for a character that was never completed."""


class Tokenizer:
    """The tokenizer of one checkpoint."""

    def __init__(self, folder: Path) -> None:
        config = read_config(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise EngineError(f"{folder}: has no tokenizer.json, the file of the tokenizers library")
        try:
            self._library = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise EngineError(f"{path}: cannot be read: {error}") from error
        self._library.no_truncation()
        self._library.no_padding()
        self.vocabulary_size = config.vocabulary_size
        """Token ids are below it: rows of the model's embedding, at times more than the tokenizer names."""
        self.max_sequence_tokens = config.max_positions
        self._settings = read_optional_json(folder / "tokenizer_config.json")
        self.eos_ids = read_eos_ids(folder) or self._named_eos()
        self._template_knows_tools = False
        self._template = self._load_template(folder)
        self._pieces = _byte_pieces(self._library, read_json(path), self.vocabulary_size)
        self._texts = None if self._pieces is None else [_whole_text(piece) for piece in self._pieces]
        added = self._library.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face checkpoint folder.

        Raises:
            EngineError: a file is missing or cannot be read.
        """
        return cls(folder)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, with the begin token where the model has one."""
        ids: list[int] = self._library.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def render_chat(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
        """The prompt of a conversation, opened for the assistant's turn.

        A template that knows no tools is told of them in a system message of ours, and of calls and their answers in
        the text of the turns, in the form of `engine.grammar.hermes`.

        Raises:
            EngineError: the model has no chat template, or its template refuses these messages.
        """
        if self._template is None:
            raise EngineError("this model has no chat template; send a prompt to /v1/completions instead")
        if not self._template_knows_tools:
            messages, tools = as_plain_messages(messages, tools), ()
        try:
            known = {"tools": list(tools)} if tools else {}
            return self._template.render(messages=messages, add_generation_prompt=True, **known)
        except (TemplateError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise EngineError(f"the model's chat template refuses these messages: {error}") from error

    def encode_chat(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Token ids of a conversation; arguments and errors as of `render_chat`."""
        return self.encode(self.render_chat(messages, tools), add_special_tokens=False)

    def decode(self, token_ids: list[int]) -> str:
        """The text of whole outputs, without special tokens."""
        stream = self.stream()
        return "".join([stream.push(token_id) for token_id in token_ids]) + stream.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for: bytes of text, a special token's name, nothing if nobody named it."""
        if token_id in self._special:
            return self._special[token_id].encode()
        if self._pieces is not None:
            return self._pieces[token_id]
        text: str = self._library.decode([token_id])
        return text.encode()

    def stream(self) -> TextStream:
        """A fresh detokeniser for one output."""
        if self._pieces is None or self._texts is None:
            return LibraryStream(self._library)
        return TableStream(self._pieces, self._texts)

    def _named_eos(self) -> frozenset[int]:
        token_id = self._library.token_to_id(_content(self._settings.get("eos_token")))
        return frozenset() if token_id is None else frozenset((token_id,))

    def _load_template(self, folder: Path) -> Template | None:
        source = self._settings.get("chat_template")
        if isinstance(source, list):  # several named ones
            source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
        path = folder / "chat_template.jinja"
        if path.exists():
            source = path.read_text()
        if source is None:
            return None
        # trim_blocks and lstrip_blocks: templates are written for transformers, which renders them so.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {name: _content(self._settings[name]) for name in names if self._settings.get(name)}
        try:
            self._template_knows_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
            return environment.from_string(source, globals=special)
        except TemplateError as error:
            raise EngineError(f"{folder}: the chat template cannot be read: {error}") from error


class TableStream:
    """Detokenises by the bytes each token stands for: for byte-level and SentencePiece vocabularies."""

    __slots__ = ("_pending", "_pieces", "_texts")

    def __init__(self, pieces: list[bytes], texts: list[str | None]) -> None:
        self._pieces = pieces
        self._texts = texts
        self._pending = b""

    def push(self, token_id: int) -> str:
        """As `TextStream.push`."""
        if not self._pending:
            text = self._texts[token_id]
            if text is not None:
                return text
        data = self._pending + self._pieces[token_id]
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def finish(self) -> str:
        """As `TextStream.finish`."""
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        return text


class LibraryStream:
    """Detokenises through the tokenizers library: right for every vocabulary, several times slower."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._library = library
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []
        """Tokens whose text was not handed out yet."""

    def push(self, token_id: int) -> str:
        """As `TextStream.push`."""
        self._held.append(token_id)
        text: str | None = self._stream.step(self._library, token_id)
        if text is None:
            return ""
        self._held.clear()
        return text

    def finish(self) -> str:
        """As `TextStream.finish`."""
        text: str = self._library.decode(self._held, skip_special_tokens=True)
        self._held.clear()
        return text


def _byte_pieces(library: tokenizers.Tokenizer, file: dict[str, Any], size: int) -> list[bytes] | None:
    """For each token id the bytes it stands for, nothing for special tokens; None where tokens are no byte strings."""
    decoder = file.get("decoder") or {}
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps if step.get("type") not in ("Fuse", "Strip")]
    spaces = [step for step in steps if step.get("type") == "Replace"]
    if kinds == ["ByteLevel"]:
        piece = _byte_level_piece
    elif kinds == ["Replace", "ByteFallback"] and spaces[0].get("pattern") == {"String": SENTENCEPIECE_SPACE}:
        piece = _sentencepiece_piece
    else:
        return None
    vocabulary = library.get_vocab(with_added_tokens=True)
    pieces = [b""] * max(size, 1 + max(vocabulary.values(), default=0))
    for token, token_id in vocabulary.items():
        pieces[token_id] = piece(token)
    for token_id, added in library.get_added_tokens_decoder().items():
        pieces[token_id] = b"" if added.special else added.content.encode()
    return pieces


def _byte_alphabet() -> dict[int, int]:
    """Code point to byte of GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {0x100 + index: byte for index, byte in enumerate(others)}


BYTE_OF_CODE_POINT = _byte_alphabet()


def _byte_level_piece(token: str) -> bytes:
    return token.translate(BYTE_OF_CODE_POINT).encode("latin-1", "ignore")


def _sentencepiece_piece(token: str) -> bytes:
    match = BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else token.replace(SENTENCEPIECE_SPACE, " ").encode()


def _whole_text(piece: bytes) -> str | None:
    """The piece as text; None where it begins or ends within a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _content(token: Any) -> str:
    """A special token is written as its text or as an object with its text in `content`."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _to_json(value: Any, indent: int | None = None) -> str:
    """As transformers renders it: without HTML escapes, characters as they are."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
