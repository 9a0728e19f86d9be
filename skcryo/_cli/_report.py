"""The report of a run: one HTML file that needs nothing beside it and no matplotlib to be made.

Every string that comes from outside (paths, arguments, warnings) is escaped.
"""

import base64
import html
import struct
import zlib

import numpy as np

from ..inspection._angular_coverage import mollweide
from ..inspection._grey_levels import grey_levels
from ..inspection._volume_slices import grey_tiles

VIEWS = ("slice xy", "slice xz", "slice yz", "projection along z", "projection along y", "projection along x")
_MOST_POINTS = 3000

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color:
#1a1a1a; } h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.averages { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 8px; }
.averages figure { margin: 0; } .averages img { width: 100%; display: block; }
.averages figcaption { font-size: .85em; } .averages figcaption b { font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(3, minmax(104px, 240px)); gap: 8px; }
.tiles figure { margin: 0; } .tiles img { width: 100%; display: block; } .tiles figcaption { font-size: .85em; }
table { border-collapse: collapse; } td { padding: .15em 1.2em .15em 0; vertical-align: top; }
td:first-child { color: #555; white-space: nowrap; } td:last-child { overflow-wrap: anywhere; }
.warning { background: #fff3cd; padding: .5em .8em; margin: .4em 0; }
.verdict { padding: .7em .9em; margin: .6em 0; font-weight: 600; }
.good { background: #dff2e1; } .bad { background: #f8d7da; } th { text-align: left; font-weight: 600; padding: .15em
1.2em .15em 0; } figure.wide { margin: 0; max-width: 640px; } svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: #444; } code { background: #f2f2f2; padding: .1em .3em; }
"""


def render_report(*, title, summary, averages, counts, history, sections, warnings=(), next_steps=()):
    """Return the report as HTML.

    Parameters
    ----------
    title : str
        Heading and title of the page.
    summary : str
        One or two sentences below the heading.
    averages : ndarray of shape (n_classes, L, L)
        Class averages.
    counts : ndarray of shape (n_classes,), int
        Particles in each class.
    history : list of (int, float)
        Iteration and inertia, in order; an empty list leaves the chart out.
    sections : list of (str, list of (str, object))
        Tables: heading, then rows of name and value.
    warnings : sequence of str
        Shown on top.
    next_steps : sequence of (str, str)
        What to do next and the command that does it.

    Returns
    -------
    page : str
    """
    order = np.argsort(-counts, kind="stable")
    parts = ["<h2>Class averages</h2><p>Largest class first; class number, then particles.</p>"]
    parts.append('<div class="averages">')
    for label, tile in zip(order, grey_levels(averages[order])):
        caption = f"<b>{label + 1}</b>: {counts[label]}"
        parts.append(_figure(tile, f"Average of class {label + 1}", caption))
    parts.append("</div>")
    parts.append("<h2>Particles in each class</h2>" + _bar_chart(counts[order], order + 1))
    if history:
        parts.append("<h2>Convergence</h2>" + _line_chart(history))
    return _page(title, summary, parts, sections, warnings, next_steps)


def render_volume_report(*, title, summary, tiles, curve, box_size, pixel_size, sections, warnings=(), next_steps=()):
    """Return the report of a volume as HTML.

    Parameters
    ----------
    title, summary, sections, warnings, next_steps : as in :func:`render_report`
    tiles : list of (str, ndarray of shape (L, L), uint8)
        Pictures of the volume with their captions.
    curve : array-like of shape (n_shells,)
        Fourier shell correlation of the half maps.
    box_size : int
    pixel_size : float or None
        Angstrom.

    Returns
    -------
    page : str
    """
    parts = ["<h2>Volume</h2>", '<div class="tiles">']
    parts += [_figure(tile, caption, html.escape(caption)) for caption, tile in tiles]
    parts.append("</div>")
    parts.append("<h2>Fourier shell correlation of the half maps</h2>" + _fsc_chart(curve, box_size, pixel_size))
    return _page(title, summary, parts, sections, warnings, next_steps)


def render_ab_initio_report(
    *, title, summary, verdict, converged, scores, agreement, curves, volumes, rotations, curve, box_size, pixel_size,
    sections, warnings=(), next_steps=(),
):
    """Return the report of an ab initio fit as HTML: first of all whether it can be trusted.

    Parameters
    ----------
    title, summary, sections, warnings, next_steps : as in :func:`render_report`
    verdict : str
    converged : bool
    scores, agreement : array-like of shape (n_starts,)
        Log-likelihood of the starts and their agreement with the best one.
    curves : list of list of float
        Log-evidence of the epochs of each start.
    volumes : list of (str, ndarray of shape (L, L, L))
        With their headings.
    rotations : ndarray of shape (n, 3, 3)
    curve, box_size, pixel_size
        Of the half maps, as in :func:`render_volume_report`.

    Returns
    -------
    page : str
    """
    best = int(np.argmax(scores))
    parts = [f'<p class="verdict {"good" if converged else "bad"}">{html.escape(verdict)}</p>', "<table>"]
    names = ("start", "epochs", "log-likelihood of an image", "poses that agree with the best start")
    parts.append("<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>")
    for i, (score, share) in enumerate(zip(scores, agreement)):
        cells = (i + 1, len(curves[i]), f"{score:.2f}", "the best" if i == best else f"{share:.0%}")
        parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    parts.append("</table>")
    for name, volume in volumes:
        parts += [f"<h2>{html.escape(name)}</h2>", '<div class="tiles">']
        tiles = grey_tiles(volume).reshape(6, *volume.shape[1:])
        parts += [_figure(tile, caption, html.escape(caption)) for caption, tile in zip(VIEWS, tiles)]
        parts.append("</div>")
    parts.append("<h2>Fourier shell correlation of the half maps</h2>" + _fsc_chart(curve, box_size, pixel_size))
    parts.append("<h2>Viewing directions</h2>" + _coverage_chart(rotations))
    return _page(title, summary, parts, sections, warnings, next_steps)


def _figure(tile, alt, caption):
    source = base64.b64encode(encode_png(tile)).decode("ascii")
    return (
        f'<figure><img alt="{html.escape(alt)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _page(title, summary, body, sections, warnings, next_steps):
    text = html.escape
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{text(title)}</h1><p>{text(summary)}</p>",
    ]
    parts += [f'<p class="warning">{text(warning)}</p>' for warning in warnings]
    parts += body
    if next_steps:
        items = "".join(f"<li>{text(what)}: <code>{text(command)}</code></li>" for what, command in next_steps)
        parts.append(f"<h2>Going on</h2><ul>{items}</ul>")
    for heading, rows in sections:
        table = "".join(f"<tr><td>{text(str(name))}</td><td>{text(str(value))}</td></tr>" for name, value in rows)
        parts.append(f"<h2>{text(heading)}</h2><table>{table}</table>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


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


def _bar_chart(counts, numbers):
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


def _line_chart(history):
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


def _fsc_chart(curve, box_size, pixel_size):
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


def _coverage_chart(rotations):
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
