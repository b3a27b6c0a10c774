"""Decoder architectures built from the shared layers."""
