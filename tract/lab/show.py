"""Display widgets with a static picture for readers without a kernel; pieces of HTML.

JupyterLab shows the widget while its kernel lives; code hosts and converters show the picture. In
notebooks executed without a front end `execute` keeps only the picture: a widget's state dies with
its kernel, and JupyterLab would report it missing.
"""

import base64
import html
from collections.abc import Mapping
from importlib.resources import files

from IPython import get_ipython
from IPython.display import DisplayHandle, display
from ipywidgets import HTML, Widget
from matplotlib.figure import Figure
from torch import Tensor

from tract.datasets.images import png_bytes
from tract.lab.plots import png, strip


def show(widget: Widget, picture: Figure | bytes, *, live: bool = True) -> DisplayHandle | None:
    """Display a widget, with a figure or a PNG for viewers without a kernel.

    live: False displays the picture alone. Plain Python, which has no display, shows nothing.
    """
    if get_ipython() is None:
        return None
    return display(bundle(widget, picture, live), raw=True, display_id=True)


def bundle(widget: Widget, picture: Figure | bytes, live: bool) -> dict:
    """The MIME bundle that `show` displays."""
    content = png(picture) if isinstance(picture, Figure) else picture
    name = f"<{type(widget).__name__}>"
    shown = {"image/png": base64.b64encode(content).decode(), "text/plain": name}
    return widget._repr_mimebundle_() | shown if live else shown


def image(content: bytes, alt: str, kind: str = "figure") -> str:
    """A PNG as HTML; a figure takes the theme's brightness, samples stay as they are."""
    data = base64.b64encode(content).decode()
    return f'<img class="tract-{kind}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def sample_rows(rows: Mapping[str, Tensor], about: str) -> str:
    """Rows of images (N, C, H, W) in [-1, 1] as HTML, each below its label."""
    return f"<div>{html.escape(about)}</div>" + "".join(
        f"<div>{html.escape(label)}</div>"
        + image(png_bytes(strip(images, 48)), f"Samples: {label}. {about}", "samples")
        for label, images in rows.items()
    )


def text(content: str, kind: str = "") -> str:
    """Text as HTML; kind: good or bad, for the theme's colour of it."""
    name = f' class="tract-{kind}"' if kind else ""
    return f"<span{name}>{html.escape(content)}</span>"


def style_sheet() -> HTML:
    """An invisible widget that loads lab.css and lab.js."""
    style, script = ((files("tract.lab") / name).read_text() for name in ("lab.css", "lab.js"))
    script = "\n".join(line for line in script.splitlines() if not line.startswith("//"))
    run = f'<img alt="" src="data:," style="display: none" onerror="{html.escape(script)}">'
    return HTML(f"<style>{style}</style>{run}", layout={"display": "none"})
