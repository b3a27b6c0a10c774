"""The demo's training: the same from one run or two, held-out text held out, widths that are real models."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.demo import data, nested, saving, train
from engine.demo.nested import NestedDecoder

RECIPE = train.Recipe(steps=4, sequences=4, context=32, long_context=64, long_share=0.25)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small library; its files go to one side or the other by their names."""
    folder = tmp_path_factory.mktemp("library")
    draw = np.random.default_rng(0)
    for number in range(60):
        lines = [f"def step_{draw.integers(50)}(value):\n    return value + {draw.integers(9)}\n" for _ in range(40)]
        (folder / f"module_{number}.py").write_text("\n".join(lines))
    (folder / "test").mkdir()
    (folder / "test" / "left_out.py").write_text("never = 'seen'\n")
    return folder


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler needs half a minute for what takes these models a second."""
    monkeypatch.setattr(train.shutil, "which", lambda _name: None)


@pytest.fixture(scope="module")
def text(source: Path) -> data.Text:
    return data.read_text(source)


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.shutil, "which", lambda _name: None)
        train.train(RECIPE, folder, source)
    return folder


def test_no_file_is_on_both_sides_and_tests_are_on_none(text: data.Text) -> None:
    assert len(text.train) + len(text.held_out) == 60
    assert text.held_out
    assert not any("never" in file for file in [*text.train, *text.held_out])


def test_a_folder_without_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds too few Python sources"):
        data.read_text(tmp_path)


def test_an_interrupted_run_ends_with_the_same_weights(
    source: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    taken = train.Training.take_step

    def interrupted(training: train.Training) -> float:
        if training.step == 2:
            raise KeyboardInterrupt
        return taken(training)

    monkeypatch.setattr(train.Training, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(RECIPE, tmp_path, source)
    monkeypatch.setattr(train.Training, "take_step", taken)
    train.train(RECIPE, tmp_path, source)
    assert (tmp_path / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert not (tmp_path / train.STATE).exists()


def test_a_run_of_another_recipe_is_not_taken_up(source: Path, text: data.Text, tmp_path: Path) -> None:
    tokens = data.encode(text, data.learn_tokenizer(text.train))
    torch.save(train.Training(RECIPE, tokens).state(), tmp_path / train.STATE)
    other = msgspec.structs.replace(RECIPE, plain=True)
    with pytest.raises(SystemExit, match=r"was begun with .*remove it or choose --out"):
        train.train(other, tmp_path, source)


def test_training_lowers_the_loss_of_every_width(trained: Path, text: data.Text) -> None:
    report = msgspec.json.decode((trained / train.REPORT).read_bytes(), type=train.Report)
    tokens = data.encode(text, data.learn_tokenizer(text.train))
    torch.manual_seed(RECIPE.seed)
    fresh = NestedDecoder(RECIPE.long_context)
    for width in nested.WIDTHS:
        assert report.loss[f"{width:g}"] < train.held_out_loss(fresh, tokens.held_out, RECIPE.context, width) - 0.1


def test_the_control_trains_the_full_width_alone(source: Path, tmp_path: Path) -> None:
    report = train.train(msgspec.structs.replace(RECIPE, plain=True), tmp_path, source)
    assert list(report.loss) == ["1"]


@pytest.mark.parametrize("width", nested.WIDTHS)
def test_the_engine_computes_what_was_trained_at_every_width(
    width: float, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A width cut out of the matrices and saved is a plain Llama with the same logits."""
    import transformers

    weights = load_file(trained / "model.safetensors")
    model = NestedDecoder(RECIPE.long_context)
    model.load(weights)
    count = nested.neurons(width)
    for name in weights:
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            weights[name] = weights[name][:count]
        elif name.endswith("down_proj.weight"):
            weights[name] = weights[name][:, :count]
    monkeypatch.setattr(nested, "INTERMEDIATE", count)
    tokenizer = data.Tokenizer.from_file(str(trained / "tokenizer.json"))
    saving.save_checkpoint(tmp_path, weights, tokenizer, RECIPE.long_context)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    monkeypatch.undo()
    ids = torch.randint(0, nested.VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (plain(ids).logits - model(ids, width)).abs().max() < 1e-4


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    recipe = train.Recipe(steps=100, warmup=0.1)
    shares: list[Any] = [train.schedule(step, recipe) for step in range(101)]
    assert max(shares) == shares[10] == 1
    assert shares[:10] == sorted(shares[:10])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] == 0
