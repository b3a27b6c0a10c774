"""Benchmarks: each figure is a ratio to a reference measured interleaved in the same run."""
