"""A tiny random model that has a tokenizer: it knows nothing, so its grammar must carry it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.grammar.compiler import Compiler
from engine.interface import Sampling
from engine.tokenizer import Tokenizer

VOCABULARY = 400
"""More than the tokenizer names, as in many checkpoints."""
END = 2


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tokenizers
    import torch
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    folder: Path = tmp_path_factory.mktemp("tiny")
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(
        ['{"name": "x", "arguments": {"a": [1, 2.5, true, false, null], "b": "text"}}'] * 4, trainer
    )
    library.save(str(folder / "tokenizer.json"))
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(tiny)


@pytest.fixture
def compiler(tiny: Path) -> Compiler:
    return Compiler(tiny, VOCABULARY, frozenset([END]))


@pytest.fixture(scope="session")
def engine(tiny: Path, open_engine: Any) -> Any:
    return open_engine(tiny, kv_pool_tokens=32768)


@pytest.fixture
def follow(driver: Any) -> Callable[..., list[list[int]]]:
    """`follow(engine, grammars, limit)`: outputs up to and including their end token, or `limit` tokens long."""

    def run(
        engine: Any, grammars: Sequence[str], limit: int, in_flight: int = 1, first_seed: int = 0
    ) -> list[list[int]]:
        steps = driver(engine, in_flight=in_flight)
        for sequence, grammar in enumerate(grammars):
            prompt = np.random.default_rng(sequence).integers(3, 380, 1 + sequence % 7).tolist()
            steps.add(sequence, prompt, Sampling(temperature=1.0, seed=first_seed + sequence), grammar)
        for num_outputs in range(8, limit + 8, 8):
            steps.run(min(num_outputs, limit), 64, max_prefills=8)
            for sequence in [sequence for sequence in steps._blocks if any(steps.ended[sequence])]:
                steps.release(sequence)
        engine.forget(list(steps.outputs))
        assert steps.failed == {}
        ends = [flags.index(True) + 1 if any(flags) else limit for flags in steps.ended.values()]
        return [tokens[:end] for tokens, end in zip(steps.outputs.values(), ends, strict=True)]

    return run
