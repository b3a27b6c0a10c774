"""A tokenizer whose patterns backtrack is found out before it is served, and costs no more than a refusal after."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.demo import CHECKPOINT
from engine.interface import EngineError
from engine.tokenizer import Tokenizer
from services.errors import RequestError
from services.gateway import tokenizer_trial
from services.gateway.prompts import Prompts
from services.gateway.tokenizer_check import check_tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def model(folder: Path, pattern: str) -> Path:
    """The demo with another pattern."""
    shutil.copy(CHECKPOINT / "config.json", folder)
    file: dict[str, Any] = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, BYTES]}
    (folder / "tokenizer.json").write_text(json.dumps(file))
    return folder


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"\s+$", "patterns take more than 0.5 s over a text of 16384 characters; any client could hold up"),
        (r"(a+)+$", "gives up on a text of 1638"),
    ],
)
async def test_a_pattern_that_backtracks_is_refused_before_anybody_is_served(
    tmp_path: Path, pattern: str, says: str
) -> None:
    folder = model(tmp_path, pattern)
    with pytest.raises(EngineError, match=says):
        await check_tokenizer(folder, Tokenizer.load(folder))


def test_what_a_pattern_names_is_tried_too() -> None:
    assert {"xyz", "#"} <= {*tokenizer_trial.units([r"(?:xyz|#)+$"])}


async def test_a_pattern_of_a_known_model_is_served(tmp_path: Path) -> None:
    folder = model(tmp_path, LLAMA3)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.patterns == [LLAMA3]
    await check_tokenizer(folder, tokenizer)


async def test_a_tokenizer_without_patterns_of_its_own_needs_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_trial, "READY", b"never\n")
    tokenizer = Tokenizer.load(CHECKPOINT)
    assert tokenizer.patterns == []
    await check_tokenizer(Path("/nowhere"), tokenizer)


async def test_a_text_that_the_library_gives_up_on_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(model(tmp_path, r"(q+)+$"))
    prompts = Prompts(tokenizer, None, 2**20)
    with pytest.raises(
        RequestError, match="prompt: the model's tokenizer gives up on a text of 41 characters"
    ) as found:
        await prompts.each(["q" * 40 + "!"], "prompt")
    assert found.value.status == 400
