"""A scheduler small enough to check by eye, and tiny random checkpoints made by transformers itself."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_checkpoint import write_random_checkpoint

from engine.interface import Engine, EngineSettings, Sampling, SequenceStart, Step, StepOutput
from engine.load import load_engine

SIZES: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GREEDY = Sampling(temperature=0, ignore_eos=True)
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "initializer_range": 0.2}
"""As the kernels of a CPU want it; where the others do not fit, torch's operators do the work."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama_mha": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama_bias_mha_tied": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "llama_wide": ("Llama", WIDE),
    "llama3_rope": (
        "Llama",
        {
            "head_dim": 16,  # so that a pair's wave lies between the short ones and the long ones
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama_yarn": (
        "Llama",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "llama_linear_rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 9, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2_windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_wide_windows": ("Qwen3", {**WIDE, "use_sliding_window": True, "sliding_window": 13, "max_window_layers": 1}),
}


class Driver:
    """Plans steps by hand: owns the blocks, follows every sequence, keeps up to `in_flight` steps launched."""

    def __init__(self, engine: Engine, in_flight: int = 1) -> None:
        self.engine = engine
        self.in_flight = in_flight
        self.outputs: dict[int, list[int]] = {}
        self.ended: dict[int, list[bool]] = {}
        self._prompts: dict[int, list[int]] = {}
        self._samplings: dict[int, Sampling] = {}
        self._grammars: dict[int, str] = {}
        self.failed: dict[int, str] = {}
        self.logprobs: dict[int, list[list[tuple[int, float]]]] = {}
        """Of each output token: itself, then the likeliest tokens, with their log-probabilities."""
        self._positions: dict[int, int] = {}
        self._blocks: dict[int, list[int]] = {}
        self._free = list(range(engine.info.num_blocks - 1, -1, -1))  # high ids first: ids are not positions
        self._launched: list[tuple[int, list[int]]] = []
        self._starts: list[SequenceStart] = []
        self._released: list[int] = []
        self._step = 0

    def add(self, sequence: int, prompt: list[int], sampling: Sampling = GREEDY, grammar: str = "") -> None:
        self._prompts[sequence] = prompt
        self._samplings[sequence] = sampling
        self._grammars[sequence] = grammar
        self.outputs[sequence], self.ended[sequence] = [], []
        self._begin(sequence)

    def preempt(self, sequence: int) -> None:
        """Take the blocks back; generated tokens are kept and the sequence starts anew with them."""
        self.release(sequence)
        self._begin(sequence)

    def release(self, sequence: int) -> None:
        self._free.extend(self._blocks.pop(sequence))
        self._released.append(sequence)

    def _begin(self, sequence: int) -> None:
        prompt = self._prompts[sequence]
        tokens = np.array(prompt + self.outputs[sequence], np.int32)
        sampling, grammar = self._samplings[sequence], self._grammars[sequence]
        self._starts.append(SequenceStart(sequence, tokens.tobytes(), len(prompt), sampling, grammar))
        self._positions[sequence] = 0
        self._blocks[sequence] = []

    def known(self, sequence: int) -> int:
        return len(self._prompts[sequence]) + len(self.outputs[sequence])

    def pending(self, sequence: int) -> int:
        """Tokens known that are not in the KV cache yet."""
        return self.known(sequence) - self._positions[sequence]

    def step(self, rows: dict[int, int]) -> None:
        """Launch a step of {sequence: number of tokens}; collects once more than `in_flight` are launched."""
        size = self.engine.info.block_tokens
        positions, samples, counts, new = [], [], [], []
        for sequence, num_tokens in rows.items():
            position = self._positions[sequence]
            missing = -(-(position + num_tokens) // size) - len(self._blocks[sequence])
            taken = [self._free.pop() for _ in range(missing)]
            self._blocks[sequence] += taken
            positions.append(position)
            counts.append(missing)
            new += taken
            samples.append(position + num_tokens >= self.known(sequence))
            self._positions[sequence] += num_tokens
        self._step += 1
        self.engine.launch(
            Step(
                step=self._step,
                sequences=np.array(list(rows), np.int64),
                positions=np.array(positions, np.int32),
                num_tokens=np.array(list(rows.values()), np.int32),
                samples=np.array(samples, np.bool_),
                num_new_blocks=np.array(counts, np.int32),
                new_blocks=np.array(new, np.int32),
                starts=self._starts,
                released=self._released,
            )
        )
        self._starts, self._released = [], []
        self._launched.append((self._step, [s for s, sampled in zip(rows, samples, strict=True) if sampled]))
        while len(self._launched) > self.in_flight - 1:
            self.collect()

    def collect(self) -> StepOutput:
        number, sampling = self._launched.pop(0)
        output = self.engine.collect()
        assert output.step == number
        assert output.launched_ns <= output.computed_ns
        for sequence, token, ended in zip(sampling, output.tokens.tolist(), output.ended.tolist(), strict=True):
            self.outputs[sequence].append(token)
            self.ended[sequence].append(ended)
        self.failed.update(output.failed)
        if output.logprobs is not None:
            logprobs = output.logprobs
            entries = iter(zip(logprobs.tokens.tolist(), logprobs.values.tolist(), strict=True))
            for sequence, count in zip(sampling, logprobs.num_entries.tolist(), strict=True):
                if count:
                    self.logprobs.setdefault(sequence, []).append(list(itertools.islice(entries, count)))
        return output

    def drain(self) -> None:
        while self._launched:
            self.collect()

    def run(self, num_outputs: int, chunk: int, *, max_prefills: int = 2) -> None:
        """Until every sequence has its tokens: all decodes and some prefill chunks in each step.

        With steps in flight a decode is planned before the token it continues is known.
        """
        while True:
            rows: dict[int, int] = {}
            for sequence in self._blocks:
                planned = self._positions[sequence]
                if planned >= len(self._prompts[sequence]) + num_outputs - 1:
                    continue
                pending = self.pending(sequence)
                if pending <= 1:
                    rows[sequence] = 1
                elif max_prefills > sum(num_tokens > 1 for num_tokens in rows.values()):
                    rows[sequence] = min(chunk, pending)
            if not rows:
                break
            self.step(rows)
        self.drain()


@pytest.fixture
def driver() -> type[Driver]:
    return Driver


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """`references(variant, **save)`: the folder of a tiny random checkpoint and transformers' model of it."""
    made: dict[str, tuple[Path, Any]] = {}

    def make(variant: str, **save: Any) -> tuple[Path, Any]:
        key = f"{variant}{save}"
        if key not in made:
            import torch
            import transformers

            name, options = VARIANTS[variant]
            torch.manual_seed(5)
            config = getattr(transformers, f"{name}Config")(**{**SIZES, **options})
            model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
            with torch.no_grad():  # biases start at zero and norms at one, which would hide a missing one
                for parameter in model.parameters():
                    if parameter.dim() == 1:
                        parameter.add_(torch.randn_like(parameter) * 0.2)
            folder = tmp_path_factory.mktemp(variant)
            model.save_pretrained(folder, **save)
            made[key] = folder, model
        return made[key]

    return make


@pytest.fixture(scope="session")
def greedy() -> Callable[[Any, list[int], int], list[int]]:
    """`greedy(model, prompt, num_outputs)`: transformers' own tokens."""

    def generate(model: Any, prompt: list[int], num_outputs: int) -> list[int]:
        import torch

        inputs = torch.tensor([prompt])
        with torch.no_grad():
            ids = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=num_outputs,
                do_sample=False,
                eos_token_id=[],
                pad_token_id=0,
            )
        return ids[0, len(prompt) :].tolist()

    return generate


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "demo")


@pytest.fixture
def cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def small_settings(**changes: Any) -> EngineSettings:
    """A pool for a few thousand tokens on one thread."""
    return EngineSettings(**{"device": "cpu", "threads": 1, "kv_pool_tokens": 8192, **changes})


@pytest.fixture(scope="session")
def open_engine(references: Any) -> Callable[..., Any]:
    """`open_engine(variant or folder, **settings)`: an engine with a small pool."""

    def load(checkpoint: str | Path, **changes: Any) -> Any:
        folder = references(checkpoint)[0] if isinstance(checkpoint, str) else checkpoint
        return load_engine(folder, small_settings(**changes))

    return load
