"""The command line: ``skcryo`` or ``python -m skcryo``. Each command lives in a module of ``skcryo._cli``.

Nothing but the standard library is imported before the arguments are known to be good.
"""

import argparse
import sys

from . import __version__
from ._cli._common import CommandError, class_numbers, integer, jobs, length, note, one_line, positive

_DESCRIPTION = "Single-particle cryo-EM in the style of scikit-learn."

_CLASSIFY2D = """\
Groups particles into 2-D classes by rotation-invariant k-means and averages each class.

Writes into the folder OUT:
  particles.star        all columns of the input, with class numbers, in-plane angles and origins
  class_averages.mrcs   the averages; image i is class i
  classes.star          the averages with their share of the particles
  montage.png           all classes, the largest first (needs matplotlib)
  report.html           averages, occupancies, convergence, parameters, versions: one file
  run.json              the same facts for programs

A run that was killed goes on when the same command is given again, and ends with the same classes.
"""

_RECONSTRUCT = """\
Makes a volume of particles whose poses are known, from refinement in RELION or cryoSPARC, or from skcryo.

The CTF is corrected, two half maps tell how far the volume can be trusted, and the volume is filtered accordingly.
Writes into the folder OUT:
  volume.mrc            the volume, voxel size set
  half1.mrc, half2.mrc  the volumes of the half sets (rlnRandomSubset, or drawn), masked, not filtered
  fsc.star              the Fourier shell correlation of the half maps
  fsc.png, slices.png   the same as a plot; central slices and projections (need matplotlib)
  report.html           pictures, resolution, parameters, versions: one file
  run.json              the same facts for programs

A run that was killed goes on when the same command is given again, and ends with the same volume.
"""

_RECONSTRUCT_EXAMPLES = """\
examples:
  skcryo reconstruct run_data.star -o volume
  skcryo reconstruct run_data.star --mask-radius 140A --downsample 128 -o volume
"""

_ABINITIO = """\
Finds a volume and the poses of the particles from nothing but their images.

Several random starts are made until two of them find the same molecule; the poses are refined from there. Whether that
happened is the verdict: it is told first in the report and last on stderr. Do not trust a volume without it.
Writes into the folder OUT:
  particles.star        all columns of the input, with poses, origins, half sets and, with -k, class numbers
  volume.mrc            the volume of all particles, voxel size set
  half1.mrc, half2.mrc  the volumes of two half sets refined apart
  class1.mrc, ...       with -k: a volume for each class, the largest first, low-passed
  fsc.star, fsc.png     the Fourier shell correlation of the half maps
  slices.png, class1.png, ...  central slices and projections (need matplotlib)
  views.png             map of the viewing directions (needs matplotlib)
  report.html           verdict, pictures, parameters, versions: one file
  run.json              the same facts for programs

A run that was killed goes on when the same command is given again, and ends with the same volume.
"""

_ABINITIO_EXAMPLES = """\
examples:
  skcryo abinitio particles.star -o start
  skcryo abinitio particles.star -k 2 --max-shift 20A --mask-radius 120A -o states
  skcryo reconstruct start/particles.star -o volume
"""

_EXAMPLES = """\
examples:
  skcryo classify2d particles.star -k 50 -o classes
  skcryo classify2d particles.star -k 100 --max-shift 12A --downsample 96 --jobs 8 -o classes
  skcryo classify2d classes/particles.star --select 3,5,8 -o good.star
"""


def make_parser():
    """Return the parser of all commands.

    Returns
    -------
    parser : argparse.ArgumentParser
    """
    parser = _Parser(prog="skcryo", description=_DESCRIPTION, epilog="skcryo COMMAND --help says more.")
    parser.add_argument("--version", action="version", version=f"skcryo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="simulate particles, classify them, say how good the classes are",
        description="Simulates particles of a made-up molecule, with CTF, shifts and noise, writes them as "
        "MRCS and STAR, classifies them as classify2d does and says how good the classes are. It takes a "
        "minute or two.",
    )
    demo.add_argument(
        "-o", "--output", metavar="DIR", default="skcryo-demo", help="folder (default: %(default)s)"
    )
    demo.add_argument(
        "--seed", type=integer(0), default=0, metavar="N", help="random seed (default: %(default)s)"
    )
    _add_run_options(demo)

    classify = commands.add_parser(
        "classify2d",
        help="class averages of the particles of a STAR file",
        description=_CLASSIFY2D,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    classify.add_argument(
        "particles", nargs="+", metavar="STAR", help="STAR, .cs or MRCS files with the particles"
    )
    classify.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for the results")
    classify.add_argument(
        "-k", "--classes", type=integer(1), metavar="K", help="number of classes (default: 50)"
    )
    classify.add_argument(
        "--metric",
        choices=["l2", "sobolev", "w1"],
        help="distance between images: l2 (default; of images smoothed a little), w1 (wavelet earth mover's distance) "
        "or sobolev (close to w1, and fast); the last two are for images without CTF",
    )
    classify.add_argument(
        "--max-shift",
        type=length,
        metavar="LENGTH",
        help="largest shift searched, in pixels of the input (6 or 6px) or Angstrom (8A); "
        "0 for centred particles and many times faster (default: 5%% of the box in x and in y)",
    )
    classify.add_argument(
        "--n-angles", type=integer(1), metavar="N", help="in-plane angles tried (default: 200)"
    )
    classify.add_argument("--max-iter", type=integer(1), metavar="N", help="iterations at most (default: 50)")
    classify.add_argument("--seed", type=integer(0), metavar="N", help="random seed (default: 0)")
    classify.add_argument(
        "--downsample",
        type=integer(16),
        metavar="BOX",
        help="classify at this box size in pixels; angles and origins are written for the input "
        "(default: 64, or the box of the input if smaller)",
    )
    classify.add_argument(
        "--invert", action="store_true", help="particles are dark on light: change the sign of the images"
    )
    classify.add_argument(
        "--pixel-size",
        type=positive,
        metavar="A",
        help="pixel size in Angstrom, instead of what the files say",
    )
    classify.add_argument("--no-ctf", action="store_true", help="ignore the CTF of the input")
    classify.add_argument(
        "--images-dir", metavar="DIR", help="folder that image names in the STAR file are relative to"
    )
    classify.add_argument(
        "--select",
        type=class_numbers,
        metavar="LIST",
        help="do not classify: write the particles of these classes (3,5,8 or 1-4,9) "
        "of a finished run, given as STAR, to the STAR file OUT",
    )
    _add_run_options(classify)
    _add_reconstruct(commands)
    _add_abinitio(commands)
    return parser


def _add_reconstruct(commands):
    """The parser of reconstruct."""
    parser = commands.add_parser(
        "reconstruct",
        help="a volume from particles whose poses are known",
        description=_RECONSTRUCT,
        epilog=_RECONSTRUCT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("particles", nargs="+", metavar="STAR", help="STAR or .cs files with particles and poses")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for the results")
    parser.add_argument(
        "--mask-radius",
        type=length,
        metavar="LENGTH",
        help="radius of the ball that holds the particle, in pixels of the input (60 or 60px) or Angstrom (140A); what "
        "is outside becomes zero (default: 0.45 of the box)",
    )
    parser.add_argument(
        "--max-resolution", type=positive, metavar="A", help="use nothing finer than this (default: two pixels)"
    )
    parser.add_argument(
        "--downsample", type=integer(8), metavar="BOX", help="reconstruct at this box size (default: that of the input)"
    )
    parser.add_argument(
        "--invert", action="store_true", help="particles are dark on light: change the sign of the images"
    )
    parser.add_argument(
        "--no-normalize",
        action="store_true",
        help="take the images as they are, instead of bringing the background of each to mean 0 and standard deviation "
        "1",
    )
    parser.add_argument(
        "--pixel-size", type=positive, metavar="A", help="pixel size in Angstrom, instead of what the files say"
    )
    parser.add_argument("--no-ctf", action="store_true", help="ignore the CTF of the input")
    parser.add_argument(
        "--images-dir", metavar="DIR", help="folder that image names in the STAR file are relative to"
    )
    parser.add_argument(
        "--seed", type=integer(0), metavar="N", help="random seed of the half sets (default: 0)"
    )
    _add_run_options(parser)


def _add_abinitio(commands):
    """The parser of abinitio."""
    parser = commands.add_parser(
        "abinitio",
        help="a volume and poses from particles alone",
        description=_ABINITIO,
        epilog=_ABINITIO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("particles", nargs="+", metavar="STAR", help="STAR, .cs or MRCS files with the particles")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for the results")
    parser.add_argument(
        "-k", "--classes", type=integer(1), default=1, metavar="K", help="states of the molecule (default: 1)"
    )
    parser.add_argument(
        "--max-shift",
        type=length,
        metavar="LENGTH",
        help="largest shift in x and in y, in pixels of the input (6 or 6px) or Angstrom (8A) (default: 5.5%% of the "
        "box)",
    )
    parser.add_argument(
        "--mask-radius",
        type=length,
        metavar="LENGTH",
        help="radius of the ball that holds the particle, in pixels of the input (60 or 60px) or Angstrom (140A) "
        "(default: 0.42 of the box)",
    )
    parser.add_argument(
        "--starts", type=integer(1), default=5, metavar="N", help="random starts at most (default: %(default)s)"
    )
    parser.add_argument(
        "--downsample",
        type=integer(8),
        metavar="BOX",
        help="work at this box size in pixels; poses are written for the input (default: 64, or the box of the input "
        "if smaller)",
    )
    parser.add_argument("--seed", type=integer(0), metavar="N", help="random seed (default: 0)")
    parser.add_argument(
        "--invert", action="store_true", help="particles are dark on light: change the sign of the images"
    )
    parser.add_argument(
        "--pixel-size", type=positive, metavar="A", help="pixel size in Angstrom, instead of what the files say"
    )
    parser.add_argument("--no-ctf", action="store_true", help="ignore the CTF of the input")
    parser.add_argument(
        "--images-dir", metavar="DIR", help="folder that image names in the STAR file are relative to"
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where poses are searched: auto (default; a GPU if torch sees one), cpu or cuda",
    )
    _add_run_options(parser)


def _add_run_options(parser):
    """Options that all commands share."""
    parser.add_argument(
        "--jobs",
        type=jobs,
        default=None,
        metavar="N",
        help="processors (default: all); does not change the result",
    )
    parser.add_argument("--restart", action="store_true", help="begin again, giving up an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a finished run")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage before it: what was given and what is wanted."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help says more)\n")


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
        if args.command == "demo":
            from ._cli._demo import run
        elif args.command == "abinitio":
            from ._cli._abinitio import run
        elif args.command == "reconstruct":
            from ._cli._reconstruct import run
        elif args.select is not None:
            from ._cli._select import run
        else:
            from ._cli._classify2d import run
        run(args, argv)
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
