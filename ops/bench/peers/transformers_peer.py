"""transformers on a CPU: continuous batching over paged KV, tuned first, or one static batch of equal lengths.

`python -m ops.bench.peers.transformers_peer CHECKPOINT WORKLOAD continuous|static`. For each line on stdin it runs once
and prints {"seconds", "tokens"}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ops.bench.transformers_peer import Peer


class Static:
    """One batch, from its prompts to the last token."""

    def __init__(self, model: Any, prompts: list[list[int]]) -> None:
        self._model = model
        self._prompts = torch.tensor(prompts)

    def run(self, num_outputs: int) -> tuple[float, Any]:
        """Seconds and tokens [sequences, outputs]."""
        # -1 is no token, so that none ends a sequence.
        generation = transformers.GenerationConfig(
            max_new_tokens=num_outputs, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        began = time.perf_counter()
        with torch.no_grad():
            ids = self._model.generate(self._prompts, generation, attention_mask=torch.ones_like(self._prompts))
        return time.perf_counter() - began, ids[:, self._prompts.shape[1] :]


def main() -> None:
    """Answer each line of stdin with a run."""
    checkpoint, work, mode = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), sys.argv[3]
    torch.set_num_threads(work["threads"])
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, work["dtype"])).eval()
    peer: Peer | Static
    if mode == "continuous":
        peer = Peer(model, np.array(work["prompts"], np.int32), work["num_outputs"], torch.device("cpu"))
        peer.tune()
    else:
        peer = Static(model, work["prompts"])
    for _ in sys.stdin:
        seconds, tokens = peer.run(work["num_outputs"])
        print(json.dumps({"seconds": seconds, "tokens": tokens.tolist()}), flush=True)


if __name__ == "__main__":
    main()
