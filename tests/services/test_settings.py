"""deployment.yaml: what is refused, and how it is said."""

from pathlib import Path

import pytest

from services.health import processes
from services.settings import Deployment, SettingsError, load_deployment
from services.setup import SetupError, check_ports


def loaded(folder: Path, text: str) -> Deployment:
    file = folder / "deployment.yaml"
    file.write_text(text)
    return load_deployment(file)


def test_a_store_is_a_file_of_its_own_or_the_address_of_a_server(tmp_path: Path) -> None:
    for store in ("sqlite", "redis://cache:6379/0", "rediss://cache/1", "unix:///run/redis.sock"):
        loaded(tmp_path, f"version: 1\nstore: {store}\n")
    with pytest.raises(SettingsError, match="1:1: document: store is neither `sqlite` nor the address"):
        loaded(tmp_path, "version: 1\nstore: postgres://user:secret@db\n")


def test_what_happens_without_the_shared_store_is_said_by_two_keys(tmp_path: Path) -> None:
    loaded(tmp_path, "version: 1\nshared_store: {stale_ok_s: 2, fail: {limits: open, fairness: closed}}\n")
    with pytest.raises(
        SettingsError, match=r'2:31: shared_store.fail.limits: the text "maybe" does not fit; .* closed, open'
    ):
        loaded(tmp_path, "version: 1\nshared_store: {fail: {limits: maybe}}\n")


def test_the_password_file_of_a_shared_store_may_be_in_the_data_folder(tmp_path: Path) -> None:
    deployment = loaded(tmp_path, f"data: {tmp_path}\nshared_store: {{password_file: '{{data}}/redis.password'}}\n")
    assert deployment.resolved().shared_store.password_file == f"{tmp_path}/redis.password"


def test_several_admission_processes_need_a_store_that_they_share(tmp_path: Path) -> None:
    two = "streams: {admission: ['unix://{run}/a.sock', 'unix://{run}/b.sock']}\n"
    with pytest.raises(SettingsError, match=r"streams\.admission has 2 addresses.*share no store"):
        loaded(tmp_path, two)
    with pytest.raises(SettingsError, match="names no address, or one twice"):
        loaded(tmp_path, "streams: {admission: ['unix://a', 'unix://a']}\nstore: redis://cache\n")
    deployment = loaded(tmp_path, f"{two}store: redis://cache\nrun: {tmp_path}\n").resolved()
    assert deployment.streams.admissions == (f"unix://{tmp_path}/a.sock", f"unix://{tmp_path}/b.sock")
    ports = [deployment.telemetry.metrics.port_of(name) for name in ("admission", "admission-2")]
    assert ports == [9462, 9472]
    assert list(processes(deployment)) == ["executor", "scheduler", "admission", "admission-2", "gateway"]


def test_several_gateways_are_several_processes_with_metrics_of_their_own(tmp_path: Path) -> None:
    deployment = loaded(tmp_path, "http: {gateways: 3}\n")
    assert list(processes(deployment))[-3:] == ["gateway", "gateway-2", "gateway-3"]
    ports = [deployment.telemetry.metrics.port_of(name) for name in ("gateway", "gateway-2", "gateway-3")]
    assert ports == [9461, 9471, 9481]


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ("gateway: 65530", "gateway-2 would have port 65540, which is beyond the last, 65535;"),
        ("gateway: 9461, admission: 9471", "gateway-2 would have port 9471, which admission has, too;"),
    ],
)
def test_a_port_for_metrics_that_a_process_cannot_have_is_said_at_the_start(
    tmp_path: Path, metrics: str, sentence: str
) -> None:
    with pytest.raises(SetupError, match=sentence):
        check_ports(loaded(tmp_path, f"http: {{gateways: 2}}\ntelemetry: {{metrics: {{{metrics}}}}}\n"))
    check_ports(loaded(tmp_path, "http: {gateways: 5}\ntelemetry: {metrics: {gateway: 0, executor: null}}\n"))
