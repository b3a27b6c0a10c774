"""The HTTP face: OpenAI's endpoints, health, and the policy in force.

Owns routes, headers and status codes. Every answer that is an error is JSON in OpenAI's shape, whatever went wrong.
"""

import asyncio
import logging
import re
import secrets
import time
from array import array
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from aiohttp import web

from engine.tokenizer import Tokenizer
from policies.document.schema import HashedKey, Tenant
from services.errors import RequestError
from services.gateway.auth import Keys
from services.gateway.backend import Backend
from services.gateway.embeddings import EmbeddingAnswer, EmbeddingBody, read_embedding
from services.gateway.grammars import Grammars
from services.gateway.logprobs import ChatForm, CompletionForm
from services.gateway.prompts import Prompts
from services.gateway.requests import Body, ChatBody, CompletionBody, read_chat, read_completion
from services.gateway.responses import Shape
from services.gateway.streams import Answer, StreamedAnswer
from services.gateway.structure import ANY_TEXT, Structure
from services.settings import HttpSettings
from services.wire import Submit

JSON = "application/json"
TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class Api:
    """Handlers over one backend."""

    def __init__(
        self,
        http: HttpSettings,
        model: str,
        *,
        tokenizer: Tokenizer,
        grammars: Grammars,
        keys: Keys,
        backend: Backend,
    ) -> None:
        self._http = http
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = Prompts(tokenizer)
        self._grammars = grammars
        self._keys = keys
        self._backend = backend
        self._started = int(time.time())
        self.draining = False
        """No new requests; those running go on."""

    def application(self) -> web.Application:
        """Routes and the middleware that makes every error JSON."""
        app = web.Application(middlewares=[self._errors], client_max_size=self._http.max_body_bytes)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._complete),
                web.post("/v1/embeddings", self._embed),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{model:.+}", self._one_model),
                web.get("/v1/fairlead/policy", self._policy),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        return app

    def missing(self) -> list[str]:
        """Why this gateway is not ready, in words; empty when it is."""
        return ["draining"] if self.draining else self._backend.missing()

    # --- answers of our own -------------------------------------------------------------------------------------

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RequestError as error:
            return self._refusal(error)
        except web.HTTPNotFound:
            return self._refusal(RequestError("not_found", f"there is no {request.method} {request.path} here"))
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.path} does not take {request.method}; it takes {allowed}"
            response = self._refusal(RequestError("method_not_allowed", message))
            response.headers["allow"] = allowed
            return response
        except web.HTTPException as error:
            return self._refusal(RequestError("invalid_value", f"{error.reason}"))
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return self._refusal(RequestError("internal_error", "the gateway failed on this request; its log says why"))

    def _refusal(self, error: RequestError) -> web.Response:
        return web.Response(
            status=error.status, body=error.body, content_type=JSON, headers=self._headers() | error.headers
        )

    def _headers(self, answer_id: str = "") -> dict[str, str]:
        headers = {"x-request-id": answer_id or _new_id("req")}
        if self._backend.revisions.label:
            headers["x-fairlead-policy"] = self._backend.revisions.label
        return headers

    def _json(self, document: Any, status: int = 200) -> web.Response:
        body = msgspec.json.encode(document)
        return web.Response(status=status, body=body, content_type=JSON, headers=self._headers())

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._caller(request)
        return self._json({"object": "list", "data": [self._model_card()]})

    async def _one_model(self, request: web.Request) -> web.StreamResponse:
        self._caller(request)
        self._check_model(request.match_info["model"])
        return self._json(self._model_card())

    def _model_card(self) -> dict[str, Any]:
        card = {"id": self._model, "object": "model", "created": self._started, "owned_by": "fairlead"}
        return card | {"max_model_len": self._tokenizer.max_sequence_tokens}

    async def _healthz(self, _: web.Request) -> web.StreamResponse:
        return self._json({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.StreamResponse:
        reasons = self.missing()
        revisions = self._backend.revisions
        document = {
            "ready": not reasons,
            "reasons": reasons,
            "policy": revisions.now,
            "last_save": revisions.last_save,
            "model": self._model,
            "requests": len(self._backend.running),
        }
        return self._json(document, status=503 if reasons else 200)

    async def _policy(self, request: web.Request) -> web.StreamResponse:
        self._caller(request)
        revisions = self._backend.revisions
        return self._json(
            {"now": revisions.now, "history": list(revisions.history), "last_rejection": revisions.last_rejection}
        )

    # --- completions --------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        received_ns = time.monotonic_ns()
        caller = self._caller(request)
        body = read_chat(await self._body(request))
        self._check(body, 1)
        structure = body.structure()
        grammar = structure.grammar()
        if grammar:
            await self._grammars.check(structure, grammar)
        messages = [message.for_template() for message in body.messages]
        tools = structure.for_template()
        size = sum(len(message["content"]) for message in messages) + len(tools) * len(grammar)
        prompt = await self._prompts.chat(messages, tools, size)
        return await self._answer(request, caller, body, [prompt], received_ns, structure=structure)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        received_ns = time.monotonic_ns()
        caller = self._caller(request)
        body = read_completion(await self._body(request))
        given = body.prompts
        self._check(body, len(given))
        prompts = await self._prompts.each(given, "prompt")
        return await self._answer(request, caller, body, prompts, received_ns)

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        received_ns = time.monotonic_ns()
        caller = self._caller(request)
        body = read_embedding(await self._body(request))
        given = body.inputs
        self._check_room(body.model, len(given), "input")
        inputs = await self._prompts.each(given, "input")
        self._backend.check_open()
        submits = self._submits(request, caller, body, inputs, received_ns, pooling=body.pooling)
        shape = Shape(
            chat=False, answer_id=_new_id("embd"), created=int(time.time()), model=self._model, include_usage=False
        )
        answer = EmbeddingAnswer(shape, sum(map(len, inputs)), body.encoding_format or "float")
        return await self._serve(submits, answer, [], self._collect(answer))

    def _caller(self, request: web.Request) -> tuple[Tenant, HashedKey]:
        return self._keys.find(request.headers.get("authorization", ""))

    async def _body(self, request: web.Request) -> bytes:
        limit = self._http.max_body_bytes
        too_large = RequestError("body_too_large", f"the body is larger than {limit} bytes, the limit here")
        if request.content_length is not None and request.content_length > limit:
            raise too_large
        try:
            async with asyncio.timeout(self._http.body_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large from error
        except web.RequestPayloadError as error:
            message = f"the body cannot be decoded as its headers say: {' '.join(str(error).split())}"
            raise RequestError("invalid_value", message) from error
        except TimeoutError as error:
            raise RequestError("body_too_slow", f"the body took longer than {self._http.body_s:g} s") from error

    def _check(self, body: Body, num_prompts: int) -> None:
        """What can be said before anything is tokenised."""
        self._check_room(body.model, num_prompts, "prompt")
        body.check_tokens(self._tokenizer.vocabulary_size)
        if body.choices > self._http.max_choices:
            message = f"n: {body.choices} choices asked for; at most {self._http.max_choices} are allowed"
            raise RequestError("invalid_value", message, param="n")

    def _check_room(self, model: str, num_prompts: int, name: str) -> None:
        """The model is there, takes so many of the parameter `name` and is open."""
        self._check_model(model)
        if num_prompts > self._http.max_prompts:
            message = f"{name}: {num_prompts} {name}s in one request; at most {self._http.max_prompts} are allowed"
            raise RequestError("invalid_value", message, param=name)
        if self.draining:
            raise RequestError("draining", "this gateway is shutting down; try again elsewhere or in a moment")
        self._backend.check_open()

    def _check_model(self, model: str) -> None:
        if model != self._model:
            message = f'the model "{model}" does not exist here; the model here is "{self._model}"'
            raise RequestError("model_not_found", message, param="model")

    async def _answer(
        self,
        request: web.Request,
        caller: tuple[Tenant, HashedKey],
        body: ChatBody | CompletionBody,
        prompts: list[list[int]],
        received_ns: int,
        *,
        structure: Structure = ANY_TEXT,
    ) -> web.StreamResponse:
        self._backend.check_open()  # tokenising in the background took a while
        submits = self._submits(request, caller, body, prompts, received_ns, grammar=structure.grammar())
        chat = isinstance(body, ChatBody)
        shape = Shape(
            chat=chat,
            answer_id=_new_id("chatcmpl" if chat else "cmpl"),
            created=int(time.time()),
            model=self._model,
            include_usage=body.include_usage,
            calls=bool(structure.callable_tools),
            logprobs=None if body.num_logprobs is None else (ChatForm if chat else CompletionForm)(self._tokenizer),
        )
        prompt_tokens = sum(map(len, prompts))
        answer: Answer
        if body.stream:
            answer = streamed = StreamedAnswer(shape, prompt_tokens, limit_bytes=self._http.stream_buffer_bytes)
            serve = self._stream(request, streamed)
        else:
            answer = Answer(shape, prompt_tokens)
            serve = self._collect(answer)
        return await self._serve(submits, answer, body.stops, serve)

    async def _serve(
        self,
        submits: list[Submit],
        answer: Answer,
        stops: list[str],
        serve: Coroutine[Any, Any, web.StreamResponse],
    ) -> web.StreamResponse:
        self._backend.submit(submits, answer, stops)
        try:
            return await serve
        finally:
            # After a whole answer nothing is left to cancel; otherwise the client is gone.
            self._backend.cancel(answer, RequestError("client_gone", "the client closed the connection"))

    def _submits(
        self,
        request: web.Request,
        caller: tuple[Tenant, HashedKey],
        body: ChatBody | CompletionBody | EmbeddingBody,
        prompts: list[list[int]],
        received_ns: int,
        *,
        grammar: str = "",
        pooling: str = "",
    ) -> list[Submit]:
        tenant, key = caller
        traceparent = request.headers.get("traceparent", "")
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
                traceparent=traceparent if TRACEPARENT.fullmatch(traceparent) else "",
                grammar=grammar,
                shares_prefix=pooling != "mean",  # which needs every token computed for it
                pooling=pooling,
            )
            for index, prompt in enumerate(prompts)
        ]

    def _room(self, prompt_tokens: int, body: ChatBody | CompletionBody | EmbeddingBody) -> int:
        """Output tokens that a request may make."""
        asked = body.maximum
        capacity = self._backend.capacity
        limit = self._tokenizer.max_sequence_tokens
        limit = min(limit, capacity.max_sequence_tokens) if capacity is not None else limit
        if prompt_tokens + (asked or 1) > limit:
            wanted = f"{prompt_tokens} prompt tokens and at most {asked or 1} of output"
            message = f"a sequence here has at most {limit} tokens; this request has {wanted}; shorten one of them"
            raise RequestError("context_length_exceeded", message)
        room = asked or limit - prompt_tokens
        body.check_room(room)
        return room

    async def _collect(self, answer: Answer) -> web.StreamResponse:
        while not answer.done:
            await answer.changed()
        if answer.failure is not None:
            raise answer.failure
        headers = self._headers(answer.shape.answer_id)
        return web.Response(body=answer.document(), content_type=JSON, headers=headers)

    async def _stream(self, request: web.Request, answer: StreamedAnswer) -> web.StreamResponse:
        # The status line waits for the first text: until then a refusal can still say its own status.
        while not answer.begun:
            await answer.changed()
        if answer.failure is not None:
            raise answer.failure
        chunked = request.version >= (1, 1)
        response = web.StreamResponse(headers=self._headers(answer.shape.answer_id))
        response.content_type = "text/event-stream"
        response.headers["cache-control"] = "no-cache"
        response.headers["x-accel-buffering"] = "no"
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.force_close()
        writer = await response.prepare(request)
        transport = request.transport
        if writer is None or transport is None:
            raise ConnectionResetError("the client is gone")
        answer.on_slow = lambda: self._too_slow(answer, transport)
        answer.attach(transport, request.protocol, chunked=chunked)
        while not answer.ended:
            if answer.holding:
                await writer.drain()
                answer.flush()
            else:
                await answer.changed()
        await response.write_eof()
        return response

    def _too_slow(self, answer: StreamedAnswer, transport: asyncio.Transport) -> None:
        limit = self._http.stream_buffer_bytes
        message = f"more than {limit} bytes of the answer were not read"
        log.info("%s: cancelled: %s", answer.shape.answer_id, message)
        # What was not read by now will not be: the error could only wait behind it.
        transport.abort()
        self._backend.cancel(answer, RequestError("slow_reader", message))


def _new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"
