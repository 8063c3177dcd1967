"""What the tests of explorers look at."""

from ipywidgets.widgets import HTML, widget


def shown(explorer):
    """All HTML that an explorer's widgets hold at present."""

    def texts(part):
        for child in getattr(part, "children", ()):
            yield from texts(child)
        if isinstance(part, HTML):
            yield part.value

    return "\n".join(texts(explorer.view))


def live_widgets():
    """Number of widgets that have not been closed."""
    return len(widget._instances)
