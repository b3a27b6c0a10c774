"""Attention over paged KV: one small interface, backends chosen by capability.

The only package that imports xformers.
"""
