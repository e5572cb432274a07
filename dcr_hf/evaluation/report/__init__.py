"""Results -> tables, figures and one HTML page."""

__all__ = ["cards", "cells", "maps", "page", "plots", "published", "summary", "table"]
