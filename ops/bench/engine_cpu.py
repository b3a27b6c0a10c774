"""The engine on a CPU, against other engines on the same weights (`fairlead bench engine [--dtype float32|bfloat16]`).

A random Llama of 26.1 M parameters; 64 sequences of 128 prompt and 64 output tokens, greedy. Every engine is a process
of its own that runs the whole workload when it is asked to, so that rounds alternate and both are warm. llama.cpp takes
part where `ops/bench/peers/install.sh` has made its environment; it computes in float32 in any case. In float32 tokens
must be equal, or the run is void. Last, the same requests over HTTP through all four services.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from engine.interface import EngineSettings
from ops.bench import llama_26m
from ops.bench.deployed import start
from ops.bench.harness import Paired, Row, UnmeasurableError, at_least, at_most, interleave
from ops.bench.readers import Reader
from services.settings import REPOSITORY, Deployment, HttpSettings, child_environment

NUM_SEQUENCES, NUM_PROMPT, NUM_OUTPUTS = 64, 128, 64
SMOKE = (4, 20, 6)
SEED = 0
POLICY = REPOSITORY / "policies" / "fairlead.yaml"
LLAMA_CPP_PYTHON = REPOSITORY / ".venv-llama-cpp" / "bin" / "python"
LLAMA_CPP = REPOSITORY / "ops" / "bench" / "peers" / "llama_cpp_peer.py"
LLAMA_CPP_WAYS = ("fast", "exact")
"""As it comes, with float16 KV; with float32 KV and attention, whose tokens are the others'."""
LLAMA_CPP_GOALS = {"float32": (1.0, 1.25), "bfloat16": (1.5, 2.0)}
STREAM_S = 120.0
UNIT = "output tokens/s"


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure; with `arguments.smoke` few short sequences and no peers that take long, which measures nothing.

    Raises:
        UnmeasurableError: llama.cpp's environment is not there; it says how to make it.
        RuntimeError: tokens differ: a rate of wrong tokens is no rate.
    """
    if not LLAMA_CPP_PYTHON.exists() and not arguments.smoke:
        raise UnmeasurableError(f"{LLAMA_CPP_PYTHON} is not there: run ops/bench/peers/install.sh, which takes minutes")
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as folder, contextlib.ExitStack() as stack:
        return Bench(Path(folder), arguments, stack).rows()


class Engine:
    """A process that runs the workload for each line it is given, and says how long it took and what came out."""

    def __init__(self, command: list[str], environment: dict[str, str], stack: contextlib.ExitStack) -> None:
        self._process = stack.enter_context(
            subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        # Before the above waits for it and closes its pipes.
        stack.callback(self._process.terminate)
        self._command = command

    def run(self) -> dict[str, Any]:
        """What it says of one run.

        Raises:
            RuntimeError: it has ended.
        """
        assert self._process.stdin is not None  # noqa: S101  both were asked for
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Bench:
    """The engines on one workload."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        count, num_prompt, self._num_outputs = SMOKE if arguments.smoke else (NUM_SEQUENCES, NUM_PROMPT, NUM_OUTPUTS)
        self._folder, self._stack = folder, stack
        self._rounds, self._dtype, self._smoke = arguments.rounds, arguments.dtype, arguments.smoke
        self._checkpoint = llama_26m.write(folder / "llama-26m")
        generator = np.random.default_rng(SEED)
        self._prompts = generator.integers(0, llama_26m.VOCABULARY, (count, num_prompt)).tolist()
        self._workload = folder / "workload.json"
        work = {
            "prompts": self._prompts,
            "num_outputs": self._num_outputs,
            "dtype": self._dtype,
            "threads": len(os.sched_getaffinity(0)),
        }
        self._workload.write_text(json.dumps(work))
        # In the environment that the executor runs in.
        file = folder / "deployment.yaml"
        self._ours = self._engine([sys.executable, "-m", "ops.bench.peers.fairlead_peer"], child_environment(file))
        self._answer = self._ours.run()

    def rows(self) -> list[Row]:
        """All there is to compare."""
        rows = [self._against_transformers("static", must=1, stretch=1.5)]
        if not self._smoke:
            rows += [self._against_transformers("continuous", must=4, stretch=6), self._against_llama_cpp()]
        return [*rows, self._memory(), self._served()]

    def _engine(self, command: list[str], environment: dict[str, str], *more: str) -> Engine:
        return Engine([*command, str(self._checkpoint), str(self._workload), *more], environment, self._stack)

    def _rate(self, seconds: float) -> float:
        return len(self._prompts) * self._num_outputs / seconds

    def _round(self, engine: Engine, *, exact: bool) -> float:
        answer = engine.run()
        if exact and self._dtype == "float32" and answer["tokens"] != self._answer["tokens"]:
            different = sum(a != b for a, b in zip(answer["tokens"], self._answer["tokens"], strict=True))
            raise RuntimeError(f"this run is void: {different} of {len(self._prompts)} sequences have other tokens")
        return self._rate(answer["seconds"])

    def _paired(self, engine: Engine, *, exact: bool = True) -> Paired:
        return interleave(
            lambda: self._round(self._ours, exact=True), lambda: self._round(engine, exact=exact), rounds=self._rounds
        )

    def _against_transformers(self, mode: str, *, must: float, stretch: float) -> Row:
        peer = self._engine([sys.executable, "-m", "ops.bench.peers.transformers_peer"], dict(os.environ), mode)
        metric = f"engine_{self._dtype}_vs_transformers_{mode}"
        return at_least(metric, UNIT, self._paired(peer), must=must, stretch=stretch)

    def _against_llama_cpp(self) -> Row:
        """The faster of its two ways; the exact one says whether the tokens are right."""
        peers = {
            way: self._engine([str(LLAMA_CPP_PYTHON), str(LLAMA_CPP)], dict(os.environ), way) for way in LLAMA_CPP_WAYS
        }
        seconds = {}
        for way, peer in peers.items():
            self._round(peer, exact=way == "exact")
            seconds[way] = peer.run()["seconds"]
        way = min(seconds, key=lambda each: seconds[each])
        must, stretch = LLAMA_CPP_GOALS[self._dtype]
        paired = self._paired(peers[way], exact=way == "exact")
        return at_least(f"engine_{self._dtype}_vs_llama_cpp_{way}", UNIT, paired, must=must, stretch=stretch)

    def _memory(self) -> Row:
        """Peaks of a process do not fall, so one figure has no rounds to be taken in turn with."""
        answer = self._ours.run()
        grown, floor = answer["grown_bytes"] / 2**20, answer["floor_bytes"] / 2**20
        paired = Paired(grown, floor, grown / floor, (grown / floor,) * 2)
        return at_most(f"engine_{self._dtype}_memory_growth", "MiB", paired, must=1.5, stretch=1.2)

    def _served(self) -> Row:
        # The engine computes every prompt in every round, so the services must too.
        policy = self._folder / "policy.yaml"
        policy.write_text(POLICY.read_text().replace("kv: {", "kv: {share: none, "))
        deployment = Deployment(
            policy=str(policy),
            model=str(self._checkpoint),
            data=str(self._folder / "data"),
            http=HttpSettings(port=0),
            engine=EngineSettings(device="cpu", dtype=self._dtype),
        )
        port, key = start(deployment, self._folder, self._stack)
        paired = interleave(
            lambda: self._rate(uvloop.run(_stream(port, key, self._prompts, self._num_outputs))),
            lambda: self._round(self._ours, exact=True),
            rounds=self._rounds,
        )
        return at_least(f"served_{self._dtype}_vs_engine", UNIT, paired, must=0.85, stretch=0.95)


class UsageReader(Reader):
    """One stream; says how many tokens it was billed."""

    @property
    def num_tokens(self) -> int:
        """Output tokens, as the usage says."""
        lines = b"".join(self.pieces).split(b"\n")
        events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        usages = [event["usage"] for event in events if event.get("usage")]
        return int(usages[-1]["completion_tokens"]) if usages else 0


async def _stream(port: int, key: str, prompts: list[list[int]], num_outputs: int) -> float:
    """Seconds from the first request to the end of the last stream, all open at once.

    Raises:
        RuntimeError: a stream did not carry its tokens.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    readers = [UsageReader(_request(key, prompt, num_outputs)) for prompt in prompts]
    for reader in readers:
        await loop.create_connection(partial(_same, reader), "127.0.0.1", port)
    async with asyncio.timeout(STREAM_S):
        await asyncio.gather(*(reader.ended for reader in readers))
    took_s = loop.time() - began
    counts = [reader.num_tokens for reader in readers]
    if counts != [num_outputs] * len(prompts):
        said = b"".join(readers[0].pieces)[:500].decode(errors="replace")
        raise RuntimeError(f"this run is void: the streams carried {counts} tokens; the first said {said}")
    return took_s


def _same(reader: UsageReader) -> UsageReader:
    return reader


def _request(key: str, prompt: list[int], num_outputs: int) -> bytes:
    """A greedy completion of forced length, streamed."""
    body = json.dumps(
        {
            "model": "llama-26m",
            "prompt": prompt,
            "max_tokens": num_outputs,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()
