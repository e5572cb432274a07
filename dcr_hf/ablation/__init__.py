"""Variants and seeds of training side by side, and which of the paper's claims they show.

A new variant or claim enters `variants`; running, measuring and drawing it is the rest.
"""

__all__ = ["cli", "one", "plots", "summary", "trials", "variants"]
