"""The connection to a Redis server and the one script that it runs.

Knows addresses, the password and what may go wrong; does not know what a batch means.
"""

from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.admission.redis_limits import SCRIPT
from services.admission.redis_operations import BatchAnswer, Encoded, read_answer
from services.files import read_document
from services.runtime import StartError
from services.settings import Deployment

NOT_ANSWERED = (RedisError, OSError)
"""What a call raises when the server did not do it, or did and could not say so."""


LOOPBACK = ("127.0.0.1", "::1", "localhost")


class RedisConnection:
    """One connection; calls are made one at a time.

    Raises:
        StartError: the address or the password file cannot be used.
    """

    def __init__(self, deployment: Deployment) -> None:
        settings = deployment.shared_store
        self.address = shown(deployment.store)
        _check_privacy(deployment, self.address)
        try:
            self._client = Redis.from_url(
                deployment.store,
                password=_password(settings.password_file),
                socket_timeout=settings.answer_s,
                socket_connect_timeout=settings.answer_s,
                # A call that was not answered is sent again by whoever knows what was decided meanwhile.
                retry=Retry(NoBackoff(), 0),
                single_connection_client=True,
            )
        except ValueError as error:
            raise StartError(f"store: {self.address}: {error}; right is redis://host:port/0") from error
        self._script = self._client.register_script(SCRIPT)

    async def run(self, batch: Encoded) -> BatchAnswer:
        """Have a batch done; raises one of `NOT_ANSWERED`."""
        return read_answer(await self._script(keys=batch.keys, args=batch.values))

    async def fields(self, key: str) -> dict[bytes, bytes]:
        """All of a hash; raises one of `NOT_ANSWERED`."""
        # The client's types allow for answers decoded as text, which these are not.
        return cast("dict[bytes, bytes]", await self._client.hgetall(key))

    async def close(self) -> None:
        """Disconnect."""
        await self._client.aclose()


def shown(address: str) -> str:
    """An address without what is secret in it, or may be."""
    parts = urlsplit(address)
    if "@" not in parts.netloc and not parts.query:
        return address
    host = f"...@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return parts._replace(netloc=host, query="").geturl()


def _check_privacy(deployment: Deployment, address: str) -> None:
    parts = urlsplit(deployment.store)
    if parts.scheme != "redis" or parts.hostname in LOOPBACK or deployment.streams.allow_plaintext:
        return
    raise StartError(
        f"store: {address} would be spoken to unencrypted beyond this machine; use rediss://, or set "
        "streams.allow_plaintext: true where the network between the machines is private"
    )


def _password(path: str) -> str | None:
    if not path:
        return None
    try:
        return read_document(Path(path)).decode().strip()
    except OSError as error:
        raise StartError(f"{path}: the password of the store cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        # Said without the error's own words, which hold the bytes.
        raise StartError(f"{path}: the password of the store is not UTF-8 text") from None
