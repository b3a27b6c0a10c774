"""`fairlead fairness` and questions of gateways, against an admission service."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace

from engine.interface import Sampling
from policies.events import CapacityChanged, TokensProduced
from services import asking, fairness
from services.admission import reports
from services.admission.service import AdmissionService
from services.asking import ask
from services.policy_documents import CommandError
from services.settings import Deployment
from services.wire import Submit

POLICY = Path(__file__).resolve().parents[3] / "policies" / "fairlead.yaml"


def deployment(folder: Path) -> Deployment:
    found = Deployment(data=str(folder), policy=str(POLICY)).resolved()
    Path(found.streams.secret_file).write_bytes(b"s" * 32)
    return found


@pytest.fixture
async def admission(tmp_path: Path) -> AsyncIterator[AdmissionService]:
    service = AdmissionService(replace(deployment(tmp_path), check=True))
    await service.start()
    yield service
    await service.stop()


def busy(service: AdmissionService) -> None:
    """Two tenants, of which one waits."""
    service._pump.handle(CapacityChanged(1, 100, 4096))
    service._submitted(submit(8, "acme", 250, 40))
    service._pump.handle(TokensProduced([8]))
    service._submitted(submit(16, "globex", 20, 30))


class SecondsPass:
    """One between any two looks at the clock."""

    def __init__(self) -> None:
        self._now = count()

    def monotonic(self) -> float:
        return float(next(self._now))


def submit(request: int, tenant: str, prompt_tokens: int, max_output_tokens: int) -> Submit:
    sampling = [Sampling(seed=request)]
    return Submit(request, tenant, "free", bytes(4 * prompt_tokens), max_output_tokens, sampling)


async def test_an_operator_is_told_of_every_tenant_and_of_one_if_asked(
    admission: AdmissionService, tmp_path: Path
) -> None:
    busy(admission)
    report = await asyncio.to_thread(ask, deployment(tmp_path), "fairness")
    assert report["kind"] == "vtc"
    rows = {row["tenant"]: row for row in report["tenants"]}
    assert (rows["acme"]["output_tokens"], rows["acme"]["num_in_flight"]) == (1, 1)
    assert rows["globex"]["num_waiting"] == 1
    report = await asyncio.to_thread(ask, deployment(tmp_path), "fairness", "globex")
    assert [row["tenant"] for row in report["tenants"]] == ["globex"]


async def test_a_report_that_takes_long_is_told_again_instead_of_made_again(
    admission: AdmissionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "time", SecondsPass())
    made = []
    figures = admission._reports._meter.figures
    monkeypatch.setattr(admission._reports._meter, "figures", lambda now: made.append(now) or figures(now))
    busy(admission)
    for tenant in ("acme", "globex", "acme", "", ""):
        admission._reports._fairness(tenant)
    assert len(made) == 1
    for _ in range(30):
        admission._reports._fairness("acme")
    assert len(made) == 2
    admission._pump.apply(2, POLICY.read_bytes().replace(b"name: fairlead", b"name: next"))
    assert json.loads(admission._reports._fairness("acme"))["policy"] == "next"


async def test_the_report_of_all_is_never_that_of_the_policy_before(
    admission: AdmissionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("services.admission.reports.time.monotonic", lambda: float(next(clock)))
    busy(admission)
    assert admission._reports._fairness("") is admission._reports._fairness("")
    admission._pump.apply(2, POLICY.read_bytes().replace(b"name: fairlead", b"name: next"))
    assert json.loads(admission._reports._fairness(""))["policy"] == "next"


async def test_usage_is_answered_from_the_store(admission: AdmissionService, tmp_path: Path) -> None:
    assert await asyncio.to_thread(ask, deployment(tmp_path), "usage", "acme", 2) == {"usage": []}
    assert admission.name == "admission"


async def test_a_question_about_something_else_is_answered_with_what_is_wrong(
    admission: AdmissionService, tmp_path: Path
) -> None:
    with pytest.raises(CommandError, match='there is no report about "weather"'):
        await asyncio.to_thread(ask, deployment(tmp_path), "weather")
    assert admission.name == "admission"


async def test_the_command_prints_a_table_or_json(
    admission: AdmissionService, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(admission)
    monkeypatch.setattr("services.policy_documents.deployment_of", lambda _: deployment(tmp_path))
    arguments = argparse.Namespace(data_dir=None, tenant="", json=False)
    assert await asyncio.to_thread(fairness.run, arguments) == 0
    printed = capsys.readouterr().out
    assert "Policy fairlead (vtc)" in printed
    assert "globex" in printed
    assert "In flight: 290 of 297 tokens in 1 requests" in printed
    arguments.json = True
    assert await asyncio.to_thread(fairness.run, arguments) == 0
    assert json.loads(capsys.readouterr().out)["num_backlogged"] == 1


def test_without_services_it_says_that_it_needs_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "CONNECT_S", 0.05)
    monkeypatch.setattr("services.policy_documents.deployment_of", lambda _: deployment(tmp_path))
    assert fairness.run(argparse.Namespace(data_dir=None, tenant="", json=False)) == 2
    assert "this needs the services running" in capsys.readouterr().err


async def test_a_change_of_the_automatic_window_is_logged_with_what_it_bounds(
    admission: AdmissionService, caplog: pytest.LogCaptureFixture
) -> None:
    document = POLICY.read_bytes().replace(b"window_tokens: {pools: 3}", b"window_tokens: auto")
    with caplog.at_level("INFO", logger="services.admission.reports"):
        admission._pump.apply(2, document)
        busy(admission)
    assert "window_tokens: auto is measuring the pool-sized window: 99 of 99 tokens" in caplog.text
