"""``--select``: some particles of a finished run, by their classes or latent coordinates, as a STAR file."""

import numpy as np

from ._common import CommandError, note, one_line, say


def main(args, argv):
    """Run ``skcryo classify2d STAR --select``.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of classify2d, with `select`.
    argv : list of str
        Not used: nothing is reported.
    """

    def choose(table):
        return by_number(args, table, "rlnClassNumber", "class"), f"in {len(args.select)} classes"

    select(args, choose, _NOT_FOR_SELECT, "takes classes of a finished run")


def select(args, choose, not_allowed, takes):
    """Write the particles that are chosen.

    Parameters
    ----------
    args : argparse.Namespace
        Of a command that has --select.
    choose : callable
        From the table of the input to (chosen, told): ndarray of bool, and what they are.
    not_allowed : dict of str to object
        Arguments that have no meaning beside --select, and what they are where they are not given.
    takes : str
        What --select does, for the error.
    """
    from ..io import load_particles, write_star

    given = [name for name, default in not_allowed.items() if getattr(args, name) != default]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise CommandError(f"--select {takes}; {option} has no meaning beside it")
    if len(args.particles) != 1:
        raise CommandError(f"--select takes one STAR file; {len(args.particles)} are given")
    try:
        # With the images, so that their names are right in another folder too.
        stack = load_particles(args.particles, images_dir=args.images_dir)
        chosen, told = choose(stack.metadata)
        write_star(args.output, stack[chosen], overwrite=args.overwrite)
    except FileExistsError as error:
        raise CommandError(f"{args.output} exists already; --overwrite replaces it") from error
    except (ValueError, OSError) as error:
        raise CommandError(one_line(error)) from error
    if not args.quiet:
        note(f"{chosen.sum()} of {len(chosen)} particles, {told}")
    say(args.output)


def want_column(args, table, column):
    """Refuse a table without a column that a finished run has.

    Parameters
    ----------
    args : argparse.Namespace
    table : ParticleTable or None
    column : str
    """
    if table is None or column not in table:
        raise CommandError(
            f"{args.particles[0]} has no column {column}; the particles.star of a finished run is wanted"
        )


def by_number(args, table, column, what):
    """Particles whose number in a column is among ``args.select``.

    Parameters
    ----------
    args : argparse.Namespace
    table : ParticleTable or None
    column, what : str
        What the numbers are, in the singular: "class" or "volume".

    Returns
    -------
    chosen : ndarray of shape (n_particles,), bool
    """
    want_column(args, table, column)
    numbers = table.numbers(column)
    for wanted in args.select:
        if not (numbers == wanted).any():
            raise CommandError(
                f"--select {wanted}: {args.particles[0]} has no particles in this {what}; "
                f"its {what}{'es' if what == 'class' else 's'} are {_ranges(np.unique(numbers).astype(int))}"
            )
    return np.isin(numbers, args.select)


_NOT_FOR_SELECT = {
    **dict.fromkeys(("classes", "metric", "max_shift", "n_angles", "max_iter", "seed", "downsample")),
    **dict.fromkeys(("pixel_size", "jobs", "method", "manifold", "resolution")),
    **dict.fromkeys(("invert", "no_ctf", "restart", "no_align"), False),
}


def _ranges(numbers):
    """Class numbers as a person writes them: "1-4, 9"."""
    parts = []
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        parts.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(parts)
