"""Chat templates are rendered in a process of their own, which a bad one may end and nobody else."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from engine.interface import EngineError
from services.errors import RequestError
from services.gateway import rendering as module
from services.gateway.rendering import Rendering

CHAT = [{"role": "user", "content": "Hello"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ON_DEMAND = f"{{% if messages[0].content == 'loop' %}}{ENDLESS}{{% endif %}}{{{{ messages[0].content }}}}"
LARGE = "{% if messages[0].content == 'large' %}{{ 'x' * 10**10 }}{% endif %}{{ messages[0].content }}"


@pytest.fixture
async def renders(checkpoint: Path, tmp_path: Path) -> AsyncIterator[Callable[[str], Rendering]]:
    """What renders a template."""
    made: list[Rendering] = []

    def make(template: str, max_characters: int = 1000) -> Rendering:
        for file in checkpoint.glob("*.json"):
            shutil.copy(file, tmp_path)
        (tmp_path / "chat_template.jinja").write_text(template)
        made.append(Rendering(tmp_path, max_characters))
        return made[-1]

    yield make
    for each in made:
        await each.close()


def says(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


async def refused(rendering: Rendering, content: str) -> str:
    with pytest.raises(RequestError) as caught:
        await rendering.render(says(content), [])
    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")
    return caught.value.message


async def test_conversations_are_rendered_in_order_and_a_wrong_one_is_refused(
    renders: Callable[[str], Rendering],
) -> None:
    rendering = renders(
        "{% if messages[0].content == 'no' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    )
    await rendering.start()
    texts = [str(number) for number in range(50)]
    assert await asyncio.gather(*(rendering.render(says(text), []) for text in texts)) == texts
    assert "refuses these messages: no" in await refused(rendering, "no")
    assert "come to 1001 characters; at most 1000" in await refused(rendering, "x" * 1001)
    assert await rendering.render(says("\u2028 \n 東京"), []) == "\u2028 \n 東京"


async def test_a_template_that_loops_refuses_the_one_and_serves_those_behind_it(
    renders: Callable[[str], Rendering], monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering = renders(ON_DEMAND)
    await rendering.start()
    first = asyncio.ensure_future(refused(rendering, "loop"))
    await asyncio.sleep(0)
    assert await asyncio.gather(*(rendering.render(says(text), []) for text in "abc")) == ["a", "b", "c"]
    assert await first == f"messages: {module.TOO_COSTLY}"
    monkeypatch.setattr(module, "MAX_WAITING", 0)
    with pytest.raises(RequestError, match="0 conversations wait"):
        await rendering.render(CHAT, [])


async def test_a_template_that_takes_all_memory_is_stopped(renders: Callable[[str], Rendering]) -> None:
    rendering = renders(LARGE)
    await rendering.start()
    assert "cannot cope" in await refused(rendering, "large")
    assert await rendering.render(says("small"), []) == "small"


async def test_a_process_that_was_killed_is_replaced(renders: Callable[[str], Rendering]) -> None:
    rendering = renders(ON_DEMAND)
    await rendering.start()
    assert rendering._process is not None
    rendering._process.send_signal(signal.SIGKILL)
    await rendering._process.wait()
    assert await rendering.render(says("a"), []) == "a"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [("{% for %}", "the chat template cannot be read"), ("{{ 9 ** (9 ** 9) }}", "takes more than 1 s to compile")],
)
async def test_a_template_that_cannot_be_compiled_is_said_at_the_start(
    template: str, sentence: str, renders: Callable[[str], Rendering]
) -> None:
    with pytest.raises(EngineError, match=sentence):
        await renders(template).start()


async def test_a_process_that_cannot_be_started_again_fails_who_waits(renders: Callable[[str], Rendering]) -> None:
    rendering = renders(ON_DEMAND)
    await rendering.start()
    rendering._command = ("-c", "raise SystemExit(3)")
    await rendering._end()
    with pytest.raises(RequestError, match="the gateway's log says why"):
        await rendering.render(CHAT, [])


async def test_a_model_without_a_template_says_what_to_use(tmp_path: Path) -> None:
    rendering = Rendering(tmp_path, 1000)
    await rendering.start()
    assert "no chat template; send a prompt to /v1/completions" in await refused(rendering, "a")
