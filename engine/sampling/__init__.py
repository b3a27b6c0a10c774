"""From the logits of a step to its tokens, all rows at once.

What a sequence asks for applies in the order of vLLM's sampler (`vllm/v1/sample/sampler.py`), and of the papers behind
each part where they fix one:

1. log-probabilities are taken of the model's own distribution, before anything below touches it (`logprobs`)
2. logit_bias is added (`slots`)
3. repetition, then frequency and presence penalties (`penalties`)
4. tokens that would end the sequence before min_tokens are forbidden (`slots`)
5. masks from outside, -inf where a token must not come
6. temperature, min_p, top_k, top_p (`draw`), and the draw itself by noise that is the row's own (`noise`)

A row that asks for none of 1 to 5 costs nothing there.
"""
