"""Charts as inline SVG. Colours come from the page's CSS classes, so that they follow its light or dark scheme.

Lengths are in the SVG's own units, one CSS pixel at full width. Every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pocketvlm.report.results import ReliabilityBin

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line of a chart; `css` is the class that colours it."""

    name: str
    points: Sequence[Point]
    css: str


@dataclass(frozen=True)
class Axis:
    """A linear axis with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def cut_at(self, high: float) -> Axis:
        """The axis without what lies above `high`."""
        return Axis(self.low, high, tuple(tick for tick in self.ticks if tick <= high)) if high > self.low else self

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def axis(low: float, high: float, wanted: int = 5) -> Axis:
    """An axis that holds [low, high], with about `wanted` ticks at 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, tuple(round(k * step, 10) for k in range(first, last + 1)))


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, low: float | None = None, high: float | None = None
) -> Markup:
    """Lines over one pair of axes; series of a single point are drawn as a dot. Empty for no points."""
    points = [point for line in series for point in line.points]
    if not points:
        return Markup("")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_axis = axis(min(0.0, *xs), max(xs)).cut_at(max(xs))
    y_axis = axis(min(ys) if low is None else low, max(ys) if high is None else high)
    frame = _Frame(520, 250, x_axis, y_axis)
    parts = [frame.grid(), frame.text(frame.left + frame.plot_width / 2, frame.height - 4, x_label, "label", "middle")]
    for line in series:
        path = " ".join(f"{'M' if i == 0 else 'L'}{frame.x(x):.1f} {frame.y(y):.1f}" for i, (x, y) in enumerate(line.points))
        parts.append(Markup('<path class="line {}" d="{}"/>').format(line.css, path))
        if len(line.points) <= 40:
            parts += [frame.dot(f"dot {line.css}", x, y, 2.6, f"{line.name}: {y:.4g} at {x:.4g}") for x, y in line.points]
    last = ", ".join(f"{line.name} {line.points[-1][1]:.4g}" for line in series if line.points)
    return _svg(frame.width, frame.height, f"{title}; at the end: {last}", parts, "chart")


def reliability_chart(before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin]) -> Markup:
    """Accuracy over confidence, before and after the temperature; the area of a dot is its number of images."""
    frame = _Frame(340, 320, axis(0, 1), axis(0, 1))
    parts = [
        frame.grid(),
        Markup('<path class="ideal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(frame.x(0), frame.y(0), frame.x(1), frame.y(1)),
        frame.text(frame.left + frame.plot_width / 2, frame.height - 4, "confidence", "label", "middle"),
    ]
    most = max((found.count for found in (*before, *after)), default=1)
    for bins, css, name in ((before, "c2", "as it is"), (after, "c1", "after the temperature")):
        for found in bins:
            title = f"{name}: {found.count} images, confidence {found.confidence:.3f}, accuracy {found.accuracy:.3f}"
            radius = 3 + 11 * math.sqrt(found.count / most)
            parts.append(frame.dot(f"bubble {css}", found.confidence, found.accuracy, radius, title))
    return _svg(frame.width, frame.height, "Accuracy over confidence, before and after the temperature", parts, "chart square")


def interval_bar(value: float, low: float, high: float, scale: Axis) -> Markup:
    """A share with its 95 % interval on a common scale; goes into a table cell."""
    width, height = 150.0, 18.0

    def x(share: float) -> float:
        return 4 + (width - 8) * min(1.0, max(0.0, scale.share(share)))

    parts = [Markup('<path class="track" d="M4 9H{:.1f}"/>').format(width - 4)]
    if high < scale.low:  # somewhere to the left of the scale
        parts.append(Markup('<path class="off" d="M9 4L3 9L9 14"/>'))
    else:
        parts.append(Markup('<path class="whisker" d="M{:.1f} 9H{:.1f}"/>').format(x(low), x(high)))
        parts.append(Markup('<circle class="dot c1" cx="{:.1f}" cy="9" r="4"/>').format(x(value)))
    return _svg(width, height, f"{value:.3f}, 95 % interval {low:.3f} to {high:.3f}", parts, "bar")


def difference_bar(value: float, low: float, high: float, scale: Axis) -> Markup:
    """A difference with its 95 % interval on a common scale that holds 0, which is marked; goes into a table cell."""
    width, height = 150.0, 18.0

    def x(difference: float) -> float:
        return 4 + (width - 8) * min(1.0, max(0.0, scale.share(difference)))

    parts = [
        Markup('<path class="track" d="M4 9H{:.1f}"/>').format(width - 4),
        Markup('<path class="zero" d="M{:.1f} 1V17"/>').format(x(0.0)),
        Markup('<path class="whisker" d="M{:.1f} 9H{:.1f}"/>').format(x(low), x(high)),
        Markup('<circle class="dot c1" cx="{:.1f}" cy="9" r="4"/>').format(x(value)),
    ]
    return _svg(width, height, f"{value:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}", parts, "bar")


@dataclass(frozen=True)
class _Frame:
    """Axes in a box."""

    width: float
    height: float
    x_axis: Axis
    y_axis: Axis
    left: float = 44
    right: float = 10
    top: float = 10
    bottom: float = 36

    @property
    def plot_width(self) -> float:
        return self.width - self.left - self.right

    def x(self, value: float) -> float:
        return self.left + self.plot_width * self.x_axis.share(value)

    def y(self, value: float) -> float:
        return self.height - self.bottom - (self.height - self.top - self.bottom) * self.y_axis.share(value)

    def grid(self) -> Markup:
        parts = []
        for tick in self.y_axis.ticks:
            line = Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>')
            parts.append(line.format(self.left, self.y(tick), self.width - self.right))
            parts.append(self.text(self.left - 7, self.y(tick) + 4, f"{tick:g}", "tick", "end"))
        for tick in self.x_axis.ticks:
            parts.append(self.text(self.x(tick), self.height - self.bottom + 16, f"{tick:g}", "tick", "middle"))
        return Markup("").join(parts)

    def dot(self, css: str, x: float, y: float, radius: float, title: str) -> Markup:
        """A circle at a point of the plot that tells its numbers when it is pointed at."""
        circle = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>')
        return circle.format(css, self.x(x), self.y(y), radius, title)

    def text(self, x: float, y: float, text: str, css: str, anchor: str) -> Markup:
        return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(css, x, y, anchor, text)


def _svg(width: float, height: float, title: str, parts: Sequence[Markup], css: str) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        css, width, height, escape(title), Markup("").join(parts)
    )
