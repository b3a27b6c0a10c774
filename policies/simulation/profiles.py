"""Devices from published measurements: operator tables, budget sweeps, cost profiles.

Owns how these files are read and what is assumed where they are silent (attention, memory). Takes text and gives a
device; opens no file.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from policies.simulation.executor_model import (
    A10G_OVERHEAD,
    ADA_KV_TOKEN_S,
    BatchContext,
    Device,
    Layers,
    Table,
    Tile,
    a10g_device,
    ada_device,
)
from policies.simulation.parameters import Parameters

OPERATOR = "time_stats."
MEDIAN = ".median"
LEFT_OUT = "emb"
"""Runs once a step, not once a layer."""
BYTES = 2
"""Of a weight or a number in KV (fp16)."""
BLOCK_TOKENS = 16
USED_MEMORY = 0.9
"""Share of the memory that weights and KV may take."""


class ProfileError(Exception):
    """A file of measurements that cannot be used; the sentence names file and line."""


class Asked(NamedTuple):
    """A device asked for as KIND:FILE."""

    parameters: Parameters
    """What follows the question mark."""
    text: str
    file: str
    efficiency: float
    """Share of the memory bandwidth that KV reads reach."""


def read_layers(asked: Asked) -> Device:
    """Operator times of one layer by number of tokens, as CSV (`time_stats.OPERATOR.median` in ms, `num_tokens`).

    A step takes the layers times the sum of the operators' medians, on one worker, the embedding left out; a number of
    tokens between two profiled ones costs what the next larger does, because the kernels' tiles are padded (scheduling
    specification, 2.4). The file says nothing of attention: decodes read their KV at `bandwidth_gb_s`, prefills compute
    their pairs at `attention_tflops`. The pool is what `memory_gb` leaves beside the weights.

    Raises:
        ProfileError: it is no such file.
        ParameterError: a parameter is wrong.
    """
    parameters, file = asked.parameters, asked.file
    num_layers = parameters.whole("layers", 32)
    bandwidth_gb_s = parameters.number("bandwidth_gb_s", 2000.0)
    attention_tflops = parameters.number("attention_tflops", 150.0)
    memory_gb = parameters.number("memory_gb", 80.0)
    context_tokens = parameters.whole("context_tokens", 8192)
    parameters.finish()
    by_tokens: dict[int, list[float]] = defaultdict(list)
    shape: dict[str, int] = {}
    wanted = ("num_tokens", "num_tensor_parallel_workers", "n_head", "n_kv_head", "n_embd", "n_expanded_embd")
    for row in _rows(asked, (*wanted, "vocab_size")):
        operators = [
            name for name in row.fields if name.startswith(OPERATOR) and name.endswith(MEDIAN) and LEFT_OUT not in name
        ]
        if not operators:
            raise ProfileError(f"{row.place}: no column is called `{OPERATOR}OPERATOR{MEDIAN}`")
        if row.number("num_tensor_parallel_workers") == 1:
            by_tokens[int(row.number("num_tokens"))].append(sum(row.number(name) for name in operators))
            shape = {name: int(row.number(name)) for name in (*wanted[2:], "vocab_size")}
    if not by_tokens:
        raise ProfileError(f"{file}: no line is of one worker (num_tensor_parallel_workers 1)")
    kv_width = shape["n_embd"] // shape["n_head"] * shape["n_kv_head"]
    kv_bytes = 2 * num_layers * kv_width * BYTES
    width = shape["n_embd"]
    per_layer = width * (2 * width + 2 * kv_width) + 3 * width * shape["n_expanded_embd"]
    weight_bytes = BYTES * (num_layers * per_layer + 2 * shape["vocab_size"] * width)
    num_blocks = int((USED_MEMORY * memory_gb * 1e9 - weight_bytes) / (BLOCK_TOKENS * kv_bytes))
    if num_blocks < 1:
        raise ProfileError(
            f"{file}: {memory_gb:g} GB do not hold weights of {weight_bytes / 1e9:.1f} GB and KV: raise memory_gb"
        )
    tokens = tuple(sorted(by_tokens))
    layers = Layers(
        tokens=tokens,
        seconds=tuple(num_layers * 1e-3 * median(by_tokens[count]) for count in tokens),
        kv_token_s=kv_bytes / (bandwidth_gb_s * 1e9 * asked.efficiency),
        pair_s=4 * width * num_layers / (attention_tflops * 1e12),
    )
    description = f"{file}: {num_layers} layers, {bandwidth_gb_s:g} GB/s and {attention_tflops:g} TFLOP/s assumed"
    return Device(description, num_blocks, BLOCK_TOKENS, context_tokens, layers)


def read_budget_sweep(asked: Asked) -> Device:
    """Prompts of equal length computed one at a time under several token budgets, as CSV (`chunk,ttft_ms,batch_ms`).

    A chunk takes TTFT over the number of chunks, the short last one taken off at the time of its own length; a step of
    one token is what is missing in the mean step, which the file has over the chunks and one decode (scheduling
    specification, 2.3). Past the last budget the slope is that of the last doubling. KV, pool and context are those of
    the device the published sweep is of, Mistral-7B on an RTX 6000 Ada.

    Raises:
        ProfileError: it is no such file.
        ParameterError: a parameter is wrong.
    """
    prompt_tokens = asked.parameters.whole("prompt_tokens", 2048)
    asked.parameters.finish()
    sweep = {
        int(row.number("chunk")): (row.number("ttft_ms"), row.number("batch_ms"))
        for row in _rows(asked, ("chunk", "ttft_ms", "batch_ms"))
    }
    seconds: dict[int, float] = {}
    decodes = []
    for chunk, (ttft_ms, batch_ms) in sorted(sweep.items()):
        num_whole, rest = divmod(prompt_tokens, chunk)
        if not num_whole:
            raise ProfileError(f"{asked.file}: a chunk of {chunk} tokens is longer than the prompt of {prompt_tokens}")
        if rest and rest not in seconds:
            raise ProfileError(
                f"{asked.file}: a prompt of {prompt_tokens} tokens ends in a chunk of {rest} under the budget {chunk};"
                f" there is no line for {rest}"
            )
        seconds[chunk] = (ttft_ms / 1e3 - (seconds[rest] if rest else 0.0)) / num_whole
        num_chunks = num_whole + bool(rest)
        decodes.append(batch_ms / 1e3 * (num_chunks + 1) - ttft_ms / 1e3)
    if len(seconds) < 2:
        raise ProfileError(f"{asked.file}: a table needs two budgets or more")
    tokens = tuple(sorted(seconds))
    first = {1: min(median(decodes), seconds[tokens[0]])} if tokens[0] > 1 else {}
    before = max(count for count in tokens if count <= max(tokens[-1] // 2, tokens[0]))
    slope = (seconds[tokens[-1]] - seconds[before]) / (tokens[-1] - before)
    points = {**first, **{count: seconds[count] for count in tokens}}
    table = Table(tuple(points), tuple(points.values()), max(0.0, slope), ADA_KV_TOKEN_S / asked.efficiency)
    return ada_device(table)._replace(description=f"{asked.file}, KV of Mistral-7B on an RTX 6000 Ada")


def read_cost_profile(asked: Asked) -> Device:
    """Times of whole batches, as JSON: `{prompt: {output: [batch, prefill s, decode s]}}`, seconds per request.

    Decode steps are fitted as `c0 + c1 * batch + c2 * context` with weights one over the time, prefills in proportion
    to the prompt (fairness specification, 12.3); engine overhead and the fixed part of a prefill are its constants.
    Pool and context are those of the device the published profile is of, Llama-2-7B on an A10G.

    Raises:
        ProfileError: it is no such file.
        ParameterError: a parameter is wrong.
    """
    overhead = asked.parameters.number("overhead", A10G_OVERHEAD)
    asked.parameters.finish()
    decodes, prefills = [], []
    for prompt, output, batch, prefill_s, decode_s in _cost_rows(asked):
        prefills.append((prompt, prefill_s))
        if output > 1:
            step_s = decode_s * batch / output
            decodes.append((1.0 / step_s, batch / step_s, batch * (prompt + output / 2) / step_s))
    if len(decodes) < 3:
        raise ProfileError(f"{asked.file}: fitting decode steps needs three entries with more than one output token")
    (fixed_s, sequence_s, context_s), *_ = np.linalg.lstsq(np.array(decodes), np.ones(len(decodes)), rcond=None)
    prompts, seconds = np.array(prefills).T
    token_s = float(prompts @ seconds / (prompts @ prompts))
    step_time = BatchContext(
        decode_fixed_s=max(0.0, overhead * float(fixed_s)),
        decode_s=max(0.0, overhead * float(sequence_s)),
        context_token_s=max(0.0, overhead * float(context_s)) / asked.efficiency,
        prefill_fixed_s=0.010,
        prefill_token_s=overhead * token_s,
    )
    return a10g_device(step_time)._replace(description=f"{asked.file}, pool of Llama-2-7B on an A10G")


def tile_device(parameters: Parameters) -> Device:
    """RAD's step time (equation 7): whole tiles through the linear layers, tokens through the rest, and attention.

    Raises:
        ParameterError: a parameter is wrong.
    """
    tile = Tile(
        tile_tokens=parameters.whole("tile_tokens", 128),
        column_s=parameters.number("column_us", 4000.0) / 1e6,
        token_s=parameters.number("token_us", 5.0) / 1e6,
        pair_s=parameters.number("pair_ns", 3.5) / 1e9,
        context_token_s=parameters.number("context_ns", 65.0) / 1e9,
    )
    num_blocks = parameters.whole("num_blocks", 14_733)
    context_tokens = parameters.whole("context_tokens", 8192)
    parameters.finish()
    description = f"tiles of {tile.tile_tokens} tokens with attention (RAD, equation 7)"
    return Device(description, num_blocks, BLOCK_TOKENS, context_tokens, tile)


READERS: dict[str, Callable[[Asked], Device]] = {
    "layers": read_layers,
    "sweep": read_budget_sweep,
    "costs": read_cost_profile,
}
"""By kind: what stands before the colon."""


class _Row(NamedTuple):
    fields: Mapping[str, str]
    place: str

    def number(self, name: str) -> float:
        """A field as a number above 0.

        Raises:
            ProfileError: it is none.
        """
        try:
            value = float(self.fields[name])
        except ValueError:
            value = 0.0
        if not 0.0 < value < float("inf"):
            raise ProfileError(f"{self.place}: {name} is `{self.fields[name]}`; it must be a number above 0")
        return value


def _rows(asked: Asked, wanted: tuple[str, ...]) -> Iterator[_Row]:
    lines = csv.reader(asked.text.splitlines())
    header = [name.strip() for name in next(lines, [])]
    missing = [name for name in wanted if name not in header]
    if missing:
        raise ProfileError(f"{asked.file}:1: there is no column `{missing[0]}`; needed are {', '.join(wanted)}")
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        if len(line) != len(header):
            raise ProfileError(f"{asked.file}:{number}: {len(line)} fields; the header has {len(header)}")
        yield _Row(dict(zip(header, line, strict=True)), f"{asked.file}:{number}")


def _cost_rows(asked: Asked) -> Iterator[tuple[int, int, float, float, float]]:
    form = "{prompt tokens: {output tokens: [batch, prefill seconds, decode seconds]}}"
    try:
        by_prompt: dict[str, dict[str, Any]] = json.loads(asked.text)
        for prompt, by_output in by_prompt.items():
            for output, (batch, prefill_s, decode_s) in by_output.items():
                row = (int(prompt), int(output), float(batch), float(prefill_s), float(decode_s))
                if min(row) <= 0:
                    raise ProfileError(f"{asked.file}: prompt {prompt}, output {output}: every number must be above 0")
                yield row
    except json.JSONDecodeError as error:
        raise ProfileError(f"{asked.file}:{error.lineno}: is no JSON: {error.msg}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ProfileError(f"{asked.file}: is no cost profile, which has the form {form}") from error
