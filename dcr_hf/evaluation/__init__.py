"""Measures CLIP encoders: P-Ability, D-Ability, zero-shot, linear probes, retrieval. Imports nothing of training.

The order: readers -> embedding -> tasks -> scoring -> report; `benchmarks` names what can be measured, `run` does it,
`cli` is the command line.
"""

__all__ = ["embedding", "readers", "report", "scoring", "tasks"]
