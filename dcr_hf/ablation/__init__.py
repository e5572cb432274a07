"""Variants and seeds of training side by side, and which of the paper's claims they show.

A new variant or claim enters `variants`; the other modules run, measure and plot it.
"""

__all__ = ["cli", "one", "plots", "summary", "trials", "variants"]
