"""What a request passes before it is handed on: its key, its body, the model's limits.

Owns what is checked of every inference request, whatever its endpoint; knows no answer.
"""

import asyncio
import secrets
import time
from array import array
from typing import Protocol

from aiohttp import web

from engine.interface import Sampling
from engine.tokenizer import Tokenizer
from policies.document.schema import HashedKey, Tenant
from services.errors import RequestError
from services.gateway.auth import Keys
from services.gateway.backend import Backend
from services.gateway.connection import kind_of
from services.settings import HttpSettings
from services.wire import Submit

Caller = tuple[Tenant, HashedKey]
ENCODINGS = ("identity", "gzip", "deflate")
"""Of bodies; another one, or several, would be taken for none."""
MAX_SHOWN = 40
ADMIN = "admin"
"""The scope of keys that open the console."""


class Asked(Protocol):
    """What the services behind need of a body."""

    service_tier: str | None

    @property
    def seed(self) -> int | None:
        """Of the first choice."""

    @property
    def choices(self) -> int:
        """Outputs for each prompt."""

    @property
    def maximum(self) -> int | None:
        """Output tokens asked for at most; None: as many as fit."""

    def check_room(self, num_tokens: int) -> None:
        """Whether an output of at most this many tokens can be what is asked for."""

    def sampling(self, seed: int, first: int) -> list[Sampling]:
        """One for each choice."""


class Intake:
    """The door of one gateway."""

    def __init__(self, http: HttpSettings, model: str, tokenizer: Tokenizer, keys: Keys, backend: Backend) -> None:
        self._http = http
        self._model = model
        self._tokenizer = tokenizer
        self._keys = keys
        self._backend = backend
        self.draining = False
        """No new connections; what comes on those that are open is answered, and then they are closed."""

    def anyone(self, request: web.Request) -> Caller:
        """Who asks, by either dialect's header; errors as `Keys.find`."""
        headers = request.headers
        return self._keys.find(headers.get("authorization") or f"Bearer {headers.get('x-api-key', '')}")

    def caller(self, request: web.Request) -> Caller:
        """Who asks the model.

        Raises:
            RequestError: as `Keys.find`, or the key is for looking on alone.
        """
        tenant, key = self.anyone(request)
        if key.scope == ADMIN:
            self._keys.num_refused["wrong_scope"] += 1
            message = (
                "this is an admin key: it opens the console and asks no model; "
                "make a key for requests with `fairlead keys add --tenant NAME`"
            )
            raise RequestError("wrong_key_scope", message)
        return tenant, key

    def admin(self, request: web.Request) -> None:
        """Let an operator pass.

        Raises:
            RequestError: as `Keys.find`, or the key is a tenant's.
        """
        _, key = self.anyone(request)
        if key.scope != ADMIN:
            self._keys.num_refused["wrong_scope"] += 1
            message = (
                "this needs an admin key, and the one given is for requests to the model; "
                "make one with `fairlead keys add --admin`"
            )
            raise RequestError("wrong_key_scope", message)

    def is_operator(self, request: web.Request) -> bool:
        """Whether this is one: who gives no key, or another, is told less and not refused."""
        if not request.headers.keys() & {"authorization", "x-api-key"}:
            return False
        try:
            return self.anyone(request)[1].scope == ADMIN
        except RequestError:
            return False

    async def body(self, request: web.Request) -> bytes:
        """The body.

        Raises:
            RequestError: it is too large, too slow or not as its headers say.
        """
        encoding = ", ".join(request.headers.getall("content-encoding", ["identity"]))
        if encoding.strip().lower() not in ENCODINGS:
            message = f"content-encoding: {encoding[:MAX_SHOWN]!r} is not known here; {', '.join(ENCODINGS)} are"
            raise RequestError("invalid_value", message)
        limit = self._http.max_body_bytes
        too_large = RequestError("body_too_large", f"the body is larger than {limit} bytes, the limit here")
        if request.content_length is not None and request.content_length > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._http.body_s):
                # Not `request.read()`, which keeps the body for as long as the answer takes.
                async for piece in request.content.iter_any():
                    body += piece
                    if len(body) > limit:
                        raise too_large
        except web.RequestPayloadError as error:
            message = f"the body cannot be decoded as its headers say: {kind_of(error)}"
            raise RequestError("invalid_value", message) from error
        except TimeoutError as error:
            raise RequestError("body_too_slow", f"the body took longer than {self._http.body_s:g} s") from error
        return bytes(body)

    def check_room(self, model: str, num_prompts: int, name: str) -> None:
        """Whether the model is there, takes so many of the parameter `name` and is open.

        Raises:
            RequestError: it is not.
        """
        self.check_model(model)
        if num_prompts > self._http.max_prompts:
            message = f"{name}: {num_prompts} {name}s in one request; at most {self._http.max_prompts} are allowed"
            raise RequestError("invalid_value", message, param=name)
        self._backend.check_open()

    def check_model(self, model: str) -> None:
        """Whether this is the model that is served.

        Raises:
            RequestError: it is not.
        """
        if model != self._model:
            message = f'the model "{model}" does not exist here; the model here is "{self._model}"'
            raise RequestError("model_not_found", message, param="model")

    def check_choices(self, choices: int) -> None:
        """Whether one request may have so many outputs for a prompt.

        Raises:
            RequestError: it may not.
        """
        if choices > self._http.max_choices:
            message = f"n: {choices} choices asked for; at most {self._http.max_choices} are allowed"
            raise RequestError("invalid_value", message, param="n")

    def submits(
        self,
        caller: Caller,
        body: Asked,
        prompts: list[list[int]],
        received_ns: int,
        *,
        grammar: str = "",
        pooling: str = "",
    ) -> list[Submit]:
        """What is handed on, one for each prompt.

        Raises:
            RequestError: one is too long for the model, or nothing can be handed on at the moment.
        """
        self._backend.check_open()  # tokenising in the background took a while
        tenant, key = caller
        seed = secrets.randbits(63) if body.seed is None else body.seed
        tokenized_ns = time.monotonic_ns()
        return [
            Submit(
                request=0,  # the backend numbers requests
                tenant=tenant.name,
                tier=tenant.tier,
                prompt=array("i", prompt).tobytes(),
                max_output_tokens=self._room(len(prompt), body),
                sampling=body.sampling(seed, index * body.choices),
                weight=tenant.weight,
                project=key.project,
                key=key.id,
                service_tier=body.service_tier,
                allowed_classes=tenant.classes,
                received_ns=received_ns,
                tokenized_ns=tokenized_ns,
                grammar=grammar,
                shares_prefix=pooling != "mean",  # which needs every token computed for it
                pooling=pooling,
                declared=body.maximum is not None,
            )
            for index, prompt in enumerate(prompts)
        ]

    def _room(self, prompt_tokens: int, body: Asked) -> int:
        """Output tokens that a request may make."""
        asked = body.maximum
        limit = min(self._tokenizer.max_sequence_tokens, self._backend.max_sequence_tokens)
        if prompt_tokens + (asked or 1) > limit:
            wanted = f"{prompt_tokens} prompt tokens and at most {asked or 1} of output"
            message = f"a sequence here has at most {limit} tokens; this request has {wanted}; shorten one of them"
            raise RequestError("context_length_exceeded", message)
        room = asked or limit - prompt_tokens
        body.check_room(room)
        return room
