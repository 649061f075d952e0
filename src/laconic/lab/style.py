"""How methods are told apart, alike in paper figures and on the page: colour, marker, and both readable in grey."""

from __future__ import annotations

from dataclasses import dataclass

# Okabe and Ito's palette (2008), which people with any colour vision tell apart, without its yellow, which is too pale
# for lines; then four of Tol's muted scheme (2021), far from those in lightness
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00",
    "#882255", "#999933", "#332288", "#777777",
)  # fmt: skip
# (matplotlib, plotly); the numbers of markers and of colours share no factor, so 132 methods differ
MARKERS = (
    ("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"),
    ("P", "cross"), ("X", "x"), ("<", "triangle-left"), (">", "triangle-right"), ("p", "pentagon"), ("*", "star"),
    ("h", "hexagon"),
)  # fmt: skip
MARKS_PER_LINE = 7


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str  # matplotlib's
    symbol: str  # plotly's


def style(place: int) -> Style:
    """The style of the method in this place, the same in every figure of a report."""
    marker, symbol = MARKERS[place % len(MARKERS)]
    return Style(COLOURS[place % len(COLOURS)], marker, symbol)
