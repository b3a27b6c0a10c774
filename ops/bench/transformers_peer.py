"""transformers' continuous batching as a reference: tuned first, by trying each of its ways once."""

import gc
import logging
import time
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.generation.continuous_batching.utils import WorkloadHints

from ops.bench.harness import UnmeasurableError

Way = tuple[str, dict[str, Any]]
"""An attention implementation, and options of continuous batching."""
TUNED_OUTPUTS = 128
"""Output tokens of a trial."""
LONGEST_S = 600.0


class Peer:
    """One batch of prompts, generated again and again."""

    def __init__(self, model: Any, prompts: NDArray[np.int32], num_outputs: int, device: torch.device) -> None:
        """`prompts` int32 [sequences, tokens]."""
        self.model = model
        self.way: Way = ("none", {})
        self._refused: dict[str, str] = {}
        """Attention implementations that do not run here, and why."""
        self._prompts = prompts.tolist()
        self._num_outputs = num_outputs
        self._device = device
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)

    def tune(self) -> None:
        """Take the fastest way, ready to be measured.

        Raises:
            UnmeasurableError: none works here.
        """
        num_outputs = min(TUNED_OUTPUTS, self._num_outputs)
        timed: list[tuple[float, Way]] = []
        for way in ways(self._device, len(self._prompts), len(self._prompts[0]) + self._num_outputs):
            try:
                self._take(way)
                self.run(num_outputs)
                timed.append((self.run(num_outputs)[0], way))
            except Exception as error:  # noqa: BLE001  whatever keeps a way from working, the others are tried
                self._refused[way[0]] = " ".join(str(error).split())[:200]
        if not timed:
            raise UnmeasurableError(f"transformers' continuous batching does not run here: {'; '.join(self.notes())}")
        self._take(min(timed, key=lambda found: found[0])[1])

    def notes(self) -> list[str]:
        """The way taken, and what did not run."""
        return [f"transformers ran as {self.way}", *(f"{name} did not: {why}" for name, why in self._refused.items())]

    def run(self, num_outputs: int) -> tuple[float, NDArray[np.int32]]:
        """Seconds of one batch and its tokens, int32 [sequences, outputs].

        Starting and stopping its thread is not counted: a server does it once.

        Raises:
            RuntimeError: tokens are missing.
        """
        # Greedy; -1 is no token, so that none ends a sequence.
        generation = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        session = self.model.continuous_batching_context_manager(
            generation_config=generation,
            continuous_batching_config=transformers.ContinuousBatchingConfig(**self.way[1]),
            persistent_manager=True,
            workload_hints=WorkloadHints(len(self._prompts[0]), self._num_outputs, len(self._prompts)),
        )
        found: dict[str, list[int]] = {}
        with torch.no_grad(), session as manager:
            began = time.perf_counter()
            asked = manager.add_requests(inputs=self._prompts, max_new_tokens=num_outputs)
            while len(found) < len(asked):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    found[result.request_id] = result.generated_tokens
                elif not manager.is_running() or time.perf_counter() - began > LONGEST_S:
                    break
            taken_s = time.perf_counter() - began
        tokens = [found.get(request, []) for request in asked]
        if [len(each) for each in tokens] != [num_outputs] * len(asked):
            raise RuntimeError(f"{sum(map(len, tokens))} of {num_outputs * len(asked)} tokens came")
        return taken_s, np.array(tokens, np.int32)

    def close(self) -> None:
        """Give its KV memory back."""
        self.model.destroy_cached_continuous_batching_manager()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _take(self, way: Way) -> None:
        self.close()
        self.way = way
        self.model.set_attn_implementation(way[0])


def ways(device: torch.device, num_rows: int, num_tokens: int) -> list[Way]:
    """Those that may be the fastest on a device, for so many sequences of so many tokens."""
    size = {"page_size": 256, "num_blocks": num_rows * (-(-num_tokens // 256) + 1), "allow_block_sharing": False}
    if device.type == "cpu":
        return [("sdpa", {**size, "max_batch_tokens": 256})]
    return [
        (attention, {**size, "max_batch_tokens": 2048, "use_cuda_graph": graphs, "use_async_batching": overlapped})
        for attention in ("flash_attention_2", "kernels-community/flash-attn2", "sdpa")
        for graphs in (True, False)
        for overlapped in (True, False)
    ]
