"""The command line: ``skcryo`` or ``python -m skcryo``. Each command lives in a module of ``skcryo._cli``."""

import importlib
import sys

from ._cli._common import CommandError, note, one_line
from ._cli._parser import make_parser


def main(argv=None):
    """Run a command.

    Parameters
    ----------
    argv : list of str, default=None
        Arguments without the program's name; those of the process if None.

    Returns
    -------
    exit_code : int
        0 if all went well, 2 if the arguments or the input are at fault, 1 for other errors, 130 if
        interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = make_parser().parse_args(argv)
    try:
        importlib.import_module(f"skcryo._cli._{args.command}").main(args, argv)
    except CommandError as error:
        note(f"skcryo {args.command}: error: {error}")
        return error.exit_code
    except OSError as error:
        note(f"skcryo {args.command}: error: {one_line(error)}")
        return 1
    except KeyboardInterrupt:
        note(f"skcryo {args.command}: interrupted; the same command goes on from the last checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
