"""Multimodal models (LLaVA-1.5) on MMVP, NaturalBench and CV-Bench: what an encoder is worth to a language model."""
