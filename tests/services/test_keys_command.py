import json
from pathlib import Path

import msgspec
import pytest

from policies.document.tenants import KeyRing, load_tenants
from services.cli import main
from services.keys import _write, ensure_admin_key, ensure_demo_key
from services.settings import Deployment

Run = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_deployment_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAIRLEAD_DEPLOYMENT", raising=False)


def keys(folder: Path, *arguments: str) -> int:
    return main(["keys", *arguments, "--data-dir", str(folder)])


def ring(folder: Path) -> KeyRing:
    return KeyRing(load_tenants((folder / "tenants.yaml").read_bytes()))


def test_an_added_key_is_shown_once_and_opens_its_tenant(tmp_path: Path, capsys: Run) -> None:
    arguments = ("--tenant", "acme", "--tier", "paid", "--weight", "2", "--project", "web")
    assert keys(tmp_path, "add", *arguments) == 0
    out, err = capsys.readouterr()
    secret = out.strip()
    assert secret.startswith("fl-")
    assert len(secret) == 46
    assert "tenant acme (tier paid, weight 2, project web); it is not shown again" in err
    found = ring(tmp_path).find(secret)
    assert found is not None
    assert (found[0].name, found[0].tier, found[0].weight, found[1].project) == ("acme", "paid", 2.0, "web")
    assert secret not in (tmp_path / "tenants.yaml").read_text()
    assert (tmp_path / "tenants.yaml").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["tenants.yaml"]


def test_a_second_key_keeps_the_tenant_and_the_first_key(tmp_path: Path, capsys: Run) -> None:
    keys(tmp_path, "add", "--tenant", "acme", "--tier", "paid")
    first = capsys.readouterr().out.strip()
    keys(tmp_path, "add", "--tenant", "other")
    keys(tmp_path, "add", "--tenant", "acme", "--weight", "3")
    third = capsys.readouterr().out.split()[-1]
    for secret in (first, third):
        found = ring(tmp_path).find(secret)
        assert found is not None
        assert (found[0].name, found[0].tier, found[0].weight) == ("acme", "paid", 3.0)


def test_a_listing_shows_ids_and_states_but_no_digest(tmp_path: Path, capsys: Run) -> None:
    keys(tmp_path, "add", "--tenant", "acme")
    capsys.readouterr()
    assert keys(tmp_path, "list", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "id": row["id"],
        "tenant": "acme",
        "tier": "free",
        "project": "default",
        "scope": "inference",
        "revoked": False,
    }
    keys(tmp_path, "revoke", row["id"])
    capsys.readouterr()
    keys(tmp_path, "list")
    assert capsys.readouterr().out.split() == [
        "ID", "TENANT", "TIER", "PROJECT", "SCOPE", "STATE",
        row["id"], "acme", "free", "default", "inference", "revoked",
    ]  # fmt: skip


def test_a_revoked_key_opens_nothing(tmp_path: Path, capsys: Run) -> None:
    keys(tmp_path, "add", "--tenant", "acme")
    out, err = capsys.readouterr()
    assert keys(tmp_path, "revoke", err.split()[1]) == 0
    assert ring(tmp_path).find(out.strip()) is None
    assert ring(tmp_path).is_revoked(out.strip())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("add", "--tenant", "Acme"),
            'tenants[Acme].name: the text "Acme" does not fit; allowed: a name of at most 64',
        ),
        (
            ("add", "--tenant", "a", "--weight", "-1"),
            "tenants[a].weight: -1.0 is out of bounds; allowed: a number, above",
        ),
        (("add", "--tenant", "a", "--weight", "nan"), "tenants[a].weight: .nan is out of bounds"),
        (("revoke", "nope"), 'there is no key "nope" in'),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    tmp_path: Path, capsys: Run, arguments: tuple[str, ...], message: str
) -> None:
    assert keys(tmp_path, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_revoking_twice_is_an_error(tmp_path: Path, capsys: Run) -> None:
    keys(tmp_path, "add", "--tenant", "acme")
    key = capsys.readouterr().err.split()[1]
    assert keys(tmp_path, "revoke", key) == 0
    assert keys(tmp_path, "revoke", key) == 2
    assert f'the key "{key}" is already revoked' in capsys.readouterr().err


def test_a_broken_tenants_file_is_never_overwritten(tmp_path: Path, capsys: Run) -> None:
    (tmp_path / "tenants.yaml").write_text("tenants: 5\n")
    assert keys(tmp_path, "add", "--tenant", "acme") == 2
    assert "tenants.yaml:1:10: tenants: the number 5 does not fit" in capsys.readouterr().err
    assert (tmp_path / "tenants.yaml").read_text() == "tenants: 5\n"


def test_a_data_folder_that_is_a_file_is_one_clear_line(tmp_path: Path, capsys: Run) -> None:
    (tmp_path / "data").write_text("")
    assert keys(tmp_path / "data", "add", "--tenant", "acme") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_text_that_looks_like_a_number_survives_the_file(tmp_path: Path, capsys: Run) -> None:
    assert keys(tmp_path, "add", "--tenant", "acme", "--tier", "1e3") == 0
    capsys.readouterr()
    tenants = load_tenants((tmp_path / "tenants.yaml").read_bytes())
    assert tenants.tenants[0].tier == "1e3"
    key = msgspec.structs.replace(tenants.tenants[0].keys[0], sha256="1" * 31 + "e" + "2" * 32)
    digits = msgspec.structs.replace(tenants, tenants=(msgspec.structs.replace(tenants.tenants[0], keys=(key,)),))
    _write(tmp_path / "tenants.yaml", digits)
    assert load_tenants((tmp_path / "tenants.yaml").read_bytes()) == digits


def test_the_demo_key_is_made_once_and_stays_the_same(tmp_path: Path) -> None:
    deployment = Deployment(data=str(tmp_path)).resolved()
    secret = ensure_demo_key(deployment)
    found = ring(tmp_path).find(secret)
    assert found is not None
    assert (found[0].name, found[0].tier) == ("demo", "paid")
    assert ensure_demo_key(deployment) == secret
    assert (tmp_path / "demo.key").stat().st_mode & 0o777 == 0o600


def test_there_is_no_demo_key_where_an_operator_made_the_tenants_file(tmp_path: Path, capsys: Run) -> None:
    keys(tmp_path, "add", "--tenant", "acme")
    before = (tmp_path / "tenants.yaml").read_text()
    assert ensure_demo_key(Deployment(data=str(tmp_path)).resolved()) == ""
    assert (tmp_path / "tenants.yaml").read_text() == before


def test_a_revoked_demo_key_is_not_printed_again(tmp_path: Path, capsys: Run) -> None:
    deployment = Deployment(data=str(tmp_path)).resolved()
    secret = ensure_demo_key(deployment)
    found = ring(tmp_path).find(secret)
    assert found is not None
    keys(tmp_path, "revoke", found[1].id)
    assert ensure_demo_key(deployment) == ""


def test_an_admin_key_says_what_it_is_and_needs_no_tenant(tmp_path: Path, capsys: Run) -> None:
    assert keys(tmp_path, "add", "--admin") == 0
    out, err = capsys.readouterr()
    assert out.startswith("fl-admin-")
    assert "of tenant operators" in err
    assert "for the console" in err
    found = ring(tmp_path).find(out.strip())
    assert found is not None
    assert (found[0].name, found[1].scope) == ("operators", "admin")
    keys(tmp_path, "add", "--admin", "--tenant", "acme")
    found = ring(tmp_path).find(capsys.readouterr().out.strip())
    assert found is not None
    assert (found[0].name, found[1].scope) == ("acme", "admin")


def test_a_key_of_nobody_is_not_made(tmp_path: Path, capsys: Run) -> None:
    assert keys(tmp_path, "add") == 2
    assert "whose key? add --tenant NAME" in capsys.readouterr().err


def test_the_admin_key_is_told_when_it_is_made_and_kept_in_a_file(tmp_path: Path, capsys: Run) -> None:
    deployment = Deployment(data=str(tmp_path)).resolved()
    demo = ensure_demo_key(deployment)
    secret, file = ensure_admin_key(deployment)
    assert file == tmp_path / "admin.key"
    assert file.read_text().strip() == secret
    assert file.stat().st_mode & 0o777 == 0o600
    assert ensure_admin_key(deployment) == ("", file)
    assert ensure_demo_key(deployment) == demo
    found = ring(tmp_path).find(secret)
    assert found is not None
    keys(tmp_path, "revoke", found[1].id)
    assert ensure_admin_key(deployment) == ("", None)
