"""Log-probabilities of what was sampled and of the likeliest tokens, under the model's own distribution."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.interface import MAX_LOGPROBS, Logprobs
from engine.transfer import on_device


class RawDistributions:
    """Of the rows that asked, taken before the logits are changed and kept until their tokens are drawn."""

    def __init__(self, logits: Tensor, num_entries: NDArray[np.int8]) -> None:
        """`num_entries`: for each row of the logits; 0 where none are asked for, at least one row asks."""
        self.num_entries = num_entries
        where = np.flatnonzero(num_entries)
        self._where = on_device(where, logits.device)
        self._logprobs = logits[self._where].float().log_softmax(-1)
        # Always as many as can be asked for: among equal logits, more or fewer might mean others.
        top = self._logprobs.topk(min(MAX_LOGPROBS, logits.shape[-1]), -1)
        width = int(num_entries.max()) - 1
        self._top_values, self._top_tokens = top.values[:, :width], top.indices[:, :width]

    def entries(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of the tokens sampled for all rows: ids and values [asking rows, most entries], the sampled token first."""
        sampled = tokens[self._where].unsqueeze(-1)
        values = self._logprobs.gather(-1, sampled)
        return torch.cat((sampled, self._top_tokens), -1), torch.cat((values, self._top_values), -1)


def flat(num_entries: NDArray[np.int8], tokens: Tensor, values: Tensor) -> Logprobs:
    """Each row's own number of entries, of tensors on the host as `RawDistributions.entries` gives them."""
    asked = num_entries[num_entries > 0]
    kept = np.arange(tokens.shape[-1]) < asked[:, None]
    return Logprobs(num_entries, tokens.numpy()[kept].astype(np.int32), values.numpy()[kept])
