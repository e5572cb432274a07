"""The palette and the few helpers that all plots share."""

import base64
import io

from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

INK, FAINT = "#1f2933", "#d5dbe1"
# Colour-blind safe (Okabe and Ito 2008), the reference encoder in grey.
COLORS = ("#7b8794", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE: dict[RcKeyType, object] = {
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "dcr",
}


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def figure_uri(figure: Figure, kind: str = "svg+xml") -> str:
    buffer = io.BytesIO()
    options = {"metadata": {"Date": None}} if kind == "svg+xml" else {"dpi": 170}
    figure.savefig(buffer, format="svg" if kind == "svg+xml" else kind, bbox_inches="tight", **options)
    return data_uri(buffer.getvalue(), kind)
