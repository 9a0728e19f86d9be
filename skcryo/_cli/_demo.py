"""``skcryo demo``: particles whose truth is known, classified from their files as anybody's would be."""

import json
from pathlib import Path

import numpy as np

from ._classify2d import classify
from ._common import CommandError, note, say
from ._parser import make_parser
from ._run_folder import read_json, write_text

N_PARTICLES = 2000
N_CLASSES = 40
BOX = 64
SIDE = 320.0  # of the box, in Angstrom
SNR = 0.2
# A view within this angle of another shows nearly the same picture.
CLOSE = 20.0


def main(args, argv):
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of demo.
    argv : list of str
        The arguments as they were given, for the report.
    """
    from ..metrics import view_coherence

    folder = Path(args.output)
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--output {folder} is a file; a folder is wanted")
    if (folder / "run.json").exists() and not args.overwrite:
        raise CommandError(f"{folder} holds a finished demo; give --overwrite to replace it, or another --output")
    rotations = simulate(folder / "simulated", args.seed, quiet=args.quiet)
    words = ["classify2d", str(folder / "simulated" / "particles.star"), f"--output={args.output}"]
    words += ["-k", str(N_CLASSES), "--seed", str(args.seed)]
    words += [f"--{name}" for name in ("restart", "overwrite", "quiet") if getattr(args, name)]
    words += [] if args.jobs is None else ["--jobs", str(args.jobs)]
    run, estimator = classify(make_parser().parse_args(words), argv)
    close = view_coherence(estimator.labels_, rotations).share_under(CLOSE)
    chance = (1 - np.cos(np.radians(CLOSE))) / 2
    say(
        f"{close:.0%} of the pairs of particles in one class are seen from within {CLOSE:g} degrees "
        f"of each other (by chance {chance:.0%})"
    )
    for path in run.paths.values():
        if path.suffix in (".png", ".html"):
            say(path)


def simulate(folder, seed, *, quiet=False):
    """Write simulated particles, unless a demo that was interrupted left them.

    Parameters
    ----------
    folder : Path
        For ``particles.mrcs``, ``particles.star`` and ``truth.json``.
    seed : int
        Decides the molecule and the particles.
    quiet : bool, default=False
        Say nothing on stderr.

    Returns
    -------
    rotations : ndarray of shape (N_PARTICLES, 3, 3)
        True poses.
    """
    from ..datasets import make_molecule, make_particles
    from ..io import save_particles

    facts = {"seed": seed, "particles": N_PARTICLES, "box": BOX, "snr": SNR}
    known = read_json(folder / "truth.json")
    if known is not None and known["facts"] == facts:
        return np.array(known["rotations"])
    if not quiet:
        note(f"simulating {N_PARTICLES} particles")
    folder.mkdir(parents=True, exist_ok=True)
    pixel_size = SIDE / BOX
    molecule = make_molecule(BOX, random_state=seed, voxel_size=pixel_size)
    stack, truth = make_particles(
        molecule, N_PARTICLES, preset="ctf", snr=SNR, pixel_size=pixel_size, random_state=seed
    )
    save_particles(folder / "particles.star", stack, images_path=folder / "particles.mrcs", overwrite=True)
    # Last, so that it stands for the others.
    write_text(folder / "truth.json", json.dumps({"facts": facts, "rotations": truth.rotations.tolist()}))
    return truth.rotations
