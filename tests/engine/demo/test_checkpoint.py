"""The committed demo: small, what its card says, and Python to look at."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.demo import CHECKPOINT, data, nested, train
from engine.demo.nested import NestedDecoder
from engine.tokenizer import Tokenizer

CONTROL = "control.json"


def report(name: str) -> train.Report:
    return msgspec.json.decode((CHECKPOINT / name).read_bytes(), type=train.Report)


@pytest.fixture(scope="module")
def model() -> NestedDecoder:
    model = NestedDecoder(train.Recipe().long_context)
    model.load(load_file(CHECKPOINT / "model.safetensors"))
    return model


def test_the_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 12_000_000
    weights = load_file(CHECKPOINT / "model.safetensors")
    assert 4_000_000 <= sum(weight.numel() for weight in weights.values()) <= 5_500_000
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_the_card_says_what_the_training_reported() -> None:
    card = (CHECKPOINT / "README.md").read_text()
    ours, control = report(train.REPORT), report(CONTROL)
    for width, loss in ours.loss.items():
        assert f"| {width} | {loss:.4f} |" in card
    assert f"{control.loss['1']:.4f}" in card
    assert f"{ours.bits_per_byte:.4f}" in card
    assert f"{ours.long_loss:.4f}" in card


def test_a_wider_model_is_no_worse() -> None:
    losses = [report(train.REPORT).loss[f"{width:g}"] for width in nested.WIDTHS]
    assert losses == sorted(losses)


def test_training_all_widths_costs_the_full_one_less_than_the_card_allows() -> None:
    gain = report(CONTROL).loss["1"] - report(train.REPORT).loss["1"]
    assert gain >= -0.05
    assert f"its loss is {gain:.3f} nat below the control's" in (CHECKPOINT / "README.md").read_text()


def test_the_control_is_of_the_same_recipe_and_text() -> None:
    ours, control = report(train.REPORT), report(CONTROL)
    # A control has no narrower width to weigh.
    same = msgspec.structs.replace(control.recipe, plain=False, narrow_weight=ours.recipe.narrow_weight)
    assert same == ours.recipe
    assert control.text_digest == ours.text_digest


def test_the_stored_weights_have_the_reported_quality(model: NestedDecoder) -> None:
    """On this interpreter's own library, whose text may be of another version than what was trained on."""
    text = data.read_text()
    tokenizer = data.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    held_out = np.concatenate([np.array(tokenizer.encode(file).ids, np.uint16) for file in text.held_out])[:20_000]
    losses = [train.held_out_loss(model, held_out, 512, width) for width in nested.WIDTHS]
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(report(train.REPORT).loss["1"], abs=0.5)


def test_transformers_and_the_engine_continue_alike(greedy: Any, open_engine: Any, driver: Any) -> None:
    import transformers

    prompt = Tokenizer.load(CHECKPOINT).encode("def read_config(path):\n    ")
    model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    run = driver(open_engine(CHECKPOINT))
    run.add(1, prompt)
    run.run(32, 16)
    assert run.outputs[1] == greedy(model, prompt, 32)


def test_it_writes_python(open_engine: Any, driver: Any) -> None:
    tokenizer = Tokenizer.load(CHECKPOINT)
    run = driver(open_engine(Path(CHECKPOINT)))
    run.add(1, tokenizer.encode("import os\n\n\ndef read_lines(path):\n    "))
    run.run(64, 16)
    written = tokenizer.decode(run.outputs[1])
    assert "return" in written or "if " in written
