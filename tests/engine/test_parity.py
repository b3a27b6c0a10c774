"""Every architecture against transformers, with all that a scheduler may do to a sequence done to it at once.

The reference is transformers' logits of prompt and output together: where its argmax is our token at each place, its
own greedy generation is our output. Where its two best logits are closer than `TIE`, either is right.
"""

from typing import Any

import numpy as np
import pytest

from engine.interface import Engine, Sampling, SequenceStart, Step

VARIANTS = ("llama", "llama_mha", "llama_bias_mha_tied", "llama3_rope", "llama_yarn", "llama_linear_rope")
VARIANTS += ("llama_wide", "mistral", "qwen2", "qwen2_windows", "qwen3", "qwen3_tied", "qwen3_wide_windows")
NUM_PROMPTS = 64
NUM_OUTPUTS = 16
TIE = 2e-5
LOGPROB_ERROR = 1e-4
BF16_ERROR_RATIO = 1.1
"""Our error in bfloat16 is at most this much of transformers': both round, in different places."""
GREEDY = Sampling(temperature=0, ignore_eos=True)


class Sequence:
    """What the scheduler below knows of one."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt
        self.outputs: list[int] = []
        self.blocks: list[int] = []
        self.num_given = 0
        """Of `blocks`, how many the engine knows."""
        self.position = 0
        """Tokens planned."""
        self.num_computed = 0
        """Tokens whose step has ended."""
        self.num_in_flight = 0
        self.running = False
        self.num_starts = 0

    @property
    def known(self) -> list[int]:
        return self.prompt + self.outputs

    @property
    def done(self) -> bool:
        return len(self.outputs) == NUM_OUTPUTS


class RandomScheduler:
    """Random chunks beside decodes, two steps in flight, preemptions, and blocks shared by their content."""

    def __init__(self, engine: Engine, prompts: list[list[int]], seed: int) -> None:
        self.engine = engine
        self.size = engine.info.block_tokens
        self.sequences = [Sequence(prompt) for prompt in prompts]
        self.random = np.random.default_rng(seed)
        self.holders = np.zeros(engine.info.num_blocks, np.int64)
        self.cached: dict[tuple[int, ...], int] = {}
        """A full block's tokens and all before them, to the block. Its step has ended."""
        self.launched: list[tuple[list[tuple[int, int, int]], list[int]]] = []
        """Of each step in flight its rows (sequence, its starts so far, end) and the sequences that sample."""
        self.released: list[int] = []
        self.copied: list[tuple[int, int]] = []
        """Blocks to copy before the next step, and where to."""
        self.num_steps = self.num_hits = self.num_copies = self.num_preempted = self.num_mixed = 0

    def run(self) -> None:
        while not all(sequence.done for sequence in self.sequences):
            self._preempt()
            rows = self._rows()
            if rows:
                self._launch(rows)
            if self.launched and (len(self.launched) == 2 or not rows or self.random.random() < 0.3):
                self._collect()
        assert not self.launched
        assert self.num_hits > NUM_PROMPTS // 4
        assert self.num_copies > NUM_PROMPTS // 16
        assert self.num_preempted > NUM_PROMPTS // 4
        assert self.num_mixed > self.num_steps // 4

    def _preempt(self) -> None:
        """A victim's blocks are free at once; it starts again when its tokens in flight are back."""
        victims = [number for number, sequence in enumerate(self.sequences) if sequence.running]
        if victims and self.random.random() < 0.2:
            self._release(int(self.random.choice(victims)))
            self.num_preempted += 1

    def _release(self, number: int) -> None:
        sequence = self.sequences[number]
        self.holders[sequence.blocks] -= 1
        sequence.blocks, sequence.num_given, sequence.running = [], 0, False
        sequence.position = sequence.num_computed = 0
        self.released.append(number)

    def _rows(self) -> dict[int, int]:
        rows: dict[int, int] = {}
        width = int(self.random.integers(1, 14))
        for number, sequence in enumerate(self.sequences):
            # The last output's own key is never needed.
            left = len(sequence.prompt) + NUM_OUTPUTS - 1 - sequence.position
            resting = not sequence.running and sequence.num_in_flight
            if len(rows) == width or sequence.done or not left or resting:
                continue
            pending = len(sequence.known) - sequence.position
            rows[number] = int(self.random.integers(1, pending + 1)) if pending > 1 else 1
        return rows

    def _start(self, number: int) -> SequenceStart:
        sequence = self.sequences[number]
        sequence.running = True
        sequence.num_starts += 1
        known = sequence.known
        for end in range(self.size, len(known), self.size):
            block = self.cached.get(tuple(known[:end]))
            if block is None:
                break
            sequence.blocks.append(block)
            sequence.position = end
            self.num_hits += 1
        self.holders[sequence.blocks] += 1
        sequence.num_computed = sequence.position  # a copied tail is there only when the step has ended
        self._copy_tail(sequence)
        return SequenceStart(number, np.array(known, np.int32).tobytes(), len(sequence.prompt), GREEDY)

    def _copy_tail(self, sequence: Sequence) -> None:
        """The beginning of the next block, where another sequence has it: from now on each writes its own."""
        first, known = sequence.position, sequence.known
        for other in self.sequences:
            held = other.known[: other.num_computed]
            length = min(len(known) - 1, len(held), first + self.size)
            if other is not sequence and length > first and held[:length] == known[:length]:
                self.copied.append((other.blocks[first // self.size], self._blocks(1)[0]))
                sequence.blocks.append(self.copied[-1][1])
                sequence.position = length
                self.num_copies += 1
                return

    def _launch(self, rows: dict[int, int]) -> None:
        starts = [self._start(number) for number in rows if not self.sequences[number].running]
        positions, counts, ends, new = [], [], [], []
        for number, wanted in rows.items():
            sequence = self.sequences[number]
            positions.append(sequence.position)
            end = sequence.position + max(1, min(wanted, len(sequence.known) - sequence.position))
            sequence.blocks += self._blocks(-(-end // self.size) - len(sequence.blocks))
            given = sequence.blocks[sequence.num_given :]
            sequence.num_given, sequence.position = len(sequence.blocks), end
            counts.append(len(given))
            new += given
            ends.append(end)
        samples = [end >= len(self.sequences[number].known) for number, end in zip(rows, ends, strict=True)]
        num_tokens = np.array(ends, np.int32) - np.array(positions, np.int32)
        self.num_mixed += len(set(samples)) > 1
        self.num_steps += 1
        self.engine.launch(
            Step(
                step=self.num_steps,
                sequences=np.array(list(rows), np.int64),
                positions=np.array(positions, np.int32),
                num_tokens=num_tokens,
                samples=np.array(samples, np.bool_),
                num_new_blocks=np.array(counts, np.int32),
                new_blocks=np.array(new, np.int32),
                starts=starts,
                released=self.released,
                copied=np.array([source for source, _ in self.copied], np.int32),
                copies=np.array([copy for _, copy in self.copied], np.int32),
            )
        )
        self.released, self.copied = [], []
        sampling = [number for number, sampled in zip(rows, samples, strict=True) if sampled]
        for number in sampling:
            self.sequences[number].num_in_flight += 1
        num_starts = [self.sequences[number].num_starts for number in rows]
        self.launched.append((list(zip(rows, num_starts, ends, strict=True)), sampling))

    def _blocks(self, count: int) -> list[int]:
        """Free ones at random; what they held is cached no longer."""
        taken = self.random.choice(np.flatnonzero(self.holders == 0), max(count, 0), replace=False).tolist()
        self.holders[taken] = 1
        self.cached = {tokens: block for tokens, block in self.cached.items() if block not in taken}
        return taken

    def _collect(self) -> None:
        rows, sampling = self.launched.pop(0)
        for number, token in zip(sampling, self.engine.collect().tokens.tolist(), strict=True):
            sequence = self.sequences[number]
            sequence.outputs.append(token)
            sequence.num_in_flight -= 1
        for number, num_starts, end in rows:
            sequence = self.sequences[number]
            if not sequence.running or sequence.num_starts != num_starts:  # its blocks may be another's by now
                continue
            sequence.num_computed = max(sequence.num_computed, end)
            for index in range(min(end, len(sequence.known)) // self.size):
                self.cached.setdefault(tuple(sequence.known[: (index + 1) * self.size]), sequence.blocks[index])
            if sequence.done:
                self._release(number)


def prompts() -> list[list[int]]:
    """Every third begins as the one before it, every fifth is the one before it: as choices of one request are."""
    source = np.random.default_rng(8)
    made: list[list[int]] = []
    for index in range(NUM_PROMPTS):
        prompt = source.integers(3, 199, source.integers(1, 90 if index % 8 else 330)).tolist()
        if index % 3 == 2:
            prompt = made[-1][: int(source.integers(1, 90))] + prompt[:40]
        made.append(list(made[-1]) if index % 5 == 4 else prompt)
    return made


def reference_logits(model: Any, sequences: list[list[int]]) -> list[Any]:
    """transformers' logits [tokens, vocabulary] in float32 of each: padding comes after, where causality hides it."""
    import torch

    length = max(map(len, sequences))
    rows: list[Any] = []
    with torch.inference_mode():
        for start in range(0, len(sequences), 16):
            part = sequences[start : start + 16]
            ids = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens in part])
            logits = model(ids, use_cache=False).logits.float()
            rows += [row[: len(tokens)].clone() for row, tokens in zip(logits, part, strict=True)]
    return rows


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_and_logprobs_are_those_of_transformers_whatever_the_scheduler_does(
    variant: str, references: Any, open_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    folder, model = references(variant)
    engine = open_engine(folder, kv_pool_tokens=4096)
    scheduler = RandomScheduler(engine, prompts(), seed=VARIANTS.index(variant))
    launched: list[Any] = []
    head = engine._model.logits

    def watched(*arguments: Any) -> Any:
        launched.append(head(*arguments))
        return launched[-1]

    seen: dict[tuple[int, int], Any] = {}
    collect = scheduler._collect

    def noted() -> None:
        _, sampling = scheduler.launched[0]
        for number, logits in zip(sampling, launched.pop(0), strict=True):
            seen[number, len(scheduler.sequences[number].outputs)] = logits.clone()
        collect()

    monkeypatch.setattr(engine._model, "logits", watched)
    monkeypatch.setattr(scheduler, "_collect", noted)
    scheduler.run()
    num_ties = 0
    rows = reference_logits(model, [sequence.known for sequence in scheduler.sequences])
    for number, (sequence, logits) in enumerate(zip(scheduler.sequences, rows, strict=True)):
        wanted = logits[len(sequence.prompt) - 1 : -1]
        ours = torch.stack([seen[number, index] for index in range(NUM_OUTPUTS)])
        worst = (ours.log_softmax(-1) - wanted.log_softmax(-1)).abs().max()
        assert worst < LOGPROB_ERROR, f"prompt {number}"
        best = wanted.max(-1).values
        chosen = wanted.gather(-1, torch.tensor(sequence.outputs)[:, None]).squeeze(-1)
        assert (chosen >= best - TIE).all(), f"prompt {number}: {sequence.outputs}, not {wanted.argmax(-1).tolist()}"
        num_ties += int((chosen < best).sum())
    assert num_ties <= 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_as_near_to_float32_as_transformers_own(
    variant: str, references: Any, open_engine: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers

    folder, model = references(variant)
    engine = open_engine(folder, dtype="bfloat16")
    sequences = prompts()[:16]
    seen: list[Any] = []
    head = engine._model.logits

    def watched(hidden: Any, sampled: Any) -> Any:
        every = head(hidden, torch.arange(len(hidden)))
        seen.append(every)
        return every[sampled]

    monkeypatch.setattr(engine._model, "logits", watched)
    rounded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    exact, theirs = (torch.cat(reference_logits(each, sequences)) for each in (model, rounded))
    for sequence, tokens in enumerate(sequences):
        run = driver(engine)
        run.add(sequence, tokens)
        run.run(1, 64)
        engine.forget([sequence])
    ours = torch.cat(seen).float()

    def error(logits: Any) -> float:
        """Root mean square of the logprobs' difference."""
        return float((logits.log_softmax(-1) - exact.log_softmax(-1)).square().mean().sqrt())

    assert error(ours) < BF16_ERROR_RATIO * error(theirs)
