"""Pictures of a report without matplotlib: charts as SVG, grey images as PNG."""

import html
import struct
import zlib

import numpy as np

from ..inspection._angular_coverage import mollweide

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac")
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
            f'width="{max(step - 1, 0.6):.1f}" height="{tall:.1f}" fill="{COLOURS[0]}">'
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


def occupancy_chart(counts):
    """Return sizes of classes in ascending order as SVG, and a dashed line where equal classes would be."""
    width, height, left, bottom, top = 900, 220, 60, 24, 12
    counts = np.sort(np.asarray(counts))
    step, largest = (width - left - 10) / len(counts), max(int(counts[-1]), 1)

    def y(count):
        return top + (height - bottom - top) * (1 - count / largest)

    points = " ".join(
        f"{left + place * step:.1f},{y(count):.1f} {left + (place + 1) * step:.1f},{y(count):.1f}"
        for place, count in enumerate(counts)
    )
    mean = y(counts.mean())
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Sizes of classes">'
        f'<text x="{left - 6}" y="{top + 6}" text-anchor="end">{largest}</text>'
        f'<text x="{left - 6}" y="{height - bottom}" text-anchor="end">0</text>'
        f'<text x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">classes, the smallest first</text>'
        f'<line x1="{left}" x2="{width - 10}" y1="{mean:.1f}" y2="{mean:.1f}" stroke="#999" stroke-dasharray="5 4"/>'
        f'<polyline points="{points}" fill="none" stroke="{COLOURS[0]}" stroke-width="2"/></svg>'
    )


def line_chart(values, what):
    """Return a value against iteration, from 1, as SVG."""
    width, height, left, bottom, top = 900, 200, 90, 24, 12
    values = np.asarray(values, dtype=float)
    low, high, last = values.min(), values.max(), len(values)
    x = left + (width - left - 10) * np.arange(last) / max(last - 1, 1)
    y = top + (height - bottom - top) * (high - values) / max(high - low, np.finfo(float).tiny)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
    dots = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{COLOURS[0]}"><title>iteration {n}: {v:.6g}</title></circle>'
        for n, (a, b, v) in enumerate(zip(x, y, values), start=1)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{what} by iteration">'
        f'<text x="{left - 8}" y="{top + 6}" text-anchor="end">{high:.5g}</text>'
        f'<text x="{left - 8}" y="{height - bottom}" text-anchor="end">{low:.5g}</text>'
        f'<text x="{left}" y="{height - 4}">iteration 1</text>'
        f'<text x="{width - 4}" y="{height - 4}" text-anchor="end">iteration {last}</text>'
        f'<polyline points="{points}" fill="none" stroke="{COLOURS[0]}" stroke-width="2"/>{dots}</svg>'
    )


def fsc_chart(curves, box_size, pixel_size, names=None):
    """Return correlations against frequency as SVG, with the line at 0.143.

    Parameters
    ----------
    curves : array-like of shape (n_shells,) or (n_curves, n_shells)
    box_size : int
    pixel_size : float or None
        Angstrom.
    names : sequence of str, default=None
        Of the curves; None writes none.

    Returns
    -------
    svg : str
    """
    width, height, left, bottom, top = 900, 260, 60, 40, 12
    curves = np.atleast_2d(np.asarray(curves, dtype=float))
    low = min(-0.1, float(curves[:, 1:].min(initial=0.0)))
    last = curves.shape[1] - 1

    def place(shell, value):
        x = left + (width - left - 20) * shell / max(last, 1)
        return x, top + (height - bottom - top) * (1 - value) / (1 - low)

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
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join("{:.1f},{:.1f}".format(*place(k, v)) for k, v in enumerate(curve) if k)
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if names is not None:
            y = top + 16 * (i + 1)
            marks.append(
                f'<text x="{width - 24}" y="{y}" text-anchor="end" style="fill:{colour}">{html.escape(names[i])}</text>'
            )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Fourier shell correlation">'
        f'{"".join(marks)}<text x="{(left + width) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        f"resolution ({unit})</text></svg>"
    )


def coverage_chart(rotations, labels=None):
    """Return viewing directions on a map of equal areas, as SVG; of very many, every so many.

    Parameters
    ----------
    rotations : ndarray of shape (n, 3, 3)
    labels : ndarray of shape (n,), int, default=None
        Classes, which get a colour each.

    Returns
    -------
    svg : str
    """
    scale, step = 110, max(1, -(-len(rotations) // _MOST_POINTS))
    x, y = (mollweide(np.asarray(rotations)[::step, :, 2]) * (scale, -scale)).T
    width, height = 2 * np.sqrt(2) * scale, np.sqrt(2) * scale
    labels = np.zeros(len(x), dtype=int) if labels is None else np.asarray(labels)[::step]
    groups = []
    for label in np.unique(labels):
        own = labels == label
        dots = "".join(f'<circle cx="{a:.0f}" cy="{b:.0f}" r="1.6"/>' for a, b in zip(x[own], y[own]))
        groups.append(f'<g fill="{COLOURS[label % len(COLOURS)]}" fill-opacity="0.5">{dots}</g>')
    return (
        f'<svg viewBox="{-width - 4:.0f} {-height - 4:.0f} {2 * width + 8:.0f} {2 * height + 8:.0f}" width="640" '
        f'role="img" aria-label="Viewing directions"><ellipse rx="{width:.1f}" ry="{height:.1f}" fill="none" '
        f'stroke="#999"/>{"".join(groups)}</svg>'
    )
