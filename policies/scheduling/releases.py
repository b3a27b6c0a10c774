"""From a release to a request and its sequences, as they are before anybody has planned them.

Knows what was made of them before, by a scheduler that was lost; does not know executors or policies.
"""

from policies.events import Released
from policies.scheduling.prefixes import prefix_of
from policies.scheduling.state import Request, Sequence


def begin(event: Released, now: float, number: int) -> tuple[Request, list[Sequence]]:
    """The request, and the choices that are to be made or gone on with; `number` is that of the last sequence before.

    A choice that goes on keeps its tokens, as after the loss of an executor; of one that ended only the count is left.
    """
    request = Request(event.request, event.gateway, event.num_choices, event.owner)
    made_tokens = event.made_tokens or (0,) * event.num_choices
    sequences = []
    for index in range(event.num_choices):
        if index in event.ended:
            del request.open[event.request + index]
            request.output_tokens[event.request + index] = made_tokens[index]
            continue
        sequence = Sequence(
            event.request + index,
            request,
            number=number + 1 + index,
            arrived_s=now - event.waited_s,
            prompt_tokens=event.prompt_tokens,
            max_output_tokens=event.max_output_tokens,
            slo_class=event.slo_class,
            prefix=prefix_of(event),
            true_tokens=event.output_tokens,
        )
        sequence.kept_tokens = sequence.brought_tokens = made_tokens[index]
        # It was started before, wherever that was: its reader waits for the next token, not for the first.
        sequence.resumed = made_tokens[index] > 0
        sequences.append(sequence)
    return request, sequences
