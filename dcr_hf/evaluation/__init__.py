"""Measures CLIP encoders: P-Ability, D-Ability, zero-shot, linear probes, retrieval. Imports nothing of training."""
