"""What the tests of the command line share."""

from skcryo.__main__ import main
from skcryo._cli._classify2d import OUTPUTS
from skcryo.io import read_star


def has_matplotlib():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


WRITTEN = [name for name in OUTPUTS if name != "montage.png" or has_matplotlib()]


def exit_code(argv):
    """The exit code, also where argparse leaves by SystemExit."""
    try:
        return main([str(word) for word in argv])
    except SystemExit as error:
        return error.code


def column(star, name="rlnClassNumber"):
    return read_star(star)[name].tolist()
