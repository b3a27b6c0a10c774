"""The fast planner gives the plan of the definition: a naive planner, written from the specification, beside it."""

from math import ceil, floor, inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.document.loading import load_policy
from policies.lifecycle import State

HEAD = "version: 1\nname: t\nclasses: [{name: paid, ttft_s: 1, tbt_s: 0.1}, {name: free, ttft_s: 5, tbt_s: 0.5}]\n"
RAD = """
batching:
  token_budget: 8
  max_sequences: 8
  max_decodes: 8
  stages:
    - decode:  {if: {decoding: {at_least: 4}}, when: any, order: [admission], exclusive: true}
    - prefill: {from: [started, waiting], chunk: 8, max_sequences: 1, order: [arrival], exclusive: true}
    - decode:  {when: any, order: [admission]}
preemption: {victim: [newest_started_prefill, newest_decode]}
"""
MERGED = """
batching:
  token_budget: 24
  max_sequences: 6
  max_decodes: 3
  stages:
    - prefill: {from: [started, waiting], merge: true, order: [class_priority, prompt_tokens], max_sequences: 2}
    - decode:  {when: due, order: [last_schedulable_time, arrival]}
    - decode:  {when: any, order: [class_priority, prompt_tokens]}
deadlines: {step_time: {ewma: 0.3}, offset_steps: {below: 3, above: 20, kv_threshold: 0.5}}
preemption: {victim: [newest_started_prefill, newest, self]}
"""
SMALL_SLAI = """
batching:
  token_budget: 20
  max_sequences: 7
  max_decodes: 4
  stages:
    - decode:  {when: due, order: [last_schedulable_time, arrival]}
    - prefill: {from: started, order: [admission]}
    - prefill: {from: waiting, order: [prompt_tokens]}
    - decode:  {when: any, order: [last_schedulable_time, arrival]}
preemption: {victim: [newest_started_prefill, self]}
"""
TWO_DUE = """
batching:
  token_budget: 16
  max_sequences: 7
  max_decodes: 5
  stages:
    - decode:  {when: due, order: [arrival], if: {decoding: {at_least: 2}}}
    - prefill: {from: waiting, order: [class_priority], max_sequences: 1}
    - prefill: {from: [started, waiting], merge: true, chunked: false, order: [arrival]}
    - decode:  {when: due, order: [prompt_tokens]}
    - prefill: {from: started, order: [admission]}
    - decode:  {when: any, order: [admission]}
preemption: {victim: [newest]}
"""
AGING = """
batching:
  token_budget: 24
  max_sequences: 6
  max_decodes: 3
  aging_s: 0.15
  stages:
    - decode:  {when: due, order: [aged, last_schedulable_time]}
    - prefill: {from: [started, waiting], merge: true, order: [class_priority, aged, remaining_prompt_tokens]}
    - prefill: {from: waiting, order: [aged, prompt_tokens], chunked: false}
    - decode:  {when: any, order: [class_priority, aged, prompt_tokens]}
deadlines: {step_time: {ewma: 0.3}, offset_steps: {below: 3, above: 20, kv_threshold: 0.5}}
preemption: {victim: [newest_started_prefill, newest, self]}
"""
SHORT_LANE = """
batching:
  token_budget: 16
  max_sequences: 6
  max_decodes: 5
  stages:
    - decode:  {when: due, order: [last_schedulable_time]}
    - prefill: {from: [started, waiting], merge: true, order: [remaining_prompt_tokens], max_remaining_tokens: 20}
    - prefill: {from: started, order: [admission], max_remaining_tokens: 9, max_sequences: 1}
    - decode:  {when: any, order: [arrival]}
    - prefill: {from: [started, waiting], order: [arrival]}
kv: {watermark: 0.05, headroom: {share: 0.3, prompt_tokens: 20}}
preemption: {victim: [newest_started_prefill, newest, self]}
"""
POLICIES = {
    "short_lane": SHORT_LANE,
    "aging": AGING,
    "two_due": TWO_DUE,
    "rad": RAD,
    "merged": MERGED,
    "small_slai": SMALL_SLAI,
}


class Seq:
    """A sequence as the specification sees it: an object with fields."""

    def __init__(self, real, executor):
        slot = real.slot
        columns = executor.columns
        holds = real.life.state in (State.PREFILL, State.DECODE, State.ENDING)
        self.id, self.number, self.arrival = real.id, real.number, real.arrived_s
        self.resumed, self.priority = real.resumed, real.priority
        self.state = real.life.state
        self.total = real.tokens_to_prefill
        self.aged = inf
        self.prompt_left = real.prompt_left
        self.admission = real.admitted or inf
        self.blocks = len(columns.table(slot)) if holds else 0
        self.position = int(columns.position[slot]) if holds else 0
        self.deadline = float(columns.deadline_s[slot]) if self.state is State.DECODE else inf

    def key(self, order):
        fields = {
            "arrival": self.arrival,
            "admission": self.admission,
            "prompt_tokens": self.total,
            "class_priority": self.priority,
            "last_schedulable_time": self.deadline,
            "remaining_prompt_tokens": self.prompt_left,
            "aged": self.aged,
        }
        return (*[fields[name] for name in order], self.number)


class Oracle:
    """The plan of the specification, section 3, line by line."""

    def __init__(self, executor, policy):
        self.policy, self.batching = policy, policy.batching
        self.total, self.size = executor.blocks.num_blocks, executor.blocks.block_tokens
        self.sequences = [Seq(real, executor) for real in executor.routed.values()]
        self.free = executor.blocks.num_free
        self.watermark = floor(policy.kv.watermark * self.total)
        self.headroom = policy.kv.headroom

    def holders(self):
        return [s for s in self.sequences if s.state in (State.PREFILL, State.DECODE, State.ENDING)]

    def build(self, now):
        left, decodes, self.plan, self.barred = self.batching.token_budget, 0, [], []
        decoding = sum(s.state is State.DECODE for s in self.sequences)
        for s in self.sequences:
            s.aged = s.arrival if s.arrival <= now - self.batching.aging_s else inf
        for index, stage in enumerate(self.batching.stages):
            part = stage.decode or stage.prefill
            if left == 0:
                break
            if part.if_ and decoding < part.if_.decoding.at_least:
                continue
            before, taken = len(self.plan), 0
            if stage.decode:
                ready = [s for s in self.sequences if s.state is State.DECODE]
                for s in sorted(ready, key=lambda s: s.key(part.order)):
                    if left == 0 or decodes == self.batching.max_decodes:
                        break
                    if s in self.barred or self.planned(s) or (part.when == "due" and s.deadline > now):
                        continue
                    if not self.make_room(s):
                        continue
                    self.plan.append((index, s, 1))
                    left, decodes = left - 1, decodes + 1
            else:
                waiting_ended = False
                for s in self.candidates(part):
                    if left == 0 or taken == part.max_sequences:
                        break
                    starts = s.state is State.WAITING
                    if starts and waiting_ended:
                        continue
                    q = min(s.prompt_left, left)
                    if not part.chunked and q < s.prompt_left:
                        q = 0
                    if part.chunk and q < s.prompt_left:
                        q = part.chunk * floor(q / part.chunk)
                    need = ceil(s.total / self.size)
                    full = len(self.holders()) >= self.batching.max_sequences
                    kept = self.watermark
                    if self.headroom and s.total > self.headroom.prompt_tokens and not s.resumed:
                        kept += floor(self.headroom.share * self.total)
                    if q == 0 or (starts and (full or self.free - need < (kept if self.holders() else 0))):
                        if starts and part.merge:
                            waiting_ended = True  # the started ones behind it go on: they hold what it waits for
                            continue
                        break
                    if starts:
                        self.free -= need
                        s.blocks, s.state = need, State.PREFILL
                    self.plan.append((index, s, q))
                    left, taken = left - q, taken + 1
            if part.exclusive and len(self.plan) > before:
                break
        return sorted((index, s.id, q) for index, s, q in self.plan)

    def planned(self, s):
        return any(s is other for _, other, _ in self.plan)

    def candidates(self, part):
        sources = (part.from_,) if isinstance(part.from_, str) else part.from_
        longest = part.max_remaining_tokens or inf
        usable = [
            s for s in self.sequences if not self.planned(s) and s not in self.barred and s.prompt_left <= longest
        ]
        waiting = [s for s in usable if s.state is State.WAITING and "waiting" in sources]
        started = [s for s in usable if s.state is State.PREFILL and "started" in sources]

        def waiting_key(s):
            return (0, s.arrival, s.number) if s.resumed else (1, *s.key(part.order))

        if part.merge:
            return sorted(started + waiting, key=lambda s: waiting_key(s) if s in waiting else (1, *s.key(part.order)))
        return sorted(started, key=lambda s: s.key(part.order)) + sorted(waiting, key=waiting_key)

    def make_room(self, s):
        if s.position < s.blocks * self.size:
            return True
        while self.free == 0:
            victim = self.victim(s)
            self.free += victim.blocks
            victim.blocks, victim.state = 0, State.RETURNING
            self.barred.append(victim)
            if victim is s:
                return False
        self.free -= 1
        s.blocks += 1
        return True

    def victim(self, s):
        usable = [o for o in self.holders() if not self.planned(o) and o.state is not State.ENDING]
        for kind in self.policy.preemption.victim:
            if kind == "self":
                return s
            chosen = {
                "newest_started_prefill": [o for o in usable if o.state is State.PREFILL],
                "newest": usable,
                "newest_decode": [o for o in usable if o.state is State.DECODE],
            }[kind]
            if chosen:
                last = (lambda o: o.admission) if kind == "newest_started_prefill" else lambda o: (o.arrival, o.number)
                return max(chosen, key=last)
        return s


REQUESTS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 30), st.sampled_from(["paid", "free"]), st.integers(0, 2)),
    min_size=1,
    max_size=25,
)


def compare(monkeypatch, world, document, requests, *, steps_in_flight, num_blocks):
    """Run a world in which each draft is compared with the oracle's plan of the state it saw."""
    from policies.scheduling import core as module

    policy = load_policy(document)
    seen = []

    class Compared(module.Draft):
        def build(self):
            expected = Oracle(self._executor, policy).build(self._now)
            super().build()
            tokens = {p.row: p.num_tokens for p in self.prefills}
            rows = [(index, slot) for index, slots in self.segments for slot in slots.tolist()]
            columns = self._executor.columns
            got = sorted(
                (index if self.stages is None else self.stages[row], columns.sequences[slot].id, tokens.get(row, 1))
                for row, (index, slot) in enumerate(rows)
            )
            assert got == expected
            seen.append(got)

    with monkeypatch.context() as patched:
        patched.setattr(module, "Draft", Compared)
        w = world(document)
        w.join(num_blocks=num_blocks, block_tokens=4, max_steps_in_flight=steps_in_flight)
        for number, (prompt, output, slo_class, ends) in enumerate(requests):
            w.release(number, prompt=prompt, output=output, slo_class=slo_class)
            for _ in range(ends):
                if w.busy():
                    w.end_step(step_s=0.01 * (1 + number % 5))
        w.drain()
    assert seen


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("name", ["fcfs", "sarathi", "vllm", "slai", *POLICIES])
def test_the_plan_is_the_one_of_the_definition(world, shipped, name, steps_in_flight):
    document = (HEAD + POLICIES[name]).encode() if name in POLICIES else shipped(name)

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(requests=REQUESTS, num_blocks=st.integers(20, 60))
    def check(requests, num_blocks):
        with pytest.MonkeyPatch.context() as monkeypatch:
            compare(monkeypatch, world, document, requests, steps_in_flight=steps_in_flight, num_blocks=num_blocks)

    check()
