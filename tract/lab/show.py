"""Display widgets with a static picture for readers without a kernel.

JupyterLab shows the widget while its kernel lives; code hosts and converters show the picture. Of
notebooks that are executed with nobody there `execute` keeps the picture alone: what a widget
knows dies with its kernel, and JupyterLab would report it missing instead.
"""

import base64
import html

from IPython import get_ipython
from IPython.display import DisplayHandle, display
from ipywidgets import HTML, Widget
from matplotlib.figure import Figure

from tract.lab.plots import png

# Colours of the theme have a contrast of 4.5 and more in both; figures are white, and turned dark.
STYLE = """<style>
.tract img { max-width: 100%; height: auto }
.tract .tract-row { display: flex; flex-wrap: wrap; gap: 4px }
.tract .tract-row > * { min-width: 0; max-width: 100% }
.tract .widget-box:not(.tract-table) { overflow: hidden }
.tract :is(.widget-box, .widget-html, .widget-html-content) { min-width: 0; max-width: 100% }
.tract .widget-html-content { flex: 1 1 auto }
.tract .widget-button.mod-success { background: #2e7d32; color: white }
.tract-bad { color: var(--jp-error-color0, #b71c1c); font-weight: bold }
.tract-good { color: var(--jp-success-color0, #1b5e20); font-weight: bold }
body[data-jp-theme-light="false"] .tract img.tract-figure {
  filter: invert(0.88) hue-rotate(180deg) }
body[data-jp-theme-light="false"] .tract-bad { color: #ff8a80 }
body[data-jp-theme-light="false"] .tract-good { color: #81c784 }
</style>"""
# Sliders of ipywidgets have a label that assistive technology does not find: it is put on them.
NAMES = """<img alt="" src="data:," style="display: none" onerror="
const name = () => document.querySelectorAll('.tract [role=slider]:not([aria-label])').forEach(
  handle => { const label = handle.closest('.widget-inline-hbox')?.querySelector('label');
    if (label) handle.setAttribute('aria-label', label.textContent) });
if (!window.tractNames) {
  window.tractNames = new MutationObserver(name);
  window.tractNames.observe(document.body, {childList: true, subtree: true}) }
name()">"""


def show(widget: Widget, picture: Figure | bytes) -> DisplayHandle | None:
    """Display a widget, and where it cannot live a picture of it: a figure or the bytes of a PNG.

    The picture is not shown beside a living widget. Plain Python, which has no display, shows
    nothing.
    """
    if get_ipython() is None:
        return None
    bundle = widget._repr_mimebundle_() | _picture(widget, picture)
    return display(bundle, raw=True, display_id=True)


def show_picture(widget: Widget, picture: Figure | bytes, instead: DisplayHandle | None) -> None:
    """Display the picture of a widget alone, perhaps instead of what was displayed before."""
    if instead is not None:
        instead.update(_picture(widget, picture), raw=True)
    elif get_ipython() is not None:
        display(_picture(widget, picture), raw=True)


def _picture(widget: Widget, picture: Figure | bytes) -> dict:
    content = png(picture) if isinstance(picture, Figure) else picture
    name = f"<{type(widget).__name__}>"
    return {"image/png": base64.b64encode(content).decode(), "text/plain": name}


def image(content: bytes, alt: str, *, figure: bool = True) -> str:
    """A PNG as HTML; a figure takes the theme's brightness, pictures stay as they are."""
    kind = ' class="tract-figure"' if figure else ""
    data = base64.b64encode(content).decode()
    return f'<img{kind} alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def text(content: str, kind: str = "") -> str:
    """Text as HTML, in the theme's colour of what is good or bad."""
    name = f' class="tract-{kind}"' if kind else ""
    return f"<span{name}>{html.escape(content)}</span>"


def style_sheet() -> HTML:
    """The widget that brings styles, and names of sliders, along."""
    return HTML(STYLE + NAMES, layout={"display": "none"})
