"""Benchmarks: `python -m bench --help` lists them. Each one compares within one run, alternating, and prints its
spread."""
