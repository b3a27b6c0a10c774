"""The section `fairness` in words: a part of `explain.py`."""

from policies.document.fairness import (
    Fairness,
    KvTokenTime,
    LengthPredictor,
    Pools,
    Quadratic,
    ReadTable,
    Table,
    Tokens,
    WeightedTokens,
)

TENANTS_NEXT = {
    "vtc": "The waiting tenant that was served least for its weight goes next; what it did not ask for is not stored.",
    "lcf": "The waiting tenant that was served least for its weight goes next, for all the time it has been known.",
}
BELOW = {"project": "the projects of a tenant", "key": "the keys of a project"}
RESERVED = {
    "declared": "prompt and declared output",
    "predicted": "prompt and predicted output",
    "occupancy": "at the peak of what all will hold",
}

NARROWED = (
    "narrowed while serving to the smallest window that keeps 98 % of that one's throughput (`fairlead fairness` says "
    "what it is and what it bounds)"
)


def fairness_in_words(fairness: Fairness) -> list[str]:
    """Who is next, what is charged and how much is in flight, one sentence a line."""
    if fairness.kind == "fcfs":
        lines = ["Requests go in order of arrival, whoever sent them."]
    elif fairness.kind == "drr":
        quantum = "a twentieth of the window" if fairness.quantum_tokens == "auto" else f"{fairness.quantum_tokens:g}"
        lines = [f"Waiting tenants take turns of {quantum} in cost, and pay off what they took beyond that."]
    else:
        lines = [TENANTS_NEXT[fairness.kind]]
    if fairness.kind != "fcfs":
        below = [BELOW[level] for level in fairness.levels if level in BELOW]
        if fairness.levels == ("tenant", "key"):
            below = ["the keys of a tenant"]
        if below:
            lines.append(f"So do {' and '.join(below)} among one another, each with the same share.")
        lines += [_cost(fairness), *_prediction(fairness)]
    lines += [f"In flight at most: {_window(fairness)}{fairness.max_requests} requests."]
    if fairness.admit_every_steps is not None:
        lines.append(f"After a release {fairness.admit_every_steps} decode steps pass before the next.")
    if fairness.admit_prompt_tokens is not None:
        lines.append(f"At a time, prompts of at most {fairness.admit_prompt_tokens} tokens together are released.")
    if fairness.kind != "fcfs":
        lines.append(f"What an idle tenant owes is forgotten after {fairness.idle_ttl_s:g} s.")
    return lines


def _cost(fairness: Fairness) -> str:
    match fairness.cost:
        case WeightedTokens(prompt=prompt, output=output, cached_prompt=cached):
            found = f"{cached * prompt:g}" if cached else "nothing"
            return (
                f"A prompt token costs {prompt:g}, one found in the prefix cache {found}, an output token {output:g}."
            )
        case Tokens():
            return "Every token costs 1, a prompt token found in the prefix cache nothing."
        case Quadratic(a=a, b=b, c=c, d=d, e=e):
            return f"p prompt and q output tokens cost {a:g} p + {b:g} q + {c:g} p q + {d:g} q^2 + {e:g}."
        case Table(points=points, file=file):
            prompts, outputs = points.prompt_tokens, points.output_tokens
            of = f"the table of {file.name}" if isinstance(file, ReadTable) else "the table"
            return (
                f"A request costs what {of} says for its prompt ({prompts[0]} to {prompts[-1]} tokens) and output "
                f"({outputs[0]} to {outputs[-1]})."
            )
        case KvTokenTime():
            return "A request costs the tokens that it holds, once for each step that it holds them."


def _prediction(fairness: Fairness) -> list[str]:
    match fairness.predictor:
        case "none":
            return []
        case "declared":
            what = "as much output as it may have"
        case "oracle":
            what = "the output that it will have"
        case LengthPredictor(mean_last=int(num)):
            what = f"the mean output of its tenant's last {num}"
        case LengthPredictor(ema=float(weight)):
            what = f"its tenant's mean output, in which the newest has weight {weight:g},"
        case LengthPredictor(noisy_oracle=error):
            what = f"the output that it will have, up to {error:.0%} off,"
    return [f"A request is charged {what} at once, and the difference later."]


def _window(fairness: Fairness) -> str:
    reserved = RESERVED[fairness.reserve]
    match fairness.window_tokens:
        case Pools(pools=pools):
            return f"{pools:g} times what the KV pool holds ({reserved}), and "
        case "auto":
            return "" if fairness.kind == "fcfs" else f"what the KV pool holds ({reserved}), {NARROWED}, and "
        case tokens:
            return f"{tokens} tokens at a time ({reserved}), and "
