"""Whatever valid policy is written and whatever happens, plans can be run and every request ends exactly once."""

import random

import msgspec
import pytest

from policies.document.loading import load_policy
from policies.document.problems import PolicyError
from policies.events import (
    CancelRequested,
    GatewayLost,
    GatewayResumed,
    GatewayStalled,
    StopFound,
)

LENGTH_KEYS = ["predicted_output", "most_predicted_output", "predicted_kv_volume"]
SHARED_KEYS = ["arrival", "admission", "prompt_tokens", "class_priority", "aged", *LENGTH_KEYS]
PROMPT_KEYS = [*SHARED_KEYS, "remaining_prompt_tokens"]
CLASSES = ["paid", "free", "gold"]
VICTIMS = [
    ["self"],
    ["newest"],
    ["newest_decode", "newest"],
    ["newest_started_prefill", "self"],
    ["newest_started_prefill", "newest_decode"],
    ["least_predicted_output", "self"],
]
SURVIVE = ["refine", {"support": [5, 20]}]
PREDICTIONS = [
    {"kind": "conformal"},
    {"kind": "constant", "interval": {"lower": 2, "upper": 30}},
    {"kind": "distribution", "prior": {"kind": "geometric", "mean": 12}, "survive": {"quantile": 0.2}},
    {"kind": "oracle", "error": 0.5, "position": "random"},
]


def stage_extras(draw):
    extras = {"exclusive": draw.random() < 0.2}
    if draw.random() < 0.25:
        extras["if"] = {"decoding": {"at_least": draw.randint(0, 4)}}
    return extras


def decode_stage(draw, when):
    keys = [*SHARED_KEYS, "last_schedulable_time"]
    return {"decode": {"when": when, "order": draw.sample(keys, draw.randint(0, 2))}}


def prefill_stage(draw, budget, sources):
    stage = {"from": draw.choice(sources), "order": draw.sample(PROMPT_KEYS, draw.randint(0, 2))}
    if isinstance(stage["from"], list):
        stage["merge"] = draw.random() < 0.4
    if budget == "none" or (isinstance(budget, int) and draw.random() < 0.3):
        stage["chunked"] = False
    elif draw.random() < 0.3:
        stage["chunk"] = draw.randint(1, budget if isinstance(budget, int) else budget["min"])
    if draw.random() < 0.3:
        stage["max_sequences"] = draw.randint(1, 3)
    return {"prefill": stage}


def paced_budget(draw):
    budget = {"tile": draw.choice([1, 4, 16]), "min": draw.choice([1, 4, 16]), "max": draw.choice([16, 64, 512])}
    return budget | draw.choice([{"max_step_s": 0.02}, {"share": 0.5}, {}])


def exact_slack(draw):
    return {"slack": "exact", "eager_kv": draw.choice([0, 0.5, 1])}


def slack_in_steps(draw):
    return {
        "offset_steps": {
            "below": draw.choice([0, 2, 5]),
            "above": draw.choice([0, 5, 20]),
            "kv_threshold": draw.choice([0, 0.5, 0.96, 1]),
        }
    }


def any_document(draw):
    budget = draw.choice([4, 8, 16, 64, 512, "none", paced_budget(draw), paced_budget(draw)])
    exact = isinstance(budget, dict) or draw.random() < 0.3
    sources = ["waiting", ["started", "waiting"]]
    stages = [decode_stage(draw, "any"), prefill_stage(draw, budget, sources)]
    for _ in range(draw.randint(0, 3)):
        stage = draw.choice([decode_stage(draw, "due"), prefill_stage(draw, budget, [*sources, "started"])])
        next(iter(stage.values())).update(stage_extras(draw))
        if "prefill" in stage and draw.random() < 0.3:
            stage["prefill"]["max_remaining_tokens"] = draw.randint(1, 60)
        stages.append(stage)
    draw.shuffle(stages)
    classes = draw.sample(CLASSES, draw.randint(1, 3))
    aging = {"aging_s": draw.choice([0, 0.05, 1])} if '"aged"' in msgspec.json.encode(stages).decode() else {}
    return {
        "version": 1,
        "name": "any",
        "classes": [{"name": name, "ttft_s": 1, "tbt_s": draw.choice([0, 0.02, 0.1, 0.5])} for name in classes],
        "batching": {
            "token_budget": budget,
            "max_sequences": draw.choice([1, 2, 4, 8, 128]),
            "max_decodes": draw.choice([1, 2, 4, 8, 128]),
            "stages": stages,
            **aging,
        },
        "deadlines": {
            "step_time": draw.choice(["mean", {"ewma": 0.3}]),
            **(exact_slack(draw) if exact else slack_in_steps(draw)),
        },
        "kv": {
            "admit": draw.choice(["prompt", "max_length", "future"]),
            "watermark": draw.choice([0, 0.01, 0.1, 0.3]),
            **draw.choice([{}, {"headroom": {"share": draw.choice([0, 0.2, 0.7]), "prompt_tokens": 20}}]),
        },
        "preemption": {"victim": draw.choice(VICTIMS), "requeue": draw.choice(["head", "ordered"])},
        **prediction(draw),
    }


def prediction(draw):
    """Nothing, or a section; where nothing reads it, the check refuses the document."""
    if draw.random() < 0.4:
        return {}
    section = dict(draw.choice(PREDICTIONS))
    section.setdefault("survive", draw.choice(SURVIVE))
    return {"prediction": section}


def memory(draw, document):
    """More knobs of KV memory."""
    kv, preemption = document["kv"], document["preemption"]
    kv["convention"] = draw.choice(["engine", "engine", "paper"])
    if kv["admit"] == "future":
        kv["reserve"] = draw.choice([0, 0.1, 0.5])
    if draw.random() < 0.5:
        preemption["max_per_sequence"] = draw.choice([1, 2, 4])
    return document


def any_policy(draw):
    while True:
        document = msgspec.yaml.encode(memory(draw, any_document(draw)))
        try:
            load_policy(document)
        except PolicyError:
            continue  # chance wrote something that the check refuses
        return document


class Story:
    """A world in which things happen at random, from a seed."""

    def __init__(self, world, seed):
        self.draw = random.Random(seed)  # noqa: S311  a workload, not a secret
        self.policies = [any_policy(self.draw) for _ in range(3)]
        self.steps_in_flight = self.draw.choice([1, 2])
        self.world = world(self.policies[0], first_token=self.draw.choice(["last_chunk", "next_decode"]))
        self.released = {}
        self.next_id = 0
        self.join(0)

    def join(self, executor):
        blocks = self.draw.randint(10, 60)
        limits = {"max_steps_in_flight": self.steps_in_flight, "max_sequence_tokens": 120}
        self.world.join(executor, num_blocks=blocks, block_tokens=4, **limits)

    def release(self):
        draw, choices = self.draw, self.draw.choice([1, 1, 1, 2, 3])
        sizes = {"prompt": draw.randint(1, 60), "output": draw.randint(1, 40), "num_choices": choices}
        options = {"slo_class": draw.choice(CLASSES), "gateway": draw.choice([0, 1]), "waited_s": draw.random()}
        self.released[self.next_id] = choices
        self.world.release(self.next_id, **sizes, **options)
        self.next_id += choices

    def happen(self):
        draw, world = self.draw, self.world
        chance = draw.random()
        if chance < 0.25:
            self.release()
        elif chance < 0.36 and self.released:
            request = draw.choice(list(self.released))
            sequence = request + draw.randrange(self.released[request])
            cancel = CancelRequested(request=request)
            stop = StopFound(sequence=sequence, output_tokens=world.tokens.get(sequence, 0))
            world.send(draw.choice([cancel, stop]))
        elif chance < 0.39:
            world.apply(draw.choice(self.policies))
        elif chance < 0.41 and world.executors:
            world.lose(draw.choice(list(world.executors)))
        elif chance < 0.44:
            self.join_missing(draw.choice([0, 1]))
        elif chance < 0.505:
            kinds = [GatewayStalled] * 6 + [GatewayResumed] * 6 + [GatewayLost]
            world.send(draw.choice(kinds)(gateway=draw.choice([0, 1])))
        elif chance < 0.53 and world.wake_at is not None:
            world.wake()
        elif world.busy():
            executor = draw.choice(world.busy())
            sampled = world.executors[executor].steps[0][1]
            ended = tuple(sequence for sequence in sampled if draw.random() < 0.03)
            world.end_step(executor, ended=ended, step_s=draw.choice([0.001, 0.01, 0.05]))

    def join_missing(self, executor):
        if executor not in self.world.executors:
            self.join(executor)

    def end(self):
        for number in (0, 1):
            self.join_missing(number)
            self.world.send(GatewayResumed(gateway=number))
        self.world.drain()


@pytest.mark.parametrize("seed", range(24))
def test_every_request_ends_once_under_any_policy(world, seed):
    story = Story(world, seed)
    for _ in range(100):
        story.happen()
    story.end()
    assert set(story.world.finished) == set(story.released)
    assert story.world.used_blocks() == 0


HEAD = "version: 1\nname: t\nclasses: [{name: free, ttft_s: 5, tbt_s: 0.5}]\n"


def test_a_merged_stage_finishes_what_a_blocked_shorter_prompt_waits_for(world):
    w = world(
        HEAD.encode()
        + b"""
batching:
  token_budget: 16
  max_sequences: 1
  stages:
    - prefill: {from: [started, waiting], merge: true, order: [prompt_tokens]}
    - decode: {when: any}
"""
    )
    w.join()
    w.release(1, prompt=64, output=2)
    w.release(2, prompt=4, output=2)
    w.drain()
    assert [w.finished[request].outcome for request in (1, 2)] == ["finished", "finished"]


def test_a_prompt_that_only_a_conditional_stage_would_go_on_with_is_carried_over(world):
    w = world(
        HEAD.encode()
        + b"""
batching:
  token_budget: 16
  stages:
    - prefill: {from: waiting}
    - prefill: {from: started, chunked: false}
    - prefill: {from: started, if: {decoding: {at_least: 2}}}
    - decode: {when: any}
"""
    )
    w.join()
    w.release(1, prompt=64, output=2)
    w.drain()
    assert w.finished[1].outcome == "finished"
    assert (-1) in w.plans[1].plan.stages


def test_a_second_stage_of_due_decodes_may_follow_one_that_started_a_sequence(world):
    w = world(
        HEAD.encode()
        + b"""
batching:
  token_budget: 16
  max_decodes: 2
  stages:
    - decode: {when: due}
    - prefill: {from: waiting, max_sequences: 1}
    - decode: {when: due}
    - decode: {when: any}
deadlines: {offset_steps: {below: 1000, above: 1000}}
"""
    )
    w.join(max_steps_in_flight=1)
    for request in range(1, 5):
        w.release(request, prompt=4, output=20)
    w.drain()
    assert all(w.tokens[request] == 20 for request in range(1, 5))
