"""Display widgets with a static picture for readers without a kernel.

JupyterLab shows the widget while its kernel lives; code hosts and converters show the picture. Of
notebooks that are executed with nobody there `execute` keeps the picture alone: what a widget
knows dies with its kernel, and JupyterLab would report it missing instead.
"""

import base64

from IPython import get_ipython
from IPython.display import display
from ipywidgets import Widget
from matplotlib.figure import Figure

from tract.lab.plots import png


def show(widget: Widget, picture: Figure | bytes) -> None:
    """Display a widget, and where it cannot live a picture of it: a figure or the bytes of a PNG.

    The picture is not shown beside a living widget. Plain Python, which has no display, shows
    nothing.
    """
    if get_ipython() is None:
        return
    content = png(picture) if isinstance(picture, Figure) else picture
    bundle = widget._repr_mimebundle_() | {
        "image/png": base64.b64encode(content).decode(),
        "text/plain": f"<{type(widget).__name__}>",
    }
    display(bundle, raw=True)
