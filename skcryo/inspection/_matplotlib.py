"""The one place where the displays ask for matplotlib."""


def import_pyplot(caller):
    """Return ``matplotlib.pyplot``, or say which extra to install.

    Parameters
    ----------
    caller : str
        What needs matplotlib; named in the error.

    Raises
    ------
    ImportError
        If matplotlib cannot be imported.
    """
    _require_matplotlib(caller)
    import matplotlib.pyplot as plt

    return plt


def new_figure(caller, *, figsize, dpi=100):
    """Return a figure that no pyplot state holds on to: for files written without a screen.

    Parameters
    ----------
    caller : str
        What needs matplotlib; named in the error.
    figsize : (float, float)
        Width and height in inches.
    dpi : float, default=100
        Pixels per inch.

    Raises
    ------
    ImportError
        If matplotlib cannot be imported.
    """
    _require_matplotlib(caller)
    from matplotlib.figure import Figure

    return Figure(figsize=figsize, dpi=dpi)


def _require_matplotlib(caller):
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{caller} needs matplotlib, which is not installed: pip install 'skcryo[plot]'"
        ) from error
