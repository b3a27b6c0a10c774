"""What a running process cannot change: addresses, paths, sizes and the engine.

The only module that reads the environment. `deployment.yaml` has one home for each value; `fairlead up` writes the
resolved file into its run folder and names it to its children in `FAIRLEAD_DEPLOYMENT`.
"""

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, inspect

from engine.demo import CHECKPOINT
from engine.interface import EngineSettings
from policies.document.problems import PolicyError
from policies.document.reading import Reading
from policies.document.tree import parse
from services.files import read_document
from services.stream_settings import Bytes, StreamSettings, TlsSettings

REPOSITORY = Path(__file__).resolve().parent.parent
DEPLOYMENT_VARIABLE = "FAIRLEAD_DEPLOYMENT"
ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
OTLP_SCHEMES = ("http", "https", "grpc", "grpcs")
STARTED = "deployment.json"
"""In the data folder: what `fairlead up` was last started with."""

EMBEDDED_STORE = "sqlite"
SHARED_STORES = ("redis://", "rediss://", "unix://")


class SettingsError(Exception):
    """A deployment that cannot be used; the sentence names the file, the key and what is allowed."""


class HttpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where clients connect and how much one of them may send."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """0: any free port."""
    gateways: Annotated[int, Meta(ge=1, le=64)] = 1
    """How many gateway processes `fairlead up` runs, all on this port: each takes what comes when it has time."""
    max_connections: Annotated[int, Meta(ge=1)] = 10_000
    """Of clients at a time to one gateway, and no more than it may have files open; others are told to come again."""
    max_body_bytes: Bytes = 4 * 2**20
    max_head_bytes: Annotated[int, Meta(ge=1024, le=2**20)] = 32 * 2**10
    """Of a request's first line and its headers."""
    max_url_bytes: Annotated[int, Meta(ge=256)] = 8 * 2**10
    header_s: Annotated[float, Meta(gt=0)] = 10.0
    """How long a request's head may take to arrive, and a new connection's first byte."""
    body_s: Annotated[float, Meta(gt=0)] = 30.0
    """How long a request's body may take to arrive, all of it."""
    idle_s: Annotated[float, Meta(gt=0)] = 120.0
    """How long a connection may wait for its next request."""
    unread_s: Annotated[float, Meta(gt=0)] = 60.0
    """How long a client may read nothing of what was written for it, or its machine be out of reach."""
    max_prompt_characters: Annotated[int, Meta(ge=1)] = 2**20
    """Of a request, all its texts together: a million take seconds to tokenise."""
    max_requests_per_key: Annotated[int, Meta(ge=1)] = 2048
    """Under way at once at one gateway; what fewer of them a key may have is a limit of the policy."""
    max_choices: Annotated[int, Meta(ge=1)] = 16
    max_prompts: Annotated[int, Meta(ge=1)] = 64
    stream_buffer_bytes: Bytes = 256 * 2**10
    """Text a slow reader may leave unread before its request is cancelled."""
    drain_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long running requests may take to finish after SIGTERM."""

    def __post_init__(self) -> None:
        """Refuse what the types allow and makes no sense together.

        Raises:
            ValueError: msgspec reports it with the key's path.
        """
        if self.max_url_bytes >= self.max_head_bytes:
            raise ValueError(
                f"max_url_bytes is {self.max_url_bytes} and max_head_bytes {self.max_head_bytes}; "
                "the URL is a part of the head and must be smaller"
            )

    @property
    def look_s(self) -> float:
        """How often connections are looked at for waits that are too long."""
        return min(1.0, self.header_s / 4, self.idle_s / 4, self.unread_s / 4)


class WatchdogSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """When the scheduler treats an executor as dead that has a step and does not answer: its sequences are computed
    elsewhere, or when it is back.
    """

    step_s: Annotated[float, Meta(gt=0)] = 5.0
    """It is given this long for any step,"""
    step_times: Annotated[float, Meta(ge=1)] = 20.0
    """or so many times as long as such a step is expected to take, if that is longer;"""
    first_step_s: Annotated[float, Meta(gt=0)] = 600.0
    """and this long for its first step, which may compile."""


class SupervisionSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """When `fairlead up` starts a process again, and when it gives one up."""

    silence_s: Annotated[float, Meta(ge=2)] = 5.0
    """How long a process may give no sign of life, which is due each second, before it is killed and started again."""
    start_s: Annotated[float, Meta(ge=1)] = 600.0
    """How long it may take to load what it needs before it gives the first one."""
    crashes: Annotated[int, Meta(ge=0)] = 5
    """How often a process may end by itself within `crash_window_s` of work, loading left out; then it is given up."""
    crash_window_s: Annotated[float, Meta(gt=0)] = 60.0


class TrafficSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of the traffic, for `fairlead policy plan`: arrivals, lengths and times, never text."""

    keep_s: Annotated[float, Meta(ge=0)] = 7 * 86400.0
    """How long; after a downtime up to half of it longer, because ages are counted by a clock that must catch up first.
    0: nothing is recorded.
    """
    max_bytes: Annotated[int, Meta(ge=2**20)] = 64 * 2**20
    """Of each gateway's file and each scheduler's; the oldest goes first."""


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where each service answers `GET /metrics`. It names tenants: keep it from the public."""

    host: str = "127.0.0.1"
    gateway: Annotated[int, Meta(ge=0, le=65535)] | None = 9461
    admission: Annotated[int, Meta(ge=0, le=65535)] | None = 9462
    scheduler: Annotated[int, Meta(ge=0, le=65535)] | None = 9463
    executor: Annotated[int, Meta(ge=0, le=65535)] | None = 9464
    """Ports; null: it does not; 0: any free one. One that is taken is a warning. Of several processes of a
    service each further one is ten ports higher.
    """

    def port_of(self, process: str) -> int | None:
        """The port of a process, by its name: `admission`, `admission-2`."""
        service, _, number = process.partition("-")
        ports = {
            "gateway": self.gateway,
            "admission": self.admission,
            "scheduler": self.scheduler,
            "executor": self.executor,
        }
        port = ports[service]
        return port + 10 * (int(number) - 1) if port and number else port


class RecentSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What each gateway remembers of what is over, for the console and `fairlead explain`. The oldest goes first."""

    tokens: Annotated[int, Meta(ge=1)] = 500_000
    """Of ended requests; about 100 bytes each. A request counts as 20 tokens more than it has."""
    steps: Annotated[int, Meta(ge=1)] = 20_000
    """What a request of minutes has gone through; about a kilobyte each."""


class TelemetrySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Where traces and metrics go, beside the console and /metrics."""

    endpoint: str = ""
    """Of an OTLP collector: `http://host:4318`, `https://…`, `grpc://host:4317` or `grpcs://…`; empty: none. Without it
    the variable `OTEL_EXPORTER_OTLP_ENDPOINT` counts."""
    headers: dict[str, str] = {}
    """For the collector, as it wants them."""
    metrics: MetricsSettings = MetricsSettings()
    tokens: bool = True
    """Record the way of every token. Without it there are no traces and no latencies."""
    recent: RecentSettings = RecentSettings()


class OutageSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of new requests once a shared store has been out of reach for longer than `stale_ok_s`."""

    limits: Literal["closed", "open"] = "closed"
    """Of those that a limit applies to. `closed`: refused; `open`: decided by what this process knows."""
    fairness: Literal["closed", "open"] = "open"
    """Of all. `open`: each process is fair by itself; `closed`: refused."""


class SharedStoreSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How admission uses a store that it shares (`store: redis://...`)."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]+$")] = "main"
    """Of this deployment in the store: two with one name share their limits and counters."""
    password_file: str = ""
    """Holds the password of the store; empty: the address says it, or there is none."""
    flush_s: Annotated[float, Meta(gt=0, le=1)] = 0.05
    """How often charges are exchanged; the fairness bound grows by what is charged meanwhile."""
    answer_s: Annotated[float, Meta(gt=0, le=10)] = 0.5
    """How long the store may take to answer before it counts as out of reach."""
    stale_ok_s: Annotated[float, Meta(ge=0)] = 5.0
    """How long admission goes on with what it knows while the store is out of reach."""
    fail: OutageSettings = OutageSettings()
    """What comes after that."""
    lease_s: Annotated[float, Meta(ge=1)] = 10.0
    """How long what a lost process held (concurrency, queued) stays taken."""


class Deployment(Struct, frozen=True, forbid_unknown_fields=True):
    """One deployment: one model, one of each service by default."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    model: str = "demo"
    """A checkpoint folder; `demo`: the small one that comes with Fairlead and completes Python."""
    policy: str = "policies/fairlead.yaml"
    tenants: str = "{data}/tenants.yaml"
    data: str = ".fairlead"
    """What outlives a run: keys, secrets, the recorded traffic and the history of the policy."""
    run: str = "{data}/run"
    """What does not: sockets and state of the running processes."""
    record: str = ""
    """A folder for the event logs of both cores; empty: none."""
    check: bool = False
    """Assert every core invariant after every event."""
    store: str = EMBEDDED_STORE
    """Where admission keeps limits, counters and usage: `sqlite`, a file of its own in the data folder, or the address
    of a Redis server that several admission processes share (`redis://host:port/0`, `rediss://...`, `unix://...`)."""
    shared_store: SharedStoreSettings = SharedStoreSettings()
    http: HttpSettings = HttpSettings()
    streams: StreamSettings = StreamSettings()
    supervision: SupervisionSettings = SupervisionSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    traffic: TrafficSettings = TrafficSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        """Refuse what the types allow and no service could use.

        Raises:
            ValueError: msgspec reports it with the key's path.
        """
        if self.store != EMBEDDED_STORE and not self.store.startswith(SHARED_STORES):
            raise ValueError(
                # The address is not repeated: there may be a password in it.
                f"store is neither `{EMBEDDED_STORE}` nor the address of a Redis server; "
                f"such an address starts with {', '.join(SHARED_STORES)}"
            )
        admissions = self.streams.admissions
        if not admissions or len(set(admissions)) < len(admissions):
            raise ValueError(
                "streams.admission names no address, or one twice; an address, or a list of different ones, is needed"
            )
        if len(admissions) > 1 and self.store == EMBEDDED_STORE:
            raise ValueError(
                f"streams.admission has {len(admissions)} addresses, and processes that share no store are not fair"
                " together; set store to the address of a Redis server"
            )

    @property
    def model_folder(self) -> Path:
        """The checkpoint's folder, of a resolved deployment."""
        return CHECKPOINT if self.model == "demo" else Path(self.model)

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.model if self.model == "demo" else Path(self.model).name

    def resolved(self) -> "Deployment":
        """The same with every path absolute and `{data}` and `{run}` filled in."""
        data = _absolute(self.data)
        run = _absolute(self.run.replace("{data}", data))

        def fill(value: str) -> str:
            return value.replace("{data}", data).replace("{run}", run)

        return msgspec.structs.replace(
            self,
            data=data,
            run=run,
            model=self.model if self.model == "demo" else _absolute(fill(self.model)),
            policy=_absolute(fill(self.policy)),
            tenants=_absolute(fill(self.tenants)),
            record=_absolute(fill(self.record)) if self.record else "",
            store=fill(self.store),
            shared_store=msgspec.structs.replace(
                self.shared_store,
                password_file=_absolute(fill(self.shared_store.password_file))
                if self.shared_store.password_file
                else "",
            ),
            streams=msgspec.structs.replace(
                self.streams,
                admission=fill(self.streams.admission)
                if isinstance(self.streams.admission, str)
                else tuple(fill(address) for address in self.streams.admission),
                scheduler=fill(self.streams.scheduler),
                secret_file=_absolute(fill(self.streams.secret_file)),
                tls=None
                if self.streams.tls is None
                else TlsSettings(
                    *(path and _absolute(fill(path)) for path in msgspec.structs.astuple(self.streams.tls)),
                ),
            ),
        )


_DEPLOYMENT = inspect.type_info(Deployment)


def load_deployment(path: Path | None = None) -> Deployment:
    """The deployment of `path`, of `FAIRLEAD_DEPLOYMENT`, or of ops/deployment.yaml; relative paths start at the
    repository.

    Raises:
        SettingsError: the file cannot be read or does not fit the schema.
    """
    if path is None:
        path = Path(os.environ.get(DEPLOYMENT_VARIABLE) or REPOSITORY / "ops" / "deployment.yaml")
    deployment = _read(path)
    endpoint = deployment.telemetry.endpoint or os.environ.get(ENDPOINT_VARIABLE, "")
    if endpoint and urlsplit(endpoint).scheme not in OTLP_SCHEMES:
        allowed = "an address like http://host:4318 or grpc://host:4317"
        raise SettingsError(f"{path}: telemetry.endpoint: {endpoint!r} is no collector's address; allowed: {allowed}")
    telemetry = msgspec.structs.replace(deployment.telemetry, endpoint=endpoint)
    return msgspec.structs.replace(deployment, telemetry=telemetry)


def _read(path: Path) -> Deployment:
    try:
        reading = Reading(parse(read_document(path), str(path)), _DEPLOYMENT, str(path))
        if reading.problems:
            raise PolicyError(reading.problems)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except PolicyError as error:
        raise SettingsError(str(error)) from error
    deployment: Deployment = reading.get(())
    return deployment


def deployment_of(data_dir: str | None) -> Deployment:
    """The resolved deployment whose data is in a folder, as the services were last started on it by `fairlead up`; else
    the configured one with that folder. None: the configured folder.

    Raises:
        SettingsError: as `load_deployment`.
    """
    deployment = load_deployment()
    if data_dir is not None:
        deployment = msgspec.structs.replace(deployment, data=str(Path(data_dir).expanduser().absolute()))
    deployment = deployment.resolved()
    started = Path(deployment.data) / STARTED
    return load_deployment(started) if started.exists() else deployment


def child_environment(deployment_file: Path) -> dict[str, str]:
    """The environment of a service process started for this deployment.

    The engine's threads sleep while they wait for one another unless the caller says otherwise: threads that spin on
    cores shared with the other services keep each other from running, and a step takes four times as long. They spin
    for some microseconds first: a step waits fifty times, and to be woken each time takes a sixteenth of it.
    """
    threads = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    return {**threads, **os.environ, DEPLOYMENT_VARIABLE: str(deployment_file)}


def _absolute(path: str) -> str:
    expanded = Path(path).expanduser()
    return str(expanded if expanded.is_absolute() else REPOSITORY / expanded)
