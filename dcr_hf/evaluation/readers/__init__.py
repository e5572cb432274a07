"""Published data sets on disk or on the hub -> images by index with labels, captions or paired statements.

A new layout of a data set enters here.
"""

__all__ = ["decode", "image_sets", "locate", "mmvp", "shards", "splits"]
