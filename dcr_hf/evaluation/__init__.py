"""Measures CLIP-family encoders: P-Ability, D-Ability, zero-shot, retrieval. Imports nothing of training."""
