"""What was computed once is found again, by its own tenant alone, and changes no answer."""

import openai
import pytest
from deployed import House
from openai.types import Completion

PROMPT = "def fibonacci(number):\n" * 12
OUTPUT = 24


async def complete(client: openai.AsyncOpenAI, prompt: str, seed: int = 1, n: int = 1) -> Completion:
    return await client.completions.create(
        model="demo",
        prompt=prompt,
        n=n,
        seed=seed,
        max_tokens=OUTPUT,
        temperature=0.8,
        extra_body={"ignore_eos": True},
    )


def found(answer: Completion) -> int:
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


@pytest.mark.slow
async def test_a_prompt_asked_again_is_found_by_its_own_tenant_and_answered_the_same(shared: House) -> None:
    acme, globex = (
        openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key=shared.add_key(tenant, "free"), max_retries=0)
        for tenant in ("acme", "globex")
    )
    cold = await complete(acme, PROMPT)
    assert cold.usage is not None
    length = cold.usage.prompt_tokens
    again, stranger = await complete(acme, PROMPT), await complete(globex, PROMPT)
    assert [found(answer) for answer in (cold, again, stranger)] == [0, length - 1, 0]
    assert cold.choices[0].text == again.choices[0].text == stranger.choices[0].text

    several = await complete(globex, PROMPT, n=4)
    assert found(several) == length - 1
    assert several.choices[0].text == cold.choices[0].text
    assert len({choice.text for choice in several.choices}) == 4

    # The next turn: the prompt, its answer, and more.
    longer = PROMPT + cold.choices[0].text + "\n# so it goes on"
    assert 0 < found(await complete(acme, longer)) < length + OUTPUT
    for client in (acme, globex):
        await client.close()
