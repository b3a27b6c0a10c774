"""Trains the demo model: `python -m engine.demo.train --out FOLDER`, and its control with `--plain`.

Each step takes the full width on the whole batch and, unless `--plain`, one narrower width on half of it, drawn anew
each step: the full width then sees what the control sees. Matrices are trained with Muon (Jordan et al., 2024), the
embedding and the norms with AdamW. What a step reads and which width it draws follow from (seed, step) alone, so an
interrupted run goes on where it was.
"""

import argparse
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from engine.demo import data
from engine.demo.nested import WIDTHS, NestedDecoder
from engine.demo.saving import save_checkpoint

STATE = "training-state.pt"
REPORT = "training.json"
SAVE_EVERY = 50
EVALUATION_TOKENS = 8192


class Recipe(msgspec.Struct, frozen=True):
    """What determines the result, with the text and the machine's arithmetic."""

    steps: int = 1500
    sequences: int = 8
    context: int = 512
    """Tokens of a training sequence."""
    long_context: int = 2048
    """The same in the last steps, whose batches hold fewer sequences and as many tokens."""
    long_share: float = 0.1
    """Share of the steps that read long sequences."""
    seed: int = 1
    muon_rate: float = 4e-3
    adam_rate: float = 6e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    """Share of the steps in which the rates rise; from there they fall to zero in a straight line."""
    narrow_weight: float = 0.1
    """Of the narrower width's loss, beside 1 for the full one's."""
    plain: bool = False
    """Train the full width alone: the control."""


class Report(msgspec.Struct):
    """What came out, as `training.json` beside the weights."""

    recipe: Recipe
    text_digest: str
    python: str
    torch: str
    train_tokens: int
    held_out_tokens: int
    loss: dict[str, float]
    """Held-out loss of each width, nat per token, of the weights as they are stored (bfloat16), in windows of
    `recipe.context` tokens."""
    long_loss: float
    """Of the full width in windows of `recipe.long_context` tokens."""
    bits_per_byte: float
    """Of the full width."""
    cpu_s: float
    """Processor time of this process in the steps, summed over interruptions."""


class Training:
    """The model, its optimisers and the step they are at."""

    def __init__(self, recipe: Recipe, tokens: data.Tokens) -> None:
        self.recipe, self.tokens = recipe, tokens
        torch.manual_seed(recipe.seed)
        self.model = NestedDecoder(recipe.long_context)
        matrices = [weight for weight in self.model.layers.parameters() if weight.dim() == 2]
        others = [self.model.embed_tokens.weight, *(w for w in self.model.parameters() if w.dim() == 1)]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = (recipe.muon_rate, recipe.adam_rate)
        # Fused by a compiler a step takes less than half the time.
        self.loss = torch.compile(self.model.loss, dynamic=False) if shutil.which("g++") else self.model.loss
        self.step = 0
        self.cpu_s = 0.0

    def take_step(self) -> float:
        """One update; the full width's loss before it, nat per token."""
        started = time.process_time()
        recipe = self.recipe
        draw = np.random.default_rng((recipe.seed, self.step))
        batch = self._batch(draw)
        loss = self._backward(batch, 1.0)
        if not recipe.plain:
            self._backward(batch[: len(batch) // 2], float(draw.choice(WIDTHS[1:])), recipe.narrow_weight)
        share = schedule(self.step, recipe)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        self.cpu_s += time.process_time() - started
        return loss

    def _batch(self, draw: np.random.Generator) -> Tensor:
        """Token ids [sequences, context + 1] from random places."""
        recipe = self.recipe
        context = recipe.long_context if self.step >= recipe.steps * (1 - recipe.long_share) else recipe.context
        starts = draw.integers(0, len(self.tokens.train) - context - 1, recipe.sequences * recipe.context // context)
        return _windows(self.tokens.train, starts, context)

    def _backward(self, batch: Tensor, width: float, weight: float = 1.0) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(batch, width)
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on."""
        return {
            "recipe": msgspec.json.encode(self.recipe).decode(),
            "step": self.step,
            "cpu_s": self.cpu_s,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Take up a `state`.

        Raises:
            ValueError: it is of another recipe.
        """
        if msgspec.json.decode(state["recipe"], type=Recipe) != self.recipe:
            raise ValueError(
                f"was begun with {state['recipe']}, not with this run's settings; remove it or choose --out"
            )
        self.step, self.cpu_s = state["step"], state["cpu_s"]
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def schedule(step: int, recipe: Recipe) -> float:
    """The share of the learning rates at a step."""
    rising = recipe.warmup * recipe.steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return (recipe.steps - step) / (recipe.steps - rising)


@torch.no_grad()
def held_out_loss(model: NestedDecoder, tokens: NDArray[np.uint16], context: int, width: float) -> float:
    """Mean over all whole windows of the held-out text, nat per token."""
    starts = np.arange(0, len(tokens) - context, context)
    parts = np.array_split(starts, -(-len(starts) * context // EVALUATION_TOKENS))
    sums = [float(model.loss(_windows(tokens, part, context), width)) * len(part) for part in parts]
    return sum(sums) / len(starts)


def _windows(tokens: NDArray[np.uint16], starts: NDArray[np.int64], context: int) -> Tensor:
    return torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))


def train(recipe: Recipe, out: Path, source: Path | None = None) -> Report:
    """Trains to the end, or from where `out` shows an interrupted run, and writes the checkpoint into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    text = data.read_text(source)
    tokenizer = data.learn_tokenizer(text.train)
    tokens = data.encode(text, tokenizer)
    training = Training(recipe, tokens)
    state_file = out / STATE
    if state_file.exists():
        try:
            training.resume(torch.load(state_file, weights_only=True))
        except ValueError as error:
            raise SystemExit(f"{state_file}: {error}") from error
    with Progress() as progress:
        task = progress.add_task("training", total=recipe.steps, completed=training.step)
        while training.step < recipe.steps:
            loss = training.take_step()
            progress.update(task, completed=training.step, description=f"loss {loss:.3f} nat")
            if training.step % SAVE_EVERY == 0:
                _save_state(training, state_file)
                progress.console.print(f"step {training.step}: loss {loss:.3f} nat, {training.cpu_s:.0f} s")
    for weight in training.model.parameters():
        weight.data = weight.data.bfloat16().float()  # the losses are of what is stored
    losses = {
        f"{width:g}": held_out_loss(training.model, tokens.held_out, recipe.context, width)
        for width in (WIDTHS if not recipe.plain else WIDTHS[:1])
    }
    bits = losses["1"] * len(tokens.held_out) / tokens.held_out_bytes / np.log(2)
    report = Report(
        recipe=recipe,
        text_digest=text.digest,
        python=platform.python_version(),
        torch=str(torch.__version__),
        train_tokens=len(tokens.train),
        held_out_tokens=len(tokens.held_out),
        loss={width: round(loss, 4) for width, loss in losses.items()},
        long_loss=round(held_out_loss(training.model, tokens.held_out, recipe.long_context, 1.0), 4),
        bits_per_byte=round(float(bits), 4),
        cpu_s=round(training.cpu_s),
    )
    save_checkpoint(out, training.model.weights(), tokenizer, recipe.long_context)
    (out / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    state_file.unlink(missing_ok=True)
    return report


def _save_state(training: Training, file: Path) -> None:
    """Whole or not at all: an interruption while saving must not cost the run."""
    beside = file.with_suffix(".new")
    torch.save(training.state(), beside)
    beside.replace(file)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m engine.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; an interrupted run goes on")
    parser.add_argument("--plain", action="store_true", help="the full width alone: the control")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--source", type=Path, help="folder of Python sources; default: this Python's library")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        report = train(Recipe(steps=arguments.steps, plain=arguments.plain), arguments.out, arguments.source)
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from error
    for width, loss in report.loss.items():
        print(f"width {width}: {loss:.4f} nat per token")


if __name__ == "__main__":
    main()
