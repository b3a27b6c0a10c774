"""Structured output: what an output may say, and the tokens that keep to it.

`lark` writes grammars and `compiler` compiles them (both torch-free: the gateway uses them too), `constraints` follows
the sequences of an engine.
"""
