"""Benchmarks; `python -m bench --help` lists them. Each compares alternating measurements of one run, with their
spread."""
