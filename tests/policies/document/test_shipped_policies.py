"""The files that ship: each loads, explains itself, and is what editors check against."""

from pathlib import Path

import msgspec
import pytest

from policies.document.diff import changes
from policies.document.explain import explain
from policies.document.fairness import Fairness
from policies.document.loading import load_live_policy, load_policy
from policies.document.problems import PolicyError
from policies.document.schema import DecodeStage, Policy, PrefillStage, json_schema
from policies.document.tenants import load_tenants

POLICIES = Path(__file__).resolve().parents[3] / "policies"
REPRODUCTIONS = (
    *("fastertransformer", "orca", "vllm", "sarathi", "sarathi_spf"),
    *("slai", "slai_fcfs_fixed", "slai_spf_fixed", "slai_priority", "rad", "rad_packed", "rad_calibrated"),
)
BY_LENGTHS = ("amin", "amax", "mcsf", "hindsight")
REPLAY_ONLY = ("hindsight",)
SHIPPED = ("fairlead", "fcfs", *REPRODUCTIONS, *BY_LENGTHS)
REGENERATE = (
    'python -c "import msgspec; from policies.document.schema import json_schema; '
    'print(msgspec.json.format(msgspec.json.encode(json_schema())).decode())" > policies/schema.json'
)


def shipped(name: str) -> Policy:
    return load_policy((POLICIES / f"{name}.yaml").read_bytes(), f"{name}.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_loads_under_its_own_name_and_points_editors_at_the_schema(name: str) -> None:
    assert shipped(name).name == name
    first = (POLICIES / f"{name}.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_means_the_same_to_a_plain_yaml_reader(name: str) -> None:
    text = (POLICIES / f"{name}.yaml").read_bytes()
    assert msgspec.yaml.decode(text, type=Policy) == shipped(name)


def test_every_policy_file_is_tested_here() -> None:
    assert {path.stem for path in POLICIES.glob("*.yaml")} == {*SHIPPED, "tenants"}


def test_slai_is_the_papers_dynamic_variant() -> None:
    policy = shipped("slai")
    assert [stage.decode or stage.prefill for stage in policy.batching.stages] == [
        DecodeStage(when="due", order=("last_schedulable_time", "arrival")),
        PrefillStage(from_="started", order=("admission",)),
        PrefillStage(from_="waiting", order=("prompt_tokens",)),
        DecodeStage(when="any", order=("last_schedulable_time", "arrival")),
    ]
    offset = policy.deadlines.offset_steps
    assert (offset.below, offset.above, offset.kv_threshold) == (5, 10, 0.96)
    assert policy.preemption.victim == ("newest_started_prefill", "self")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_live_service_refuses_those_that_need_to_know_the_future_and_no_other(name: str) -> None:
    text = (POLICIES / f"{name}.yaml").read_bytes()
    if name in REPLAY_ONLY:
        with pytest.raises(PolicyError, match="is for replays"):
            load_live_policy(text, f"{name}.yaml")
    else:
        assert load_live_policy(text, f"{name}.yaml") == shipped(name)


@pytest.mark.parametrize("name", [*REPRODUCTIONS, *BY_LENGTHS])
def test_a_papers_policy_runs_with_fairness_off_and_all_that_arrives_is_the_schedulers(name: str) -> None:
    assert shipped(name).fairness == Fairness(kind="fcfs", window_tokens="auto", max_requests=10_000)


def changed(name: str, base: str) -> list[str]:
    """Knobs in which a policy differs from another, but for its name and description."""
    sentences = changes(shipped(base), shipped(name))
    return [sentence.split(":")[0] for sentence in sentences if not sentence.startswith(("name:", "description:"))]


def test_the_variants_differ_from_their_paper_in_what_they_are_named_for() -> None:
    theta = ["deadlines.offset_steps.below", "deadlines.offset_steps.kv_threshold"]
    assert changed("sarathi_spf", "sarathi") == ["batching.stages"]
    assert changed("slai_spf_fixed", "slai") == theta
    assert changed("slai_fcfs_fixed", "slai") == ["batching.stages", *theta]
    assert changed("slai_priority", "slai") == ["batching.stages"]
    assert changed("rad_packed", "rad") == ["batching.stages"]
    assert changed("rad_calibrated", "rad_packed") == ["batching.token_budget"]
    assert changed("fastertransformer", "orca") == ["batching.stages"]
    assert changed("mcsf", "amin") == ["kv.estimate", "kv.reserve"]
    assert changed("amax", "amin") == ["batching.stages", "kv.estimate", "preemption.victim"]


def test_slai_explains_itself_in_words() -> None:
    text = explain(shipped("slai"))
    for sentence in (
        "  paid: the first token within 0.5 s, then never more than 0.1 s between tokens.\n",
        '  tier is "paid": paid.\n  everything else: free.\n',
        "  Requests go in order of arrival, whoever sent them.\n  In flight at most: 10000 requests.\n",
        "  A step has 512 tokens, offered in this order; at most 128 decodes a step and 128 sequences holding KV.\n",
        "  1. Decodes that are due, one token each; the nearest deadline, then the earliest arrival first.\n",
        "  3. Waiting prompts, cut to what is left of the budget; the shortest prompt first.\n",
        "A decode is due 5 step times before its class's gap between tokens runs out, 10 once 96% of the KV blocks",
        "the newest unfinished prompt, else the one that needs the block gives its blocks back",
    ):
        assert sentence in text


def test_an_explanation_says_what_whole_prompts_cost() -> None:
    text = explain(shipped("vllm"))
    assert "1. Waiting prompts, whole; the earliest arrival first. If there were any, nothing else runs" in text
    assert "Prompts longer than 8192 tokens are refused, because no stage cuts them." in text
    assert "come before all of them" not in text
    assert "No stage asks for them" in text


def test_an_explanation_tells_of_the_stage_that_the_scheduler_adds() -> None:
    text = (POLICIES / "sarathi.yaml").read_text().replace("    - prefill: {from: started, order: [admission]}\n", "")
    sentence = "Started prompts that these stages cannot finish come before all of them, cut to the budget."
    assert sentence in explain(load_policy(text.encode()))
    assert sentence not in explain(shipped("sarathi"))


def test_an_explanation_covers_what_the_shipped_files_do_not_use() -> None:
    text = explain(
        load_policy(b"""
version: 1
name: odd
classes: [{name: one, ttft_s: 1, tbt_s: 1}]
fairness: {kind: fcfs, window_tokens: 4096}
routing: {kind: random, seed: 3}
deadlines: {step_time: {ewma: 0.1}}
kv: {admit: max_length, share: all}
batching:
  token_budget: 128
  aging_s: 2.5
  stages:
    - decode: {if: {decoding: {at_least: 128}}, when: due, exclusive: true}
    - prefill: {from: [started, waiting], merge: true, chunk: 64, max_sequences: 1}
    - prefill: {from: started, order: [aged, remaining_prompt_tokens]}
    - decode: {order: []}
""")
    )
    for sentence in (
        "odd\n\n",
        "  everything: one.\n",
        "  Requests go in order of arrival, whoever sent them.\n",
        "  In flight at most: 4096 tokens at a time (prompt and declared output), and 1000 requests.\n",
        "A released request goes to an executor drawn at random.",
        "an average with weight 0.1 for the newest step",
        "the longest it may become",
        "share the KV of what they have in common, whoever sent them",
        "1. When at least 128 sequences are decoding: Decodes that are due",
        "2. Started and waiting prompts together, in chunks of multiples of 64 tokens, at most 1 a step; the earliest",
        "3. Started prompts, cut to what is left of the budget; the oldest of those that are no longer young, then",
        "  A sequence is young until 2.5 s after its arrival.\n",
        "4. All decodes not yet in the step, one token each; the earliest arrival first.",
    ):
        assert sentence in text
    unlimited = text_of_unlimited()
    assert "A prompt token costs 1, one found in the prefix cache nothing, an output token 2." in unlimited
    assert (
        "  In flight at most: what the KV pool holds (prompt and declared output), narrowed while serving" in unlimited
    )
    assert "A step has no limit of tokens; at most" in unlimited
    assert "are refused, because" not in unlimited


def test_an_explanation_tells_what_follows_time() -> None:
    document = b"""
version: 1
name: paced
classes: [{name: one, ttft_s: 1, tbt_s: 1}]
deadlines: {slack: exact, eager_kv: 0.8}
kv: {headroom: {share: 0.025, prompt_tokens: 2000}}
fairness: {window_tokens: {pools: 1.5}}
batching:
  token_budget: {max_step_s: auto, tile: 64}
  stages:
    - decode: {when: due}
    - prefill: {from: waiting, max_remaining_tokens: 300}
    - prefill: {from: [started, waiting]}
    - decode: {}
"""
    text = explain(load_policy(document))
    for sentence in (
        "  A step has as many tokens as take 95% of the time that the most urgent decode's deadline leaves, offered in",
        "with prompts a multiple of 64, 128 at least and 2048 at most, by what the last steps took; at most 128",
        "  2. Waiting prompts with at most 300 tokens left, cut to what is left of the budget; the earliest arriv",
        "  A decode is due when a step after this one, as long as the mean of all steps, would end too late for",
        "  While it has no token it is due at once.\n",
        "  In flight at most: 1.5 times what the KV pool holds (prompt and declared output), and 1000 requests.\n",
        "  Once 80% of the KV blocks are in use, every decode is due.\n",
        "  With more than 2000 tokens to prefill, it leaves another 2.5% of the pool to shorter ones.\n",
    ):
        assert sentence in text
    fixed = explain(load_policy(document.replace(b"auto", b"0.05")))
    assert "  A step has as many tokens as take 0.05 s, offered in this order" in fixed


def text_of_unlimited() -> str:
    return explain(
        load_policy(b"""
version: 1
name: whole
classes: [{name: one, ttft_s: 1, tbt_s: 1}]
classify: [{class: one}]
batching:
  token_budget: none
  stages: [{decode: {}}, {prefill: {from: [started, waiting], chunked: false}}]
""")
    )


def test_the_editors_schema_is_current() -> None:
    current = msgspec.json.format(msgspec.json.encode(json_schema())).decode() + "\n"
    assert (POLICIES / "schema.json").read_text() == current, f"run: {REGENERATE}"


def test_the_example_of_a_tenants_file_loads() -> None:
    tenants = load_tenants((POLICIES / "tenants.yaml").read_bytes()).tenants
    assert [tenant.name for tenant in tenants] == ["acme", "students"]
