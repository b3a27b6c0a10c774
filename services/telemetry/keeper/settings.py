"""What a gateway tells the keeper that it starts."""

import msgspec


class KeeperSettings(msgspec.Struct):
    """What the process reads first, as JSON."""

    service: str
    instance: str
    """Of the service: `service.instance.id`."""
    scheduler: str
    """Names the scheduler in the ids of steps."""
    recent_tokens: int = 500_000
    """Of ended requests, kept for questions."""
    recent_steps: int = 20_000
    descriptor: int = -1
    """Of the socket to the gateway."""
    endpoint: str = ""
    """Of the collector: `http://host:4318` or `grpc://host:4317`; empty: none."""
    headers: dict[str, str] = {}
    """For the collector, as it wants them."""
    name: str = "gateway"
    """Of the gateway's process."""
    gateways: list[str] = []
    """Names of all that there should be on this machine."""
    run: str = ""
    """The folder in which their keepers find one another; empty: this one stays alone."""
