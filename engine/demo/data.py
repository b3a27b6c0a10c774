"""The demo model's text: the Python standard library as it lies in any CPython, and a tokenizer learned from it.

Left out are the library's tests (Debian ships none), packages installed beside it, and files that are tables rather
than programs. One file in twenty, chosen by a hash of its name, is held out.
"""

import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
LEFT_OUT = frozenset(
    (
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "lib2to3",
        "encodings",
        "pydoc_data",
        "__pycache__",
    )
)
TABLES = ("_sysconfigdata",)
HELD_OUT_ONE_IN = 20


class Text(NamedTuple):
    """The files of each side, in the order of their names."""

    train: list[str]
    held_out: list[str]
    digest: str
    """Of all names and contents: says whether two machines saw the same text."""


class Tokens(NamedTuple):
    """Token ids of each side, files joined by the end-of-text token, uint16."""

    train: NDArray[np.uint16]
    held_out: NDArray[np.uint16]
    held_out_bytes: int


def read_text(folder: Path | None = None) -> Text:
    """The sources under `folder`, by default this interpreter's own library.

    Raises:
        FileNotFoundError: there is no Python source in it.
    """
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    digest = hashlib.sha256()
    sides: tuple[list[str], list[str]] = ([], [])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT.intersection(name.parts) or path.name.startswith(TABLES):
            continue
        content = path.read_bytes()
        mark = hashlib.sha256(name.as_posix().encode()).digest()
        digest.update(mark + hashlib.sha256(content).digest())
        sides[mark[0] % HELD_OUT_ONE_IN == 0].append(content.decode("utf-8", "replace"))
    if not all(sides):
        raise FileNotFoundError(f"{root}: holds too few Python sources to train on; name a folder of a CPython library")
    return Text(*sides, digest.hexdigest())


def learn_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE of `VOCABULARY` tokens; id 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(text: Text, tokenizer: Tokenizer) -> Tokens:
    """Both sides as one long row of tokens each."""

    def joined(files: list[str]) -> NDArray[np.uint16]:
        end = tokenizer.token_to_id(END_OF_TEXT)
        ids = [np.array([*encoding.ids, end], np.uint16) for encoding in tokenizer.encode_batch(files)]
        return np.concatenate(ids)

    return Tokens(joined(text.train), joined(text.held_out), sum(len(file.encode()) for file in text.held_out))
