"""The HTTP face: routes, OpenAI's endpoints, health, and the policy in force.

Owns what each endpoint does with its body; what all of them check is the intake's, how they answer is the serving's.
"""

import time
from typing import Any

from aiohttp import web

from engine.tokenizer import Tokenizer
from services.gateway.api_messages import MessagesApi
from services.gateway.auth import Keys
from services.gateway.backend import Backend
from services.gateway.console_api import Console
from services.gateway.embeddings import EmbeddingAnswer, read_embedding
from services.gateway.grammars import Grammars
from services.gateway.intake import ADMIN, Caller, Intake
from services.gateway.live import Live
from services.gateway.logprobs import ChatForm, CompletionForm
from services.gateway.prompts import Prompts
from services.gateway.rendering import Rendering
from services.gateway.replies import Replies, new_id
from services.gateway.reports import Reports
from services.gateway.requests import Body, ChatBody, CompletionBody, read_chat, read_completion
from services.gateway.responses import ChatShape, OpenAiShape
from services.gateway.serving import Prepared, Serving
from services.gateway.streams import Answer, StreamedAnswer
from services.gateway.structure import ANY_TEXT, Structure
from services.settings import HttpSettings
from services.telemetry.keeper_link import KeeperLink
from services.troubles import only_names


class Api:
    """Handlers over one backend."""

    def __init__(
        self,
        http: HttpSettings,
        model: str,
        *,
        tokenizer: Tokenizer,
        grammars: Grammars,
        rendering: Rendering,
        keys: Keys,
        backend: Backend,
        keeper: KeeperLink | None,
    ) -> None:
        self._http = http
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = Prompts(tokenizer, rendering, http.max_prompt_characters)
        self._grammars = grammars
        self._backend = backend
        self._replies = Replies(backend.revisions, http.max_head_bytes)
        self._serving = Serving(backend, self._replies, http)
        self._started = int(time.time())
        self.intake = Intake(http, model, tokenizer, keys, backend)
        self.live = Live(model, backend, keeper)
        self._console = Console(self.intake, self._replies, self.live, keeper)
        self._messages = MessagesApi(
            model,
            intake=self.intake,
            prompts=self._prompts,
            grammars=grammars,
            serving=self._serving,
            replies=self._replies,
        )

    def application(self) -> web.Application:
        """Routes and the middleware that makes every error JSON."""
        reports = Reports(self._backend.questions, self.intake.anyone, self._replies)
        app = web.Application(middlewares=[self._replies.errors])
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._serving.counted(self.intake.caller, self._chat)),
                web.post("/v1/completions", self._serving.counted(self.intake.caller, self._complete)),
                web.post("/v1/embeddings", self._serving.counted(self.intake.caller, self._embed)),
                *self._messages.routes(),
                *self._console.routes(),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{model:.+}", self._one_model),
                web.get("/v1/fairlead/policy", self._policy),
                web.get("/v1/fairlead/fairness", reports.fairness),
                web.get("/v1/fairlead/usage", reports.usage),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        return app

    def missing(self) -> list[str]:
        """Why this gateway is not ready, in words; empty when it is."""
        return ["draining"] if self.intake.draining else self._backend.missing()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self.intake.anyone(request)
        return self._replies.json(request, {"object": "list", "data": [self._model_card()]})

    async def _one_model(self, request: web.Request) -> web.StreamResponse:
        self.intake.anyone(request)
        self.intake.check_model(request.match_info["model"])
        return self._replies.json(request, self._model_card())

    def _model_card(self) -> dict[str, Any]:
        card = {"id": self._model, "object": "model", "created": self._started, "owned_by": "fairlead"}
        return card | {"max_model_len": self._tokenizer.max_sequence_tokens}

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        return self._replies.json(request, {"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        reasons = self.missing()
        operator = self.intake.is_operator(request)
        revisions = self._backend.revisions
        document = {
            "ready": not reasons,
            "reasons": reasons,
            "degraded": {
                name: troubles if operator else only_names(troubles)
                for name, troubles in self._backend.degraded.items()
            },
            "policy": revisions.told(revisions.now, whole=operator),
            "last_save": revisions.told(revisions.last_save, whole=operator),
            "model": self._model,
            "requests": len(self._backend.running),
        }
        return self._replies.json(request, document, status=503 if reasons else 200)

    async def _policy(self, request: web.Request) -> web.StreamResponse:
        _, key = self.intake.anyone(request)
        revisions, operator = self._backend.revisions, key.scope == ADMIN
        document = {
            "now": revisions.told(revisions.now, whole=operator),
            "history": [revisions.told(each, whole=operator) for each in revisions.history],
            "last_rejection": revisions.told(revisions.last_rejection, whole=operator),
        }
        return self._replies.json(request, document)

    # --- completions --------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request, caller: Caller) -> Prepared:
        received_ns = time.monotonic_ns()
        body = read_chat(await self.intake.body(request))
        self._check(body, 1)
        structure = body.structure()
        grammar = structure.grammar()
        if grammar:
            await self._grammars.check(structure, grammar, caller[0].name)
        messages = [message.for_template() for message in body.messages]
        prompt = await self._prompts.chat(messages, structure.for_template())
        return self._prepared(caller, body, [prompt], received_ns, structure)

    async def _complete(self, request: web.Request, caller: Caller) -> Prepared:
        received_ns = time.monotonic_ns()
        body = read_completion(await self.intake.body(request))
        given = body.prompts
        self._check(body, len(given))
        prompts = await self._prompts.each(given, "prompt")
        return self._prepared(caller, body, prompts, received_ns)

    async def _embed(self, request: web.Request, caller: Caller) -> Prepared:
        received_ns = time.monotonic_ns()
        body = read_embedding(await self.intake.body(request))
        given = body.inputs
        self.intake.check_room(body.model, len(given), "input")
        inputs = await self._prompts.each(given, "input")
        submits = self.intake.submits(caller, body, inputs, received_ns, pooling=body.pooling)
        shape = OpenAiShape(answer_id=new_id("embd-"), created=int(time.time()), model=self._model, include_usage=False)
        answer = EmbeddingAnswer(
            shape, sum(map(len, inputs)), model=self._model, encoding=body.encoding_format or "float"
        )
        return Prepared(submits, answer)

    def _check(self, body: Body, num_prompts: int) -> None:
        """What can be said before anything is tokenised."""
        self.intake.check_room(body.model, num_prompts, "prompt")
        body.check_tokens(self._tokenizer.vocabulary_size)
        self.intake.check_choices(body.choices)

    def _prepared(
        self,
        caller: Caller,
        body: ChatBody | CompletionBody,
        prompts: list[list[int]],
        received_ns: int,
        structure: Structure = ANY_TEXT,
    ) -> Prepared:
        submits = self.intake.submits(caller, body, prompts, received_ns, grammar=structure.grammar())
        chat = isinstance(body, ChatBody)
        shape = (ChatShape if chat else OpenAiShape)(
            answer_id=new_id("chatcmpl-" if chat else "cmpl-"),
            created=int(time.time()),
            model=self._model,
            include_usage=body.include_usage,
            calls=bool(structure.callable_tools),
            logprobs=None if body.num_logprobs is None else (ChatForm if chat else CompletionForm)(self._tokenizer),
        )
        kind = StreamedAnswer if body.stream else Answer
        return Prepared(submits, kind(shape, sum(map(len, prompts))), body.stops)
