"""The tenants file while the gateway runs: whatever it has become, those who had keys still have them."""

import os
from pathlib import Path

import pytest

from policies.document.tenants import digest
from services.gateway.auth import Keys

TENANTS = f"version: 1\ntenants:\n  - {{name: acme, keys: [{{id: key_1, sha256: {digest('fl-known')}}}]}}\n"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "tenants.yaml"
    path.write_text(TENANTS)
    keys = Keys(path)
    keys.load()
    return keys


def is_known(keys: Keys) -> bool:
    tenant, _ = keys.find("Bearer fl-known")
    return tenant.name == "acme"


@pytest.mark.parametrize("became", ["nothing", "a FIFO", "a folder", "a loop", "half of it"])
def test_a_file_that_cannot_be_used_keeps_nobody_waiting_and_nobody_out(
    keys: Keys, tmp_path: Path, became: str
) -> None:
    path = tmp_path / "tenants.yaml"
    path.unlink()
    match became:
        case "a FIFO":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "a loop":
            path.symlink_to(path)
        case "half of it":
            path.write_text(TENANTS[: len(TENANTS) // 2])
    problem = keys.refresh()
    assert problem.startswith(f"{path}:")
    assert is_known(keys)
