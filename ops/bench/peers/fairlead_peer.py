"""Our engine in a process of its own, driven as the scheduler would: whole prompts up to a budget, then all decode.

`python -m ops.bench.peers.fairlead_peer CHECKPOINT WORKLOAD`. For each line on stdin it runs once and prints
{"seconds", "tokens", "grown_bytes", "floor_bytes"}: how much the process's peak memory has grown since torch was
imported, and what weights, KV pool and logits take at least.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.interface import EngineSettings, Sampling, SequenceStart, Step
from engine.load import load_engine

BUDGET = 512
GREEDY = Sampling(temperature=0, ignore_eos=True)


class Peer:
    """An engine with a pool for all sequences."""

    def __init__(self, checkpoint: Path, work: dict[str, Any]) -> None:
        self.prompts: list[list[int]] = work["prompts"]
        self.num_outputs: int = work["num_outputs"]
        block_tokens = 16
        each = -(-(max(map(len, self.prompts)) + self.num_outputs) // block_tokens) * block_tokens
        settings = EngineSettings(
            device="cpu", dtype=work["dtype"], threads=work["threads"], kv_pool_tokens=each * len(self.prompts)
        )
        self.engine = load_engine(checkpoint, settings)

    def run(self) -> list[list[int]]:
        """Output tokens of all sequences."""
        size = self.engine.info.block_tokens
        self._next_block, self._held = 0, [0] * len(self.prompts)
        outputs: list[list[int]] = [[] for _ in self.prompts]
        rows: list[int] = []
        for sequence, prompt in enumerate([*self.prompts, []]):
            if rows and (not prompt or sum(len(self.prompts[row]) for row in rows) + len(prompt) > BUDGET):
                self._step({row: (0, len(self.prompts[row])) for row in rows}, size)
                for row, token in zip(rows, self.engine.collect().tokens.tolist(), strict=True):
                    outputs[row].append(token)
                rows = []
            rows.append(sequence)
        # Two steps in flight: a decode is planned before the token that it continues is known.
        for step in range(self.num_outputs - 1):
            self._step({row: (len(prompt) + step, 1) for row, prompt in enumerate(self.prompts)}, size)
            if step:
                self._take(outputs)
        if self.num_outputs > 1:
            self._take(outputs)
        self.engine.forget(list(range(len(self.prompts))))
        return outputs

    def _take(self, outputs: list[list[int]]) -> None:
        for tokens, token in zip(outputs, self.engine.collect().tokens.tolist(), strict=True):
            tokens.append(token)

    def _step(self, rows: dict[int, tuple[int, int]], size: int) -> None:
        """Launch {sequence: (position, tokens)}; blocks are taken as they are needed."""
        wanted = [-(-(position + count) // size) - self._held[row] for row, (position, count) in rows.items()]
        for row, count in zip(rows, wanted, strict=True):
            self._held[row] += count
        new = np.arange(self._next_block, self._next_block + sum(wanted), dtype=np.int32)
        self._next_block += len(new)
        positions, counts = zip(*rows.values(), strict=True)
        starts = [row for row, (position, _) in rows.items() if position == 0]
        self.engine.launch(
            Step(
                step=0,
                sequences=np.array(list(rows), np.int64),
                positions=np.array(positions, np.int32),
                num_tokens=np.array(counts, np.int32),
                samples=np.ones(len(rows), np.bool_),
                num_new_blocks=np.array(wanted, np.int32),
                new_blocks=new,
                starts=[self._start(row) for row in starts],
                released=[],
            )
        )

    def _start(self, sequence: int) -> SequenceStart:
        prompt = np.array(self.prompts[sequence], np.int32)
        return SequenceStart(sequence, prompt.tobytes(), len(prompt), GREEDY)


def peak_bytes() -> int:
    """The most memory this process has held. Not rusage's figure, which begins with that of the process's parent."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    """Answer each line of stdin with a run."""
    checkpoint, work = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    before = peak_bytes()
    peer = Peer(checkpoint, work)
    info = peer.engine.info
    number_bytes = getattr(torch, info.dtype).itemsize
    floor = (info.num_parameters + len(peer.prompts) * info.vocabulary_size) * number_bytes + info.kv_bytes
    for _ in sys.stdin:
        began = time.perf_counter()
        tokens = peer.run()
        answer = {"seconds": time.perf_counter() - began, "tokens": tokens}
        print(json.dumps({**answer, "grown_bytes": peak_bytes() - before, "floor_bytes": floor}), flush=True)


if __name__ == "__main__":
    main()
