"""Anthropic's endpoints: POST /v1/messages and /v1/messages/count_tokens.

Owns what they do with their bodies; everything behind it is what serves a chat.
"""

import time

from aiohttp import web

from services.gateway.grammars import Grammars
from services.gateway.intake import Caller, Intake
from services.gateway.message_bodies import CountBody, read_count, read_messages
from services.gateway.message_responses import MessageShape
from services.gateway.prompts import Prompts
from services.gateway.replies import MESSAGES, Replies, new_id
from services.gateway.serving import Prepared, Serving
from services.gateway.streams import Answer, StreamedAnswer
from services.gateway.structure import Structure


class MessagesApi:
    """Handlers of one model."""

    def __init__(
        self, model: str, *, intake: Intake, prompts: Prompts, grammars: Grammars, serving: Serving, replies: Replies
    ) -> None:
        self._model = model
        self._intake = intake
        self._prompts = prompts
        self._grammars = grammars
        self._serving = serving
        self._replies = replies

    def routes(self) -> list[web.RouteDef]:
        """For the application."""
        return [
            web.post(MESSAGES, self._serving.counted(self._intake.caller, self._message)),
            web.post(f"{MESSAGES}/count_tokens", self._count),
        ]

    async def _message(self, request: web.Request, caller: Caller) -> Prepared:
        received_ns = time.monotonic_ns()
        body = read_messages(await self._intake.body(request))
        self._intake.check_room(body.model, 1, "messages")
        structure = body.structure()
        prompt = await self._prompt(caller, body, structure)
        submits = self._intake.submits(caller, body, [prompt], received_ns, grammar=structure.grammar())
        shape = MessageShape(answer_id=new_id("msg_"), model=self._model, calls=bool(structure.callable_tools))
        kind = StreamedAnswer if body.stream else Answer
        return Prepared(submits, kind(shape, len(prompt)), body.stops)

    async def _count(self, request: web.Request) -> web.StreamResponse:
        caller = self._intake.caller(request)
        with self._serving.under_way(caller[1].id):
            body = read_count(await self._intake.body(request))
            self._intake.check_model(body.model)
            prompt = await self._prompt(caller, body, body.structure())
        return self._replies.json(request, {"input_tokens": len(prompt)})

    async def _prompt(self, caller: Caller, body: CountBody, structure: Structure) -> list[int]:
        grammar = structure.grammar()
        if grammar:
            await self._grammars.check(structure, grammar, caller[0].name)
        return await self._prompts.chat(body.for_template(), structure.for_template())
