"""What ``--help`` says of each command: a line in the list, what it does and writes, examples."""

from typing import NamedTuple


class Text(NamedTuple):
    """Texts of one command."""

    help: str
    description: str
    examples: str | None = None


TEXTS = {
    "demo": Text(
        help="simulate particles, classify them, say how good the classes are",
        description="""\
Simulates particles of a made-up molecule, with CTF, shifts and noise, writes them as MRCS and STAR, classifies them as
classify2d does and says how good the classes are. It takes a minute or two.
""",
    ),
    "classify2d": Text(
        help="class averages of the particles of a STAR file",
        description="""\
Groups particles into 2-D classes and averages each class: by rotation-invariant k-means or, with --method sml, by
alignment and statistical manifold learning, which tells many classes apart in strong noise.

Writes into the folder OUT:
  particles.star        all columns of the input, with class numbers, in-plane angles and origins; with --method sml or
                        ml, the log-likelihood of each particle and the evidence that it is one
  class_averages.mrcs   the averages; image i is class i
  classes.star          the averages with their share of the particles
  montage.png           all classes, the largest first (needs matplotlib)
  latent_map.png        with --method sml: the averages laid out over the manifold (needs matplotlib)
  report.html           averages, occupancies, convergence, parameters, versions: one file
  run.json              the same facts for programs

A run that was killed goes on when the same command is given again, and ends with the same classes.
""",
        examples="""\
examples:
  skcryo classify2d particles.star -k 50 -o classes
  skcryo classify2d particles.star -k 100 --max-shift 12A --downsample 96 --jobs 8 -o classes
  skcryo classify2d particles.star --method sml -k 300 -o classes
  skcryo classify2d classes/particles.star --select 3,5,8 -o good.star
  skcryo classify2d good.star --method sml --no-align -k 30 -o finer
""",
    ),
    "reconstruct": Text(
        help="a volume from particles whose poses are known",
        description="""\
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
""",
        examples="""\
examples:
  skcryo reconstruct run_data.star -o volume
  skcryo reconstruct run_data.star --mask-radius 140A --downsample 128 -o volume
""",
    ),
    "abinitio": Text(
        help="a volume and poses from particles alone",
        description="""\
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
""",
        examples="""\
examples:
  skcryo abinitio particles.star -o start
  skcryo abinitio particles.star -k 2 --max-shift 20A --mask-radius 120A -o states
  skcryo reconstruct start/particles.star -o volume
""",
    ),
    "classify3d": Text(
        help="classes of particles from common lines, a volume for each",
        description="""\
Divides the particles of a mixture into K classes, from their common lines, and makes a volume of each class.

Poses and shifts are from an ab initio volume of all particles unless --poses says otherwise. Whether there really are K
classes is the verdict, told first in the report and last on stderr: halves of the particles are classified apart, and
each judges the classes of the other. Do not trust classes without it.
Writes into the folder OUT:
  particles.star        all columns of the input, with class numbers, poses and origins
  volume.mrc            the volume of all particles, voxel size set
  class1.mrc, ...       a volume for each class, the largest first, filtered by what its half maps agree on
  class1_half1.mrc, ... the half maps of each class, masked, not filtered
  fsc.star, fsc.png     the Fourier shell correlations of the half maps
  slices.png, class1.png, ...  central slices and projections (need matplotlib)
  weights.png           the weight matrix of the cut, sorted by class (needs matplotlib)
  report.html           verdict, the cut and its bound, pictures, parameters, versions: one file
  run.json              the same facts for programs

A run that was killed goes on when the same command is given again, and ends with the same classes.
""",
        examples="""\
examples:
  skcryo classify3d particles.star -k 2 -o classes
  skcryo classify3d particles.star -k 3 --max-shift 20A --mask-radius 120A -o classes
  skcryo classify3d centred.star -k 2 --poses lines -o classes
  skcryo classify3d run_data.star -k 2 --poses input -o classes
""",
    ),
    "poses": Text(
        help="poses of particles by a network, with how far off they may be",
        description="""\
Finds the poses of the particles from nothing but their images, and says of each how far off it may be.

Poses are those of an ab initio volume, refined; a network that is trained on projections of this volume, with the
noise and the CTFs of the particles, tells what can be known of each (needs torch). Whether to trust them is the
verdict, told first in the report and last on stderr.
Writes into the folder OUT:
  particles.star        all columns of the input, with poses and origins; in skcryoAngleUncertainty the angle in
                        degrees that the error of a pose stays below for nine particles in ten, and in
                        skcryoParticleProbability how likely it is no junk
  network.safetensors   the network and the volume, for poses of new images in Python
  volume.mrc            the volume of all particles, voxel size set
  half1.mrc, half2.mrc  the volumes of two half sets
  fsc.star, fsc.png     the Fourier shell correlation of the half maps
  slices.png            central slices and projections (needs matplotlib)
  views.png             map of the viewing directions (needs matplotlib)
  report.html           verdict, pictures, parameters, versions: one file
  run.json              the same facts for programs

A run that was killed goes on when the same command is given again, and ends with the same poses.
""",
        examples="""\
examples:
  skcryo poses particles.star -o poses
  skcryo poses particles.star --max-shift 20A --mask-radius 120A -o poses
  skcryo reconstruct poses/particles.star -o volume
""",
    ),
    "heterogeneity": Text(
        help="continuous motion of particles whose poses are known",
        description="""\
Learns how the structure varies between particles whose poses are known, and gives each particle latent coordinates.

A network (CryoDRGN; needs torch) is trained to make the volume at any coordinates; coordinates are inferred through it,
with how certain they are. Whether particles differ by more than noise is the verdict, told first in the report and
last on stderr.
Writes into the folder OUT:
  particles.star        all columns of the input, with coordinates in skcryoLatent1, ... and skcryoNearestVolume
  latents.npy           the coordinates, one row a particle
  volume1.mrc, ...      volumes at centres of the coordinates, voxel size set
  centres.npy           the coordinates of these volumes, those of a particle each
  path1.mrc, ...        volumes along the motion, from particle to particle
  path.npy              the coordinates of these volumes
  path.gif              the motion: slices and projections (needs matplotlib)
  latents.png           the particles over the first two principal components (needs matplotlib)
  report.html           verdict, volumes, parameters, versions: one file
  run.json              the same facts for programs

A run that was killed goes on when the same command is given again, and ends with the same coordinates.
""",
        examples="""\
examples:
  skcryo heterogeneity particles.star -z 8 -o motion
  skcryo heterogeneity poses/particles.star -z 1 --volumes 20 -o motion
  skcryo heterogeneity motion/particles.star --select 3,5,8-12 -o near.star
  skcryo heterogeneity motion/particles.star --select z1=0.5:2,z2=:0 -o part.star
""",
    ),
}
