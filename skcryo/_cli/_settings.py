"""What several commands ask of their arguments: the box, lengths in pixels of the input, what is done to the images."""

from ._common import CommandError

# A larger box is cropped in Fourier space to this one unless --downsample says otherwise: the cost of a comparison
# grows with the area, and noisy images tell poses and classes apart by coarse features.
DEFAULT_BOX = 64


class Settings:
    """What a run does, with every default filled in; each command has its own, which adds to this one.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of a command that makes images smaller, dark ones light, and uses CTFs.
    stack : ParticleStack
        The input.
    largest_box : int or None, default=DEFAULT_BOX
        Box that is worked at, at most, unless --downsample says otherwise. None: that of the input.

    Raises
    ------
    CommandError
        If an argument does not fit the input.
    """

    outputs = ()  # names of the files that a run leaves, ``run.json`` last
    worked = "worked"  # what is done in the smaller box, for the report

    def __init__(self, args, stack, *, largest_box=DEFAULT_BOX):
        box, width = stack.image_shape
        if box != width:
            raise CommandError(f"images are {box} x {width} pixels; square images are wanted")
        self.box, self.pixel_size = box, stack.pixel_size
        self.working_box = args.downsample or min(largest_box or box, box)
        if self.working_box > box:
            raise CommandError(
                f"--downsample {self.working_box} is above the box of the input; at most {box} is wanted"
            )
        self.seed = args.seed or 0
        self.invert = args.invert
        self.normalize = True
        self.use_ctf = stack.ctf is not None and not args.no_ctf

    @property
    def scale(self):
        """Pixels of the input in one pixel of the images that are worked on."""
        return self.box / self.working_box

    @property
    def working_pixel_size(self):
        """Angstrom of a pixel of the images that are worked on, and of the voxels of their volumes."""
        return self.pixel_size * self.scale

    def working(self, length):
        """A length in pixels of the input, in pixels of the images that are worked on; None is "auto"."""
        return "auto" if length is None else length / self.scale

    # ------------------------------------------------------------------------------------ for commands' own arguments
    def _want_pixel_size(self):
        if self.pixel_size is None:
            raise CommandError("the input says no pixel size; --pixel-size in Angstrom is wanted")

    @staticmethod
    def _want_particles(stack, n_classes=1, *, why=""):
        """At least two particles, and one for each class."""
        if len(stack) < 2:
            raise CommandError(f"the input has 1 particle; at least two are wanted{why}")
        if n_classes > len(stack):
            raise CommandError(
                f"--classes {n_classes} is more than the {len(stack)} particles of the input; at most {len(stack)} is "
                "wanted"
            )

    def _pixels(self, length, option):
        """A length as :func:`skcryo._cli._common.length` returns it, in pixels of the input, or None."""
        if length is None:
            return None
        value, unit = length
        if unit == "px":
            return value
        if self.pixel_size is None:
            raise CommandError(f"{option} is in Angstrom but the input has no pixel size; pixels are wanted")
        return value / self.pixel_size

    def _max_shift(self, length):
        pixels = self._pixels(length, "--max-shift")
        if pixels is not None and pixels >= self.box / 2:
            raise CommandError(f"--max-shift is {pixels:g} pixels; less than half of the box of {self.box} is wanted")
        return pixels

    def _mask_radius(self, length):
        pixels = self._pixels(length, "--mask-radius")
        if pixels is not None and not 0 < pixels <= self.box:
            raise CommandError(
                f"--mask-radius is {pixels:g} pixels of the input; above 0 and at most its box of {self.box} is wanted"
            )
        return pixels

    # ------------------------------------------------------------------------------------ for the report, for going on
    def rows(self):
        """Return names and values for the report."""
        smaller = f", {self.worked} at {self.working_box} px" if self.scale != 1 else ""
        return [
            ("box", f"{self.box} px{smaller}"),
            ("contrast", "inverted" if self.invert else "as in the input"),
            ("background of each image", "mean 0, standard deviation 1" if self.normalize else "as in the input"),
            ("seed", self.seed),
        ]

    def key(self):
        """Return what decides the result, JSON-ready, but for the input: a run goes on only under an equal key."""
        return {
            "--downsample": self.working_box,
            "--invert": self.invert,
            "--pixel-size": self.pixel_size,
            "CTF": self.use_ctf,
            "--seed": self.seed,
        }


def told_length(pixels, default):
    """A length in pixels of the input for a person, or what is done where none was given."""
    return default if pixels is None else f"{pixels:g} px of the input"


def key_length(pixels):
    """A length in pixels of the input for a key."""
    return "auto" if pixels is None else f"{pixels:g} px"
