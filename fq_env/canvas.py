"""A small canvas for pictures of the game: boxes, bars, curves, marks and text, with smooth edges.

Shapes are drawn at twice the size and reduced, text at its real size on top, so that both are crisp. It knows nothing of the
game. Pillow draws; the font is the one that Matplotlib brings along.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

FINE = 2  # shapes are drawn at so many times the size
INK, GREY, LINE = "#212529", "#5f6770", "#868e96"
ELLIPSIS = "…"


@functools.lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans in so many pixels."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@functools.lru_cache(maxsize=4096)
def width(text: str, size: int, bold: bool = False) -> float:
    """How wide a text is, pixels."""
    return float(font(size, bold).getlength(text))


def fitted(text: str, room: float, size: int, least: int, bold: bool = False) -> tuple[str, int]:
    """The text and the largest size from `size` down to `least` in which it fits; if none does, the text is cut."""
    while size > least and width(text, size, bold) > room:
        size -= 1
    while len(text) > 2 and width(text, size, bold) > room:
        text = text.removesuffix(ELLIPSIS)[:-1] + ELLIPSIS
    return text, size


def wrapped(words: list[str], room: float, size: int) -> list[str]:
    """Words in lines, joined by commas, none wider than the room (a single long word may be)."""
    lines = [""]
    for k, word in enumerate(words):
        piece = word + ("," if k + 1 < len(words) else "")
        longer = f"{lines[-1]} {piece}".strip()
        if lines[-1] and width(longer, size) > room:
            lines.append(piece)
        else:
            lines[-1] = longer
    return lines


class Canvas:
    """A picture in the making; all positions and sizes are pixels of the finished picture, from its upper left corner."""

    def __init__(self, wide: int, high: int) -> None:
        from PIL import Image, ImageDraw

        self.size = (wide, high)
        self._image = Image.new("RGB", (wide * FINE, high * FINE), "white")
        self._draw = ImageDraw.Draw(self._image)
        self.texts: list[tuple[tuple[float, float], str, str, Any, str]] = []  # at, text, colour, font, anchor

    def box(
        self, x: float, y: float, wide: float, high: float, fill: str | None, edge: str | None = None,
        thick: float = 1.0, dashed: bool = False,
    ) -> None:  # fmt: skip
        """A rectangle, filled, outlined, or both."""
        corners = [x * FINE, y * FINE, (x + wide) * FINE - 1, (y + high) * FINE - 1]
        solid = edge if edge is not None and not dashed else None
        self._draw.rounded_rectangle(corners, 3 * FINE, fill, solid, round(thick * FINE))
        if dashed and edge is not None:
            ends = [(x, y), (x + wide, y), (x + wide, y + high), (x, y + high), (x, y)]
            for (x1, y1), (x2, y2) in pairwise(ends):
                self._dashes(x1, y1, x2, y2, edge, thick)

    def _dashes(self, x1: float, y1: float, x2: float, y2: float, colour: str, thick: float) -> None:
        count = max(1, round((abs(x2 - x1) + abs(y2 - y1)) / 8))
        for k in range(count):
            a, b = (k + 0.2) / count, (k + 0.8) / count
            self.line([(x1 + (x2 - x1) * s, y1 + (y2 - y1) * s) for s in (a, b)], colour, thick)

    def bar(self, x: float, y: float, wide: float, high: float, share: float, fill: str, back: str = "#e9ecef") -> None:
        """A horizontal bar that is filled to a share from 0 to 1."""
        self.box(x, y, wide, high, back, LINE)
        if share > 0:
            self.box(x, y, max(3.0, wide * min(1.0, share)), high, fill, LINE)

    def line(self, points: list[tuple[float, float]], colour: str, thick: float = 1.0) -> None:
        """Straight lines through points."""
        self._draw.line([(px * FINE, py * FINE) for px, py in points], colour, max(1, round(thick * FINE)), joint="curve")

    def polygon(self, points: list[tuple[float, float]], fill: str) -> None:
        """A filled polygon."""
        self._draw.polygon([(px * FINE, py * FINE) for px, py in points], fill)

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        """A filled circle around a point."""
        self._draw.ellipse([(x - radius) * FINE, (y - radius) * FINE, (x + radius) * FINE, (y + radius) * FINE], fill)

    def arrow(self, x1: float, y1: float, x2: float, y2: float, colour: str, thick: float) -> None:
        """A curve that leaves to the right and arrives from the left, with a head."""
        head = 5.0 if thick < 2 else 7.0
        end = x2 - head
        s = np.linspace(0.0, 1.0, 17)
        bend = (end - x1) * 0.5
        xs = x1 * (1 - s) ** 3 + 3 * (x1 + bend) * s * (1 - s) ** 2 + 3 * (end - bend) * s**2 * (1 - s) + end * s**3
        ys = (y1 * (1 - s) + 3 * y1 * s) * (1 - s) ** 2 + (3 * y2 * (1 - s) + y2 * s) * s**2
        self.line(list(zip(xs.tolist(), ys.tolist(), strict=True)), colour, thick)
        self.polygon([(x2, y2), (end, y2 - head * 0.55), (end, y2 + head * 0.55)], colour)

    def text(
        self, x: float, y: float, text: str, size: int = 11, colour: str = INK, bold: bool = False, anchor: str = "lm"
    ) -> None:
        """Text at a point; `anchor` as in Pillow: l, m, r and then t, m, b, s."""
        self.texts.append(((x, y), text, colour, font(size, bold), anchor))

    def mark(self, kind: str, x: float, y: float, size: float, colour: str = INK) -> None:
        """A small sign around a point: check, play, lock, cross, pause, queue, hourglass, or a letter in a disc."""
        h = size / 2
        if kind == "check":
            self.line([(x - h, y), (x - h * 0.25, y + h * 0.75), (x + h, y - h * 0.8)], colour, 2.2)
        elif kind == "play":
            self.polygon([(x - h * 0.7, y - h), (x + h, y), (x - h * 0.7, y + h)], colour)
        elif kind == "lock":
            self.box(x - h * 0.8, y - h * 0.1, h * 1.6, h * 1.1, colour)
            self.line(
                [(x - h * 0.5, y), (x - h * 0.5, y - h * 0.8), (x + h * 0.5, y - h * 0.8), (x + h * 0.5, y)], colour, 1.3
            )
        elif kind == "cross":
            self.line([(x - h, y - h), (x + h, y + h)], colour, 2.2)
            self.line([(x - h, y + h), (x + h, y - h)], colour, 2.2)
        elif kind == "pause":
            for dx in (-0.75, 0.2):
                self.polygon(
                    [(x + dx * h, y - h), (x + (dx + 0.6) * h, y - h), (x + (dx + 0.6) * h, y + h), (x + dx * h, y + h)],
                    colour,
                )
        elif kind == "queue":
            for dx in (-0.8, 0.0, 0.8):
                self.disc(x + dx * h, y, h * 0.3, colour)
        elif kind == "hourglass":
            self.polygon([(x - h * 0.8, y - h), (x + h * 0.8, y - h), (x, y)], colour)
            self.polygon([(x - h * 0.8, y + h), (x + h * 0.8, y + h), (x, y)], colour)
        else:
            self.disc(x, y, h * 1.25, colour)
            self.text(x, y + 0.5, kind, max(8, round(size)), "white", bold=True, anchor="mm")

    def pixels(self) -> np.ndarray:
        """The finished picture, uint8 (height, width, 3)."""
        from PIL import ImageDraw

        image = self._image.reduce(FINE)
        draw = ImageDraw.Draw(image)
        for at, text, colour, face, anchor in self.texts:
            draw.text(at, text, colour, face, anchor)
        return np.array(image)
