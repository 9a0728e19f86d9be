"""The parser of all commands: nothing but the standard library, so that wrong arguments are told at once."""

import argparse

from .. import __version__
from ._common import class_numbers, integer, jobs, latent_region, length, positive
from ._texts import TEXTS

_DESCRIPTION = "Single-particle cryo-EM in the style of scikit-learn."


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage before it: what was given and what is wanted."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help says more)\n")


def make_parser():
    """Return the parser of all commands.

    Returns
    -------
    parser : argparse.ArgumentParser
        What it parses has a name `command`; the function `main` of the module ``skcryo._cli._COMMAND`` runs it.
    """
    parser = _Parser(prog="skcryo", description=_DESCRIPTION, epilog="skcryo COMMAND --help says more.")
    parser.add_argument("--version", action="version", version=f"skcryo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, add_options in _COMMANDS.items():
        text = TEXTS[name]
        add_options(
            commands.add_parser(
                name,
                help=text.help,
                description=text.description,
                epilog=text.examples,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


def _add_demo(parser):
    parser.add_argument("-o", "--output", metavar="DIR", default="skcryo-demo", help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=integer(0), default=0, metavar="N", help="random seed (default: %(default)s)")
    _add_run_options(parser)


def _add_classify2d(parser):
    _add_input(parser, "STAR, .cs or MRCS files with the particles")
    parser.add_argument("-k", "--classes", type=integer(1), metavar="K", help="number of classes (default: 50)")
    parser.add_argument(
        "--method",
        choices=["kmeans", "sml", "ml"],
        help="kmeans (default): rotation-invariant k-means. sml: particles are turned and centred first, then "
        "classified by statistical manifold learning, for many classes of very noisy particles. ml: the same with "
        "independent class means, that is by maximum likelihood",
    )
    parser.add_argument(
        "--manifold",
        choices=["sphere", "flat"],
        help="of --method sml: class averages vary smoothly over a sphere (default; as views do) or a flat grid",
    )
    parser.add_argument(
        "--resolution",
        type=positive,
        metavar="A",
        help="of --method sml and ml: finest detail compared, in Angstrom (default: a sixteenth of the box)",
    )
    parser.add_argument(
        "--no-align",
        action="store_true",
        help="of --method sml and ml: particles are aligned already, by psi and origins of the input where it has "
        "them, else as they are",
    )
    parser.add_argument(
        "--metric",
        choices=["l2", "sobolev", "w1"],
        help="of --method kmeans: distance between images: l2 (default; of images smoothed a little), w1 (wavelet "
        "earth mover's distance) or sobolev (close to w1, and fast); the last two are for images without CTF",
    )
    _add_max_shift(parser, "; 0 for centred particles and many times faster (default: 5%% of the box in x and in y)")
    parser.add_argument(
        "--n-angles", type=integer(1), metavar="N", help="of --method kmeans: in-plane angles tried (default: 200)"
    )
    parser.add_argument(
        "--max-iter",
        type=integer(1),
        metavar="N",
        help="iterations at most (default: 50); those after the alignment with --method sml and ml (default: 100)",
    )
    _add_downsample(parser, 16, "classify at this box size in pixels; angles and origins are written for the input")
    parser.add_argument(
        "--select",
        type=class_numbers,
        metavar="LIST",
        help="do not classify: write the particles of these classes (3,5,8 or 1-4,9) of a finished run, given as STAR, "
        "to the STAR file OUT",
    )
    _add_image_options(parser)
    _add_run_options(parser)


def _add_reconstruct(parser):
    _add_input(parser, "STAR or .cs files with particles and poses")
    _add_mask_radius(parser, "; what is outside becomes zero (default: 0.45 of the box)")
    parser.add_argument(
        "--max-resolution", type=positive, metavar="A", help="use nothing finer than this (default: two pixels)"
    )
    _add_downsample(parser, 8, "reconstruct at this box size", "that of the input")
    parser.add_argument(
        "--no-normalize",
        action="store_true",
        help="take the images as they are, instead of bringing the background of each to mean 0 and standard deviation "
        "1",
    )
    _add_image_options(parser, seed="random seed of the half sets")
    _add_run_options(parser)


def _add_abinitio(parser):
    _add_input(parser, "STAR, .cs or MRCS files with the particles")
    parser.add_argument(
        "-k", "--classes", type=integer(1), default=1, metavar="K", help="states of the molecule (default: 1)"
    )
    _add_pose_search(parser)
    _add_image_options(parser)
    _add_run_options(parser)


def _add_classify3d(parser):
    _add_input(parser, "STAR, .cs or MRCS files with the particles")
    parser.add_argument(
        "-k", "--classes", type=integer(2), default=2, metavar="K", help="number of classes (default: %(default)s)"
    )
    parser.add_argument(
        "--poses",
        choices=["abinitio", "lines", "input"],
        default="abinitio",
        help="where first poses and shifts are from: abinitio (default; an ab initio volume of all particles, for real "
        "particles), lines (common lines alone, quicker; for images that are centred but for --max-shift), or input "
        "(those of the STAR file)",
    )
    _add_pose_search(parser, "; none with --poses lines")
    _add_image_options(parser)
    _add_run_options(parser)


def _add_poses(parser):
    _add_input(parser, "STAR, .cs or MRCS files with the particles")
    _add_pose_search(parser)
    parser.add_argument(
        "--steps", type=integer(1), default=1500, metavar="N", help="steps of training (default: %(default)s)"
    )
    parser.set_defaults(classes=1)
    _add_image_options(parser)
    _add_run_options(parser)


def _add_heterogeneity(parser):
    _add_input(parser, "STAR or .cs files with particles and poses")
    parser.add_argument(
        "-z", "--z-dim", type=integer(0), default=8, metavar="N", help="latent coordinates (default: %(default)s)"
    )
    parser.add_argument(
        "--volumes",
        type=integer(1),
        default=10,
        metavar="N",
        help="volumes at centres of the coordinates (default: %(default)s)",
    )
    parser.add_argument(
        "--path",
        type=integer(0),
        default=10,
        metavar="N",
        help="volumes along the motion, and its moving picture (default: %(default)s; 0 for none)",
    )
    parser.add_argument(
        "--select",
        type=latent_region,
        metavar="REGION",
        help="do not learn: write the particles of a finished run, given as STAR, that are nearest to some volumes "
        "(3,5,8-12) or whose coordinates are within some ranges (z1=0.5:2,z3=:0) to the STAR file OUT",
    )
    parser.add_argument(
        "--steps", type=integer(1), metavar="N", help="steps of training (default: 3000, or three passes)"
    )
    _add_mask_radius(parser, " (default: 0.45 of the box)")
    _add_downsample(parser, 16, "work at this box size in pixels")
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where the network is trained: auto (default; a GPU if torch sees one), cpu or cuda",
    )
    _add_image_options(parser)
    _add_run_options(parser)


_COMMANDS = {
    "demo": _add_demo,
    "classify2d": _add_classify2d,
    "reconstruct": _add_reconstruct,
    "abinitio": _add_abinitio,
    "classify3d": _add_classify3d,
    "poses": _add_poses,
    "heterogeneity": _add_heterogeneity,
}

# ------------------------------------------------------------------------------------- options that commands share


def _add_input(parser, what):
    parser.add_argument("particles", nargs="+", metavar="STAR", help=what)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for the results")


def _add_pose_search(parser, more=""):
    """How poses are found from nothing."""
    _add_max_shift(parser, f" (default: 5.5%% of the box in x and in y{more})")
    _add_mask_radius(parser, " (default: 0.42 of the box)")
    parser.add_argument(
        "--starts", type=integer(1), default=5, metavar="N", help="random starts at most (default: %(default)s)"
    )
    _add_downsample(parser, 8, "work at this box size in pixels; poses are written for the input")
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where poses are searched: auto (default; a GPU if torch sees one), cpu or cuda",
    )


def _add_max_shift(parser, more):
    parser.add_argument(
        "--max-shift",
        type=length,
        metavar="LENGTH",
        help=f"largest shift searched, in pixels of the input (6 or 6px) or Angstrom (8A){more}",
    )


def _add_mask_radius(parser, more):
    parser.add_argument(
        "--mask-radius",
        type=length,
        metavar="LENGTH",
        help="radius of the ball that holds the particle, in pixels of the input (60 or 60px) or Angstrom (140A)"
        f"{more}",
    )


def _add_downsample(parser, at_least, what, default="64, or the box of the input if smaller"):
    parser.add_argument("--downsample", type=integer(at_least), metavar="BOX", help=f"{what} (default: {default})")


def _add_image_options(parser, *, seed="random seed"):
    """What the images are, and the seed."""
    parser.add_argument("--seed", type=integer(0), metavar="N", help=f"{seed} (default: 0)")
    parser.add_argument(
        "--invert", action="store_true", help="particles are dark on light: change the sign of the images"
    )
    parser.add_argument(
        "--pixel-size", type=positive, metavar="A", help="pixel size in Angstrom, instead of what the files say"
    )
    parser.add_argument("--no-ctf", action="store_true", help="ignore the CTF of the input")
    parser.add_argument("--images-dir", metavar="DIR", help="folder that image names in the STAR file are relative to")


def _add_run_options(parser):
    """How the run goes."""
    parser.add_argument("--jobs", type=jobs, metavar="N", help="processors (default: all); does not change the result")
    parser.add_argument("--restart", action="store_true", help="begin again, giving up an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a finished run")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
