"""Text in, ids out and back, as transformers does it and never half a character."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from engine.interface import EngineError
from engine.tokenizer import LibraryStream, TableStream, Tokenizer

TEXTS = ("Hello world", "naïve café — 東京 😀👩‍👩‍👧", "  two  spaces\n\ttab ", "", "कर्म", "\x00 nul")
CHAT = [{"role": "user", "content": "What is a fairlead?"}]


@pytest.fixture
def checkpoint(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo checkpoint's text files, to be changed."""
    for file in demo.glob("*.json"):
        shutil.copy(file, tmp_path)
    return tmp_path


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], str]:
    stream = tokenizer.stream()
    return [stream.push(token_id) for token_id in ids], stream.finish()


def sentencepiece() -> tokenizers.Tokenizer:
    """What Llama 2 and Mistral have: spaces as U+2581, unknown characters as byte tokens."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"Helo wrdtspac", "\u2581w"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    model = models.BPE(vocabulary, [("\u2581", "w")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    return library


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_was(text: str, demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_hands_out_complete_characters_only(text: str, demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    pieces, rest = pieces_of(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert rest == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_random_tokens_give_the_librarys_text(demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    assert isinstance(tokenizer.stream(), TableStream)
    for seed in range(50):
        ids = np.random.default_rng(seed).integers(0, 4096, 40).tolist()
        assert tokenizer.decode(ids) == tokenizer._library.decode(ids)


def test_a_character_cut_off_ends_as_a_replacement(demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    pieces, rest = pieces_of(tokenizer, tokenizer.encode("a😀")[:-1])
    assert ("".join(pieces), rest) == ("a", "\ufffd")


def test_special_tokens_are_silent_and_other_added_ones_are_not(checkpoint: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    library.add_tokens([tokenizers.AddedToken("<naïve>", special=False)])
    library.save(str(checkpoint / "tokenizer.json"))
    tokenizer = Tokenizer.load(checkpoint)
    ids = tokenizer.encode("a<|im_end|><naïve>b")
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "a<naïve>b"


def test_ids_that_the_tokenizer_does_not_name_are_silent(checkpoint: Path) -> None:
    change(checkpoint / "config.json", vocab_size=4200)
    tokenizer = Tokenizer.load(checkpoint)
    assert (tokenizer.vocabulary_size, tokenizer.decode([4199])) == (4200, "")


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_vocabularies_keep_the_space_that_continues_a_prompt(text: str, checkpoint: Path) -> None:
    sentencepiece().save(str(checkpoint / "tokenizer.json"))
    tokenizer = Tokenizer.load(checkpoint)
    assert isinstance(tokenizer.stream(), TableStream)
    pieces, rest = pieces_of(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) + rest == (f" {text}" if text else "")
    assert "\ufffd" not in "".join(pieces)


def test_other_vocabularies_go_through_the_library(checkpoint: Path) -> None:
    words = ["[UNK]", "fair", "##lead", "rope", "##s"]
    library = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    library.save(str(checkpoint / "tokenizer.json"))
    tokenizer = Tokenizer.load(checkpoint)
    assert isinstance(tokenizer.stream(), LibraryStream)
    pieces, rest = pieces_of(tokenizer, tokenizer.encode("fairlead ropes"))
    assert (pieces, rest) == (["fair", "lead", " rope", "s"], "")


def test_a_text_of_so_many_characters_has_at_least_so_many_tokens(checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    for text in ("word " * 100, "x" * 500, " " * 500, "é" * 500):
        assert 1 < tokenizer.least_tokens(len(text)) <= len(tokenizer.encode(text))
    file = checkpoint / "tokenizer.json"
    change(file, normalizer={"type": "NFC"})
    assert Tokenizer.load(checkpoint).least_tokens(10_000) == pytest.approx(tokenizer.least_tokens(10_000) / 4, abs=1)
    change(file, normalizer={"type": "Strip", "strip_left": True, "strip_right": True})
    assert Tokenizer.load(checkpoint).least_tokens(10_000) == 0


def test_end_tokens_fall_back_to_the_named_one(checkpoint: Path) -> None:
    assert Tokenizer.load(checkpoint).eos_ids == {0, 2}
    (checkpoint / "generation_config.json").unlink()
    change(checkpoint / "config.json", eos_token_id=None)
    change(checkpoint / "tokenizer_config.json", eos_token={"content": "<|endoftext|>"})
    assert Tokenizer.load(checkpoint).eos_ids == {0}


def test_an_unreadable_tokenizer_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.load(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"has no tokenizer\.json"):
        Tokenizer.load(checkpoint)
