"""The report of a run: one HTML file that needs nothing beside it and no matplotlib to be made.

A command puts its page together from blocks. Every string that comes from outside (paths, arguments, warnings) is
escaped by them.
"""

import base64
import html

import numpy as np

from ..inspection._grey_levels import grey_levels
from ..inspection._volume_slices import grey_tiles
from ._charts import encode_png

VIEWS = ("slice xy", "slice xz", "slice yz", "projection along z", "projection along y", "projection along x")

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
1.2em .15em 0; } figure.wide { margin: 0; max-width: 420px; }
figure.full { margin: 0; } figure.full img { width: 100%; }
figure.wide img { width: 100%; image-rendering: pixelated; } svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: #444; } code { background: #f2f2f2; padding: .1em .3em; }
"""


def render_page(title, summary, body, *, sections=(), warnings=(), next_steps=()):
    """Return a report as HTML.

    Parameters
    ----------
    title : str
        Heading and title of the page.
    summary : str
        One or two sentences below the heading.
    body : sequence of str
        HTML, from the other functions here and the charts.
    sections : sequence of (str, list of (str, object))
        Tables: heading, then rows of name and value.
    warnings : sequence of str
        Shown on top.
    next_steps : sequence of (str, str)
        What to do next and the command that does it.

    Returns
    -------
    page : str
    """
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


def heading(text):
    """A heading of the second level."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text):
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>"


def verdict_box(text, good):
    """Whether the result can be trusted, green or red; for the top of the page."""
    return f'<p class="verdict {"good" if good else "bad"}">{html.escape(text)}</p>'


def table(names, rows):
    """A table with the names of its columns above; `rows` of anything that has a text."""
    lines = ["<table>", "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def averages_grid(averages, counts, *, told=None, order=None):
    """Class averages, the largest class first.

    Parameters
    ----------
    averages : ndarray of shape (n_classes, L, L)
    counts : ndarray of shape (n_classes,), int
    told : sequence of str, default=None
        What stands below each average, beside its number; None: how many particles.
    order : ndarray of int, default=None
        Classes to show; None: all, by size.

    Returns
    -------
    block : str
    """
    order = np.argsort(-counts, kind="stable") if order is None else order
    told = counts if told is None else told
    figures = [
        figure(tile, f"Average of class {label + 1}", f"<b>{label + 1}</b>: {html.escape(str(told[label]))}")
        for label, tile in zip(order, grey_levels(averages[order]))
    ]
    return "\n".join(['<div class="averages">', *figures, "</div>"])


def volume_grid(volume):
    """Slices and projections of a volume of shape (L, L, L)."""
    tiles = grey_tiles(volume).reshape(6, *volume.shape[1:])
    figures = [figure(tile, caption, html.escape(caption)) for caption, tile in zip(VIEWS, tiles)]
    return "\n".join(['<div class="tiles">', *figures, "</div>"])


def figure(grey, alt, caption, *, wide=False):
    """A picture with what is below it.

    Parameters
    ----------
    grey : ndarray of shape (height, width), uint8
    alt : str
    caption : str
        HTML.
    wide : bool, default=False
        Whether it takes the width of the page.

    Returns
    -------
    block : str
    """
    return png_figure(encode_png(grey), alt, caption, kind=' class=wide' if wide else "")


def png_figure(png, alt, caption="", *, kind=""):
    """A picture, given as the bytes of a PNG file; `kind` is an attribute of its tag."""
    source = base64.b64encode(png).decode("ascii")
    return (
        f'<figure{kind}><img alt="{html.escape(alt)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
