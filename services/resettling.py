"""What of a deployment file that was edited a restart of running services can bring into force, and what it cannot.

Compares two deployments. Knows no processes and reads no file.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec

from services.settings import Deployment, SettingsError

FIXED = (
    "version",
    "data",
    "run",
    "model",
    "store",
    "shared_store.name",
    "http.host",
    "http.port",
    "http.gateways",
    "streams.admission",
    "streams.scheduler",
    "streams.secret_file",
    "streams.max_frame_bytes",
    "streams.tls",
    "streams.allow_plaintext",
)
"""What all processes must have alike at any moment, or what the supervisor itself holds: while one service after the
other is started again, half of them would look for the other half elsewhere, or read another model's tokens."""

READERS = {"policy": "admission"}
"""Key -> the service that alone goes by it, and is told by commands: these would write where nobody looks if a process
of that service went on with what it was started with.
"""


class Change(NamedTuple):
    """Of one key."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """With its values where they are figures: what is text may be a secret."""
        if all(isinstance(value, int | float) for value in (self.before, self.after)):
            return f"{self.key}: {_shown(self.before)} → {_shown(self.after)}"
        return self.key


def changes(before: Deployment, after: Deployment, stays: Collection[str] = ()) -> list[Change]:
    """What is different, in the order of the file's keys. `stays`: services of which a process is not restarted.

    Raises:
        SettingsError: something of it cannot change while services run, or not while these do; the sentence names it.
    """
    old, new = _leaves(before), _leaves(after)
    found = [Change(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]
    fixed = [change for change in found if any(f"{change.key}.".startswith(f"{key}.") for key in FIXED)]
    if fixed:
        raise SettingsError(
            f"{', '.join(map(str, fixed))}: this cannot change while services run; nothing was restarted. Put it back, "
            "or end `fairlead up` and start it again"
        )
    for change in found:
        if (reader := READERS.get(change.key)) in stays:
            raise SettingsError(
                f"{change}: {reader} would go on with that of before; nothing was restarted. Restart {reader} as well, "
                "or put it back"
            )
    return found


def _leaves(deployment: Deployment) -> dict[str, Any]:
    leaves: dict[str, Any] = {}

    def take(value: Any, path: str) -> None:
        # The headers of a collector are one setting: their names are anybody's.
        if isinstance(value, dict) and path != "telemetry.headers":
            for key, each in value.items():
                take(each, f"{path}.{key}" if path else key)
        else:
            leaves[path] = value

    take(msgspec.to_builtins(deployment), "")
    return leaves


def _shown(value: float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
