from typing import Any

import msgspec
import pytest

from services.resettling import FIXED, changes
from services.settings import Deployment, SettingsError

BEFORE = Deployment().resolved()


def edited(section: str, **values: Any) -> Deployment:
    new = msgspec.structs.replace(getattr(BEFORE, section), **values)
    return msgspec.structs.replace(BEFORE, **{section: new})


def test_what_is_the_same_is_no_change() -> None:
    assert changes(BEFORE, Deployment().resolved()) == []


def test_changes_are_said_by_key_and_figures_with_their_values() -> None:
    after = msgspec.structs.replace(edited("http", drain_s=2.5, max_prompts=7), check=True)
    assert [str(change) for change in changes(BEFORE, after)] == [
        "check: false → true",
        "http.max_prompts: 64 → 7",
        "http.drain_s: 30 → 2.5",
    ]


def test_what_may_be_a_secret_is_not_repeated() -> None:
    (change,) = changes(BEFORE, edited("telemetry", headers={"authorization": "hunter2"}))
    assert str(change) == "telemetry.headers"


@pytest.mark.parametrize(
    "after",
    [
        edited("http", gateways=2),
        edited("http", port=9000, drain_s=1.0),
        edited("streams", admission="unix:///a"),
        msgspec.structs.replace(BEFORE, store="redis://:hunter2@cache/0"),
        msgspec.structs.replace(BEFORE, model="/models/other"),
    ],
)
def test_what_all_processes_must_have_alike_is_refused_by_name(after: Deployment) -> None:
    with pytest.raises(SettingsError, match=r"this cannot change while services run; nothing was restarted") as refused:
        changes(BEFORE, after)
    assert any(str(refused.value).startswith(key) for key in FIXED)
    assert "hunter2" not in str(refused.value)
    assert "drain_s" not in str(refused.value)


def test_every_key_that_is_fixed_is_one_of_a_deployment() -> None:
    document: Any = msgspec.to_builtins(BEFORE)
    for key in FIXED:
        value = document
        for part in key.split("."):
            value = value[part]


def test_another_policy_file_needs_all_who_watch_it_to_be_restarted() -> None:
    after = msgspec.structs.replace(BEFORE, policy="/elsewhere.yaml")
    assert [change.key for change in changes(BEFORE, after, ["gateway", "scheduler"])] == ["policy"]
    with pytest.raises(SettingsError, match=r"^policy: admission would go on .*; nothing was restarted\. Restart adm"):
        changes(BEFORE, after, ["gateway", "admission"])
