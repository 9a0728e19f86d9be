"""``skcryo classify2d STAR --select``: the particles of some classes as a STAR file."""

import numpy as np

from ._common import CommandError, note, one_line, say


def main(args, argv):
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of classify2d, with `select`.
    argv : list of str
        Not used: nothing is reported.
    """
    from ..io import load_particles, write_star

    given = [name for name in _NOT_FOR_SELECT if getattr(args, name) not in (None, False)]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise CommandError(f"--select takes classes of a finished run; {option} has no meaning beside it")
    if len(args.particles) != 1:
        raise CommandError(f"--select takes one STAR file; {len(args.particles)} are given")
    try:
        # With the images, so that their names are right in another folder too.
        stack = load_particles(args.particles, images_dir=args.images_dir)
        table = stack.metadata
        if table is None or "rlnClassNumber" not in table:
            raise CommandError(
                f"{args.particles[0]} has no column rlnClassNumber; the particles.star of a finished run is wanted"
            )
        numbers = table.numbers("rlnClassNumber")
        for wanted in args.select:
            if not (numbers == wanted).any():
                raise CommandError(
                    f"--select {wanted}: {args.particles[0]} has no particles in this class; "
                    f"its classes are {_ranges(np.unique(numbers).astype(int))}"
                )
        chosen = np.isin(numbers, args.select)
        write_star(args.output, stack[chosen], overwrite=args.overwrite)
    except FileExistsError as error:
        raise CommandError(f"{args.output} exists already; --overwrite replaces it") from error
    except (ValueError, OSError) as error:
        raise CommandError(one_line(error)) from error
    if not args.quiet:
        note(f"{chosen.sum()} of {len(chosen)} particles, in {len(args.select)} classes")
    say(args.output)


_NOT_FOR_SELECT = (
    "classes",
    "method",
    "manifold",
    "resolution",
    "no_align",
    "metric",
    "max_shift",
    "n_angles",
    "max_iter",
    "seed",
    "downsample",
    "invert",
    "pixel_size",
    "no_ctf",
    "jobs",
    "restart",
)


def _ranges(numbers):
    """Class numbers as a person writes them: "1-4, 9"."""
    parts = []
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        parts.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(parts)
