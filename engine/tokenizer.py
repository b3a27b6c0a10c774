"""Text to token ids and back. Torch-free: the gateway uses it.

Owns `tokenizer.json` of a checkpoint folder; knows no requests.
"""

import codecs
import json
import re
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers.decoders import DecodeStream

from engine.chat_template import SETTINGS, token_text
from engine.config import MAX_VOCABULARY, read_config, read_eos_ids, read_json, read_optional_json
from engine.interface import EngineError
from engine.model_folder import read_document

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
SENTENCEPIECE_SPACE = "\u2581"
EVERY_BYTE = frozenset(bytes([byte]) for byte in range(256) if byte not in (*range(0xC0, 0xC2), *range(0xF5, 0x100)))
"""That can be in UTF-8."""
NFC_SHRINKS = 4
"""At most so many characters are composed to one."""


PANIC = "PanicException"


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
            self._library = tokenizers.Tokenizer.from_buffer(read_document(path))
        except EngineError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise EngineError(f"{path}: cannot be read: {error}") from error
        self._library.no_truncation()
        self._library.no_padding()
        self.vocabulary_size = config.vocabulary_size
        """Token ids are below it: rows of the model's embedding, at times more than the tokenizer names."""
        self.max_sequence_tokens = config.max_positions
        self._folder = folder
        self.eos_ids = read_eos_ids(folder) or self._named_eos()
        file = read_json(path)
        self.patterns = _patterns(file)
        """Regular expressions that the file brings along, which may backtrack; the library's own are known."""
        self._pieces = _byte_pieces(self._library, file, self.vocabulary_size)
        self._texts = None if self._pieces is None else [_whole_text(piece) for piece in self._pieces]
        self._longest = _longest(self._pieces, file)
        """Characters of a text that come to one token at most."""
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
        """Token ids of a prompt, with the begin token where the model has one.

        Raises:
            EngineError: the library gives up on this text, as it does on a pattern that backtracks without end.
        """
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            # What the library says of its bugs is no Exception, and would pass everything that catches one.
            if type(error).__name__ != PANIC:
                raise
            raise EngineError(f"the model's tokenizer gives up on a text of {len(text)} characters") from error
        return ids

    def least_tokens(self, num_characters: int) -> int:
        """A text of so many characters has at least so many tokens; 0 where nothing is known of that."""
        return 0 if self._longest is None else num_characters // self._longest

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
        token_id = self._library.token_to_id(token_text(read_optional_json(self._folder / SETTINGS).get("eos_token")))
        return frozenset() if token_id is None else frozenset((token_id,))


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


def _patterns(file: dict[str, Any]) -> list[str]:
    """What stands under the name `Regex` in the parts that see texts."""
    found: list[str] = []
    waiting = [file.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    while waiting:
        match waiting.pop():
            case dict() as part:
                found += [value for name, value in part.items() if name == "Regex" and isinstance(value, str)]
                waiting += part.values()
            case list() as parts:
                waiting += parts
            case _:
                pass
    return found


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
    largest = max(vocabulary.values(), default=0)
    if largest >= MAX_VOCABULARY:
        raise EngineError(f"tokenizer.json: has a token with id {largest}; ids are below {MAX_VOCABULARY}")
    pieces = [b""] * max(size, 1 + largest)
    for token, token_id in vocabulary.items():
        pieces[token_id] = piece(token)
    for token_id, added in library.get_added_tokens_decoder().items():
        pieces[token_id] = b"" if added.special else added.content.encode()
    return pieces


def _longest(pieces: list[bytes] | None, file: dict[str, Any]) -> int | None:
    """Characters that one token stands for at most; None where some of a text may come to no token at all."""
    normalizer = file.get("normalizer")
    if pieces is None or (normalizer is not None and normalizer.get("type") != "NFC"):
        return None
    added = file.get("added_tokens", ())
    greedy = any(token.get("lstrip") or token.get("rstrip") for token in added)
    if greedy or '"Removed"' in json.dumps(file.get("pre_tokenizer")) or len({*pieces} & EVERY_BYTE) < len(EVERY_BYTE):
        return None
    longest = max(*map(len, pieces), *(len(token.get("content", "")) for token in added), 1)
    return longest if normalizer is None else longest * NFC_SHRINKS


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
