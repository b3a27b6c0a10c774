"""Embeddings through the whole house: transformers' hidden states, whatever else is served meanwhile."""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
from deployed import House

from services.settings import Deployment

CLOSE = 1e-5


def expected(folder: Path, inputs: list[list[int]]) -> dict[str, list[Any]]:
    """By pooling."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    vectors: dict[str, list[Any]] = {"mean": [], "last": []}
    with torch.no_grad():
        for tokens in inputs:
            states = model(torch.tensor([tokens])).last_hidden_state[0].double()
            for pooling, vector in (("mean", states.mean(0)), ("last", states[-1])):
                vectors[pooling].append(vector / vector.norm())
    return vectors


async def test_embeddings_are_those_of_transformers_beside_running_completions(shared: House) -> None:
    import torch

    deployment = json.loads((shared.run_folder / "deployment.json").read_text())
    folder = Deployment(model=deployment["model"], data=deployment["data"]).model_folder
    # Longer than a step's token budget, a beginning of it, and one token.
    long = [5 + index * 37 % 2000 for index in range(700)]
    inputs = [long, long[:333], [7]]
    client = openai.AsyncOpenAI(api_key=shared.key, base_url=f"{shared.url}/v1", max_retries=0, timeout=60)

    async def embed(pooling: str) -> list[Any]:
        answer = await client.embeddings.create(model="demo", input=inputs, extra_body={"pooling": pooling})
        assert answer.usage.prompt_tokens == sum(map(len, inputs))
        return [torch.tensor(each.embedding, dtype=torch.float64) for each in answer.data]

    completions = [
        client.completions.create(model="demo", prompt=long[:100], max_tokens=40, extra_body={"ignore_eos": True})
        for _ in range(3)
    ]
    async with client:
        *texts, means, lasts, again = await asyncio.gather(*completions, embed("mean"), embed("last"), embed("mean"))
    assert all(text.usage.completion_tokens == 40 for text in texts)
    computed = expected(folder, inputs)
    for ours, pooling in ((means, "mean"), (lasts, "last"), (again, "mean")):
        for vector, right in zip(ours, computed[pooling], strict=True):
            assert (vector - right).abs().max() < CLOSE
    assert all((first == second).all() for first, second in zip(means, again, strict=True))
