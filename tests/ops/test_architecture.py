"""The rules of the house, checked on the source itself."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("policies", "services", "engine", "ops", "tests")
SERVICES = ("gateway", "admission", "scheduler", "executor")
MAX_LINES = 400


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offenders(paths: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if any(name == module or name.startswith(f"{module}.") for module in forbidden)
    ]


def test_policies_and_engine_import_neither_each_other_nor_services() -> None:
    assert offenders(sources("policies"), ("engine", "services", "ops")) == []
    assert offenders(sources("engine"), ("policies", "services", "ops")) == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_does_not_import_its_siblings(service: str) -> None:
    siblings = tuple(f"services.{other}" for other in SERVICES if other != service)
    assert offenders(sources(f"services/{service}"), siblings) == []


def test_policies_are_pure() -> None:
    impure = ("time", "asyncio", "socket", "logging", "torch", "random", "os", "threading", "subprocess", "datetime")
    pure = [path for path in sources("policies") if path.name != "report.py" and "experiments" not in path.parts]
    assert offenders(pure, impure) == []


def test_libraries_stay_in_their_one_home() -> None:
    telemetry, attention = ROOT / "services" / "telemetry", ROOT / "engine" / "attention"
    outside = [path for path in sources("policies", "services", "engine") if telemetry not in path.parents]
    assert offenders(outside, ("opentelemetry",)) == []
    outside = [path for path in sources("policies", "services", "engine") if attention not in path.parents]
    assert offenders(outside, ("xformers",)) == []
    outside = [path for path in sources("policies", "services", "engine", "ops") if path.name != "report_html.py"]
    assert offenders(outside, ("plotly",)) == []
    control = [path for path in sources("services") if "executor" not in path.parts]
    assert offenders(control, ("torch",)) == []


def test_only_settings_reads_the_environment() -> None:
    readers = [
        str(path.relative_to(ROOT))
        for path in sources("policies", "services", "engine")
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text())
    ]
    assert readers == ["services/settings.py"]


def test_no_file_passes_400_lines() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(*PACKAGES)}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}


def test_the_readme_stays_under_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_every_dependency_says_why() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    names = [*project["dependencies"], *(n for extra in project["optional-dependencies"].values() for n in extra)]
    assert [name for name in names if not re.search(rf'"{re.escape(name)}",\s+# \w+', text)] == []
