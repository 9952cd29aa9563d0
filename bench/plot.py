# SPDX-License-Identifier: Apache-2.0
"""A plot of pauses over size as SVG: both axes logarithmic, a line for each way."""

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 220, 28, 48
COLORS = (
    "#1b6ca8", "#b3541e", "#555555", "#2e8b57", "#66a6d2", "#e0975f", "#aaaaaa", "#8fcea8",
)  # fmt: skip
"""Ways of small pages, and as many of huge ones."""


def plot(curves: Mapping[str, Sequence[tuple[int, float]]], facts: Mapping[str, object]) -> str:
    """Curves are (MiB, ms) points by name."""
    sizes = sorted({size for points in curves.values() for size, _ in points})
    pauses = [pause for points in curves.values() for _, pause in points]
    low, high = math.floor(math.log10(min(pauses))), math.ceil(math.log10(max(pauses)))
    span = max(math.log2(sizes[-1] / sizes[0]), 1)

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(size / sizes[0]) / span

    def y(pause: float) -> float:
        height = HEIGHT - TOP - BOTTOM
        return TOP + height * (high - math.log10(pause)) / max(high - low, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="16">pause in ms that the workload sees, left running; '
        f"Linux {facts['kernel']}, {facts['processors']} processors</text>",
    ]
    for size in sizes:
        name = f"{size} MiB" if size < 1024 else f"{size // 1024} GiB"
        parts += [
            f'<line x1="{x(size):.1f}" x2="{x(size):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
            f'stroke="#eee"/>',
            f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 16}" '
            f'text-anchor="middle">{name}</text>',
        ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>',
        ]
    for number, (name, points) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        line = " ".join(f"{x(size):.1f},{y(pause):.1f}" for size, pause in points)
        parts += [
            f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>',
            f'<text x="{WIDTH - RIGHT + 12}" y="{TOP + 18 + 18 * number}" fill="{color}">'
            f"{name}</text>",
        ]
    return "\n".join([*parts, "</svg>", ""])
