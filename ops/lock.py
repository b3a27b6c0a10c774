"""`python3 ops/lock.py [--upgrade]`: writes ops/constraints.txt, what pyproject.toml asks for by version and hash.

The file has four parts, so that one lock serves an image without torch, a machine without a GPU and a developer:
`base`, `engine`, `cuda` (what torch's CUDA build needs beside it) and `test`. `ops/install.sh` installs parts of it.
Versions that the file has stay unless --upgrade is given. The resolver is uv, in an environment that is thrown away;
this script needs nothing but Python.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "ops" / "constraints.txt"
PARTS = ("base", "engine", "cuda", "test")
RESOLVER = "uv==0.13.9"
OLDEST_PYTHON = "3.11"
CUDA_ONLY = re.compile(r"nvidia-.*|cuda-.*|triton")
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>[^\\]+?))?(?: \\)?")
HASH = re.compile(r"    --hash=sha256:(?P<digest>[0-9a-f]{64})(?: \\)?")
TORCH_ON_CPU = {
    "2.13.0": (
        "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",  # cp311 aarch64
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",  # cp311 x86_64
        "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",  # cp312 aarch64
        "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",  # cp312 x86_64
        "0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",  # cp313 aarch64
        "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",  # cp313 x86_64
        "ca021f9eb2f8345c83fa03e3a04587308afb8df71bd472670b3ece00df58621c",  # cp314 aarch64
        "d20fa53ee744502fa4c69818a720b05ca0d37abd055d4f6e66cae155114bc691",  # cp314 x86_64
    )
}
"""Of PyTorch's own index, which the resolver does not ask: the wheels `torch-VERSION+cpu` for Linux, by version."""


class Pin(NamedTuple):
    """One requirement of the lock."""

    name: str
    version: str
    marker: str
    """Where it is needed; empty: everywhere."""
    hashes: tuple[str, ...]

    def text(self) -> str:
        """As pip reads it."""
        head = f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")
        return " \\\n".join([head, *(f"    --hash=sha256:{digest}" for digest in self.hashes)]) + "\n"


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(text: str) -> list[Pin]:
    """The requirements of a file in pip's form, one head and its hashes each.

    Raises:
        ValueError: a line that is neither.
    """
    pins: list[Pin] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if found := PIN.fullmatch(line):
            pins.append(Pin(normalized(found["name"]), found["version"], found["marker"] or "", ()))
        elif pins and (found := HASH.fullmatch(line)):
            pins[-1] = pins[-1]._replace(hashes=(*pins[-1].hashes, found["digest"]))
        else:
            raise ValueError(f"line {number}: {line!r} is neither `name==version` nor a hash")
    return pins


def read_lock(text: str) -> dict[str, list[Pin]]:
    """The lock's parts by name."""
    _, *parts = re.split(r"^# part (\w+)$", text, flags=re.MULTILINE)
    return {name: read_pins(part) for name, part in zip(parts[::2], parts[1::2], strict=True)}


def main() -> int:
    """Write the lock; 2 and a sentence if it cannot be."""
    parser = argparse.ArgumentParser(description="Write ops/constraints.txt: versions and hashes of all dependencies.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of those it has")
    args = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        venv.create(work / "uv", with_pip=True)
        subprocess.run([work / "uv/bin/python", "-m", "pip", "install", "--quiet", RESOLVER], check=True)
        (work / "build.in").write_text("\n".join(project["build-system"]["requires"]))
        pins = {pin.name: pin for pin in _resolve(work, "all", ["engine", "test"], upgrade=args.upgrade)}
        names = {
            "base": [pin.name for pin in _resolve(work, "base", [])],
            "engine": [pin.name for pin in _resolve(work, "engine", ["engine"])],
            "test": list(pins),
        }
    torch = pins["torch"]
    if torch.version not in TORCH_ON_CPU:
        print(f"ops/lock.py: TORCH_ON_CPU has no hashes of torch {torch.version}+cpu", file=sys.stderr)
        return 2
    pins["torch"] = torch._replace(hashes=(*torch.hashes, *TORCH_ON_CPU[torch.version]))
    LOCK.write_text(_text(pins, _parts(names, project)))
    return 0


def _resolve(work: Path, name: str, extras: list[str], *, upgrade: bool = False) -> list[Pin]:
    out = work / f"{name}.txt"
    if name != "all":
        out.write_text((work / "all.txt").read_text())  # a subset has the versions of the whole
    elif LOCK.exists() and not upgrade:
        out.write_text(LOCK.read_text())
    chosen = [option for extra in extras for option in ("--extra", extra)]
    fixed = ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes", "--no-annotate", "--no-header"]
    command = [work / "uv/bin/uv", "pip", "compile", "--quiet", *fixed, *chosen, "--output-file", out]
    subprocess.run([*command, ROOT / "pyproject.toml", work / "build.in"], check=True, stdout=subprocess.DEVNULL)
    return read_pins(out.read_text())


def _parts(names: dict[str, list[str]], project: dict[str, dict[str, dict[str, list[str]]]]) -> dict[str, list[str]]:
    """Which part has which names. What the tests ask for by name is theirs, though torch's CUDA build needs it too."""
    asked = [normalized(each) for each in project["project"]["optional-dependencies"]["test"]]
    base = names["base"]
    beyond = [name for name in names["engine"] if name not in base]
    cuda = [name for name in beyond if CUDA_ONLY.fullmatch(name)]
    engine = [name for name in beyond if name not in cuda]
    test = [name for name in names["test"] if name not in base + engine + cuda or name in asked]
    return dict(zip(PARTS, (base, engine, cuda, test), strict=True))


def _text(pins: dict[str, Pin], parts: dict[str, list[str]]) -> str:
    written = ["# Written by `python3 ops/lock.py`. Installed by ops/install.sh, part by part.\n"]
    for part, names in parts.items():
        written += [f"\n# part {part}\n", *(pins[name].text() for name in sorted(names))]
    return "".join(written)


if __name__ == "__main__":
    sys.exit(main())
