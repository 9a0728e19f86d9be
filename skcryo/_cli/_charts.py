"""Pictures of a report without matplotlib: charts as SVG, grey images as PNG."""

import struct
import zlib

import numpy as np

from ..inspection._angular_coverage import mollweide

_MOST_POINTS = 3000


def encode_png(grey):
    """Return an 8-bit grey image as the bytes of a PNG file.

    Parameters
    ----------
    grey : ndarray of shape (height, width), uint8

    Returns
    -------
    png : bytes

    References
    ----------
    .. [1] "Portable Network Graphics (PNG) Specification", W3C; sections 5 and 9 to 11.
    """

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    height, width = grey.shape
    # Each row starts with the number of its filter: 0, none.
    rows = np.concatenate([np.zeros((height, 1), np.uint8), grey], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def bar_chart(counts, numbers):
    """Return bars of class sizes as SVG; the number of a class and its size show under the pointer."""
    width, height, left, bottom = 900, 200, 50, 20
    step = (width - left) / len(counts)
    largest = max(int(counts.max()), 1)
    bars = []
    for place, (count, number) in enumerate(zip(counts, numbers)):
        tall = (height - bottom - 12) * count / largest
        bars.append(
            f'<rect x="{left + place * step:.1f}" y="{height - bottom - tall:.1f}" '
            f'width="{max(step - 1, 0.6):.1f}" height="{tall:.1f}" fill="#4c78a8">'
            f"<title>class {number}: {count}</title></rect>"
        )
    middle = (left + width) / 2
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="Particles in each class"><text x="{left - 6}" y="22" text-anchor="end">{largest}</text>'
        f'<text x="{left - 6}" y="{height - bottom}" text-anchor="end">0</text>'
        f'<text x="{middle:.0f}" y="{height - 4}" text-anchor="middle">classes, largest first</text>'
        f"{''.join(bars)}</svg>"
    )


def line_chart(history):
    """Return inertia against iteration as SVG."""
    width, height, left, bottom, top = 900, 200, 90, 24, 12
    iterations = np.array([iteration for iteration, _ in history], dtype=float)
    inertia = np.array([value for _, value in history], dtype=float)
    low, high = inertia.min(), inertia.max()
    x = left + (width - left - 10) * (iterations - iterations[0]) / max(np.ptp(iterations), 1)
    y = top + (height - bottom - top) * (high - inertia) / max(high - low, np.finfo(float).tiny)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
    dots = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="#4c78a8"><title>iteration {n}: {v:.6g}</title></circle>'
        for a, b, (n, v) in zip(x, y, history)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Inertia by iteration">'
        f'<text x="{left - 8}" y="{top + 6}" text-anchor="end">{high:.5g}</text>'
        f'<text x="{left - 8}" y="{height - bottom}" text-anchor="end">{low:.5g}</text>'
        f'<text x="{left}" y="{height - 4}">iteration {history[0][0]}</text>'
        f'<text x="{width - 4}" y="{height - 4}" text-anchor="end">iteration {history[-1][0]}</text>'
        f'<polyline points="{points}" fill="none" stroke="#4c78a8" stroke-width="2"/>{dots}</svg>'
    )


def fsc_chart(curve, box_size, pixel_size):
    """Return a correlation against frequency as SVG, with the line at 0.143."""
    width, height, left, bottom, top = 900, 260, 60, 40, 12
    curve = np.asarray(curve, dtype=float)
    low = min(-0.1, float(curve[1:].min(initial=0.0)))
    last = len(curve) - 1

    def place(shell, value):
        x = left + (width - left - 20) * shell / max(last, 1)
        return x, top + (height - bottom - top) * (1 - value) / (1 - low)

    points = " ".join("{:.1f},{:.1f}".format(*place(k, v)) for k, v in enumerate(curve) if k)
    unit = "px" if pixel_size is None else "\u00c5"
    marks = []
    for shell in sorted({round(last * i / 6) for i in range(1, 7)} - {0}):
        x, _ = place(shell, 0)
        told = f"{box_size * (pixel_size or 1.0) / shell:.1f}"
        marks.append(f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{told}</text>')
    for level, style in ((1, ""), (0.143, ' stroke-dasharray="5 4"'), (0, "")):
        _, y = place(0, level)
        marks.append(
            f'<line x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#999"{style}/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{level:g}</text>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Fourier shell correlation">'
        f'{"".join(marks)}<text x="{(left + width) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        f"resolution ({unit})</text>"
        f'<polyline points="{points}" fill="none" stroke="#4c78a8" stroke-width="2"/></svg>'
    )


def coverage_chart(rotations):
    """Return viewing directions as points on a map of equal areas, as SVG; of very many, every so many."""
    scale, step = 110, max(1, -(-len(rotations) // _MOST_POINTS))
    x, y = (mollweide(np.asarray(rotations)[::step, :, 2]) * (scale, -scale)).T
    width, height = 2 * np.sqrt(2) * scale, np.sqrt(2) * scale
    dots = "".join(f'<circle cx="{a:.0f}" cy="{b:.0f}" r="1.6"/>' for a, b in zip(x, y))
    return (
        f'<svg viewBox="{-width - 4:.0f} {-height - 4:.0f} {2 * width + 8:.0f} {2 * height + 8:.0f}" width="640" '
        f'role="img" aria-label="Viewing directions"><ellipse rx="{width:.1f}" ry="{height:.1f}" fill="none" '
        f'stroke="#999"/><g fill="#4c78a8" fill-opacity="0.5">{dots}</g></svg>'
    )
