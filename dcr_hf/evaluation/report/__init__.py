"""Results -> tables, figures and one page to look at."""

__all__ = ["cards", "cells", "maps", "page", "plots", "published", "summary", "table"]
