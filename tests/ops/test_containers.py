"""What the containers may do, read from compose.yaml and the Dockerfile as they are."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.settings import load_deployment

ROOT = Path(__file__).resolve().parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
DOCKERFILE = (ROOT / "ops" / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
OURS = ("setup", "scheduler", "admission", "executor", "gateway")
SECRET = re.compile("key|secret|passw|token|credential", re.IGNORECASE)


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_write_nowhere_but_where_it_must_and_be_nobody_special(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "userns_mode"} & service.keys()
    for place in service["tmpfs"]:
        assert {"noexec", "nosuid", "nodev"} < set(place.split(":")[1].split(","))
        assert "size=" in place


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_cannot_take_the_machine_with_it(name: str) -> None:
    service = SERVICES[name]
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_from_the_host_is_read_only_and_no_door_into_it(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, _, rest = volume.partition(":")
        assert "docker.sock" not in source
        assert rest.endswith(":ro") or not source.startswith((".", "/")), volume


def mounted(name: str) -> dict[str, str]:
    """Place -> volume and whether it is read-only."""
    split = [volume.split(":") for volume in SERVICES[name]["volumes"]]
    return {place: ":".join([source, *mode]) for source, place, *mode in split}


def test_each_of_ours_has_what_it_needs_of_the_others_and_no_more() -> None:
    deployment = load_deployment(ROOT / "ops" / "docker" / "deployment.yaml").resolved()
    secrets = str(Path(deployment.streams.secret_file).parent)
    assert {name: mounted(name)[secrets] for name in OURS} == {
        name: "secret" if name == "setup" else "secret:ro" for name in OURS
    }
    # It reads what strangers wrote: keys, usage and the recorded traffic are in the others' folder.
    assert {name: mounted(name)[deployment.data] for name in OURS} == {
        name: "executor" if name == "executor" else "data" for name in OURS
    }
    # Of a root file system that is read-only, not even the mode of a folder can be set.
    assert {mounted(name)[deployment.run] for name in OURS} == {"run"}
    assert Path(deployment.tenants).is_relative_to(deployment.data)
    made = re.search(r"mkdir -p (.*?) +&& chown fairlead:fairlead (.*?) +&&", DOCKERFILE)
    assert made is not None
    assert made[1].split() == made[2].split() == [deployment.data, secrets, deployment.run]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_this_machine_alone(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_is_in_an_environment(name: str) -> None:
    assert [variable for variable in SERVICES[name].get("environment", {}) if SECRET.search(variable)] == []


def test_our_images_run_as_the_user_that_owns_their_volumes() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    shipped = [stage for stage in stages if "ENTRYPOINT" in stage]
    assert len(shipped) == 2
    assert {re.findall(r"^USER (.*)$", stage, re.MULTILINE)[-1] for stage in shipped} == {"10001:10001"}
    assert {SERVICES[name]["user"] for name in OURS} == {"10001:10001"}


def test_no_image_is_given_a_secret_and_nothing_is_installed_without_its_hash() -> None:
    variables = re.findall(r"^(?:ENV|ARG) (.*)$", DOCKERFILE, re.MULTILINE)
    assert [line for line in variables if SECRET.search(line)] == []
    copied = re.findall(r"^COPY (?:--from=\S+ )?(.*) \S+$", DOCKERFILE, re.MULTILINE)
    allowed = (
        "policies",
        "engine",
        "services",
        "ops",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "/opt/fairlead/engine",
    )
    assert [part for line in copied for part in line.split() if not part.startswith(allowed)] == []
    installs = re.findall(r"pip install.*", DOCKERFILE)
    assert all("--no-deps --no-build-isolation --editable ." in line for line in installs)


def test_images_of_others_are_named_by_their_exact_version() -> None:
    images = [service["image"] for name, service in SERVICES.items() if name not in OURS]
    assert images
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image) for image in images)
