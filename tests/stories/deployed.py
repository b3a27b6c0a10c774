"""A whole deployment for the stories: started by the command a user types, stopped as a user stops it."""

import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_S = 90


# Below those that the kernel gives to connections, which may take one between the look and the start; and apart, since
# further gateways have their metrics ten ports higher.
PORTS = iter(random.SystemRandom().sample(range(20_000, 32_000, 20), 600))


def free_port() -> int:
    """Never the same one twice."""
    for port in PORTS:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def fairlead(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=check
    )


class House:
    """The four services on a data folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.policy = folder / "policy.yaml"
        self.policy.write_bytes((ROOT / "policies" / "fairlead.yaml").read_bytes())
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> "House":
        command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(self.data), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--policy", str(self.policy), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ready = threading.Event()
        threading.Thread(target=self._read, args=(ready,), daemon=True).start()
        assert ready.wait(START_S), self.text
        assert self.process.poll() is None, self.text
        return self

    def _read(self, ready: threading.Event) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.output.append(line)
                if "curl " in line:
                    ready.set()
        ready.set()

    @property
    def text(self) -> str:
        return "".join(self.output)

    @property
    def run_folder(self) -> Path:
        (deployment,) = [*self.data.glob("run/deployment.json"), *self._short_run_folders()]
        return deployment.parent

    def _short_run_folders(self) -> list[Path]:
        # A data folder whose path is too long for a Unix socket has its run folder elsewhere.
        found = Path(tempfile.gettempdir()).glob("fairlead-*/deployment.json")
        return [file for file in found if json.loads(file.read_text())["data"] == str(self.data)]

    @property
    def key(self) -> str:
        return re.search(r"\bfl-[\w-]+", self.text)[0]  # type: ignore[index]

    def add_key(self, tenant: str, tier: str) -> str:
        added = fairlead("keys", "add", "--data-dir", str(self.data), "--tenant", tenant, "--tier", tier)
        return re.search(r"\bfl-[\w-]+", added.stdout)[0]  # type: ignore[index]

    def get(self, path: str, key: str = "") -> dict[str, Any]:
        headers = {"authorization": f"Bearer {key or self.key}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=10) as answer:
            document: dict[str, Any] = json.load(answer)
        return document

    def pid(self, service: str) -> int | None:
        """The process of a service that is ready."""
        try:
            return int((self.run_folder / f"{service}.ready").read_text().split()[0])
        except FileNotFoundError:
            return None

    def wait_until(self, path: str, holds: Callable[[dict[str, Any]], bool], limit_s: float = 20) -> dict[str, Any]:
        """Ask until the answer is as awaited; what is awaited happens in other processes, so it can only be polled."""
        deadline = time.monotonic() + limit_s
        while not holds(answer := self.get(path)):
            assert time.monotonic() < deadline, f"{path} still answers {answer}"
            time.sleep(0.02)
        return answer

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)
