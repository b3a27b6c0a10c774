"""From what a client wrote to token ids that the model has."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.tokenizer import Tokenizer
from services.errors import RequestError
from services.gateway.prompts import BACKGROUND_CHARACTERS, Prompts
from tests.services.gateway.conftest import RenderedHere


@pytest.fixture
def prompts(checkpoint: Path, tmp_path: Path) -> Prompts:
    """Of a tokenizer with a token that its model has no row for, as many fine-tuned checkpoints have."""
    for file in checkpoint.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = msgspec.json.decode((tmp_path / "tokenizer.json").read_bytes())
    added: dict[str, Any] = dict(tokenizer["added_tokens"][0], id=4096, content="<|pad|>")
    tokenizer["added_tokens"].append(added)
    (tmp_path / "tokenizer.json").write_bytes(msgspec.json.encode(tokenizer))
    return Prompts(Tokenizer.load(tmp_path), RenderedHere(tmp_path, 10**6), 2 * BACKGROUND_CHARACTERS)


@pytest.mark.parametrize("text", ["a <|pad|>", "x" * BACKGROUND_CHARACTERS + "<|pad|>"])
async def test_a_text_with_a_token_that_the_model_lacks_is_refused(prompts: Prompts, text: str) -> None:
    with pytest.raises(RequestError, match="prompt: token id 4096 is not in the model's vocabulary of 4096"):
        await prompts.each([text], "prompt")
    with pytest.raises(RequestError, match="messages: token id 4096 is not in the model's vocabulary of 4096"):
        await prompts.chat([{"role": "user", "content": text}], [])


@pytest.mark.parametrize(("given", "sentence"), [([[5, -1]], "token id -1 is not"), ([[]], "is empty"), ([""], "is e")])
async def test_what_makes_no_prompt_is_refused_by_name(prompts: Prompts, given: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=f"input: {sentence}"):
        await prompts.each(given, "input")


async def test_texts_and_ids_become_ids(prompts: Prompts) -> None:
    [tokens] = await prompts.each(["Hello"], "prompt")
    assert await prompts.each([tokens, [4095]], "prompt") == [tokens, [4095]]


async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts._tokenizer, "max_sequence_tokens", 10)
    monkeypatch.setattr(prompts._tokenizer, "encode", None)
    with pytest.raises(RequestError, match="prompt has a text of 5000 characters, which are at least") as refused:
        await prompts.each(["x" * 5000], "prompt")
    assert refused.value.code == "context_length_exceeded"


async def test_texts_are_bounded_together(prompts: Prompts) -> None:
    with pytest.raises(RequestError, match=f"prompt: {3 * BACKGROUND_CHARACTERS} characters in one request; at most"):
        await prompts.each(["x y " * (BACKGROUND_CHARACTERS // 4)] * 3, "prompt")
