"""What cannot be reconstructed: each error names the argument, what was given and what is wanted."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from skcryo.ctf import make_ctf
from skcryo.particles import ParticleStack
from skcryo.reconstruction import FourierReconstructor, reconstruct_classes
from skcryo.rotations import random_rotations

N, L = 12, 16
ROTATIONS = random_rotations(N, random_state=0)


def images():
    return np.random.default_rng(0).standard_normal((N, L, L)).astype(np.float32)


def stack(**changes):
    return ParticleStack(images(), **({"rotations": ROTATIONS, "pixel_size": 3.0} | changes))


def with_one(array, index, value):
    array = np.array(array, dtype=float)
    array[index] = value
    return array


FITS = {
    "no poses": (lambda: (images(), {}), "X carries no poses; give rotations, a ParticleStack with them, or missing"),
    "too few rotations": (lambda: (images(), {"rotations": ROTATIONS[:5]}), "rotations has 5 matrices, 12 are wanted"),
    "angles for rotations": (lambda: (images(), {"rotations": np.zeros((N, 3))}), "rotations must have shape"),
    "no rotation": (
        lambda: (images(), {"rotations": with_one(ROTATIONS, 4, 1.0)}),
        r"rotations\[4\] is not orthogonal",
    ),
    "mirrored": (lambda: (images(), {"rotations": ROTATIONS * [1, 1, -1]}), r"rotations\[0\] is a reflection"),
    "NaN rotation": (lambda: (images(), {"rotations": with_one(ROTATIONS, 3, np.nan)}), r"rotations\[3\]"),
    "shift of x alone": (
        lambda: (stack(), {"shifts": np.zeros(N)}),
        r"shifts must have shape \(12, 2\): x, y in pixels; got \(12,\)",
    ),
    "infinite shift": (
        lambda: (stack(), {"shifts": with_one(np.zeros((N, 2)), (5, 0), np.inf)}),
        r"shifts\[5\] is \[inf, 0.0\], it must be finite",
    ),
    "CTFs of other images": (lambda: (stack(), {"ctf": make_ctf(7)}), "CTF has 7 records but X has 12 images"),
    "CTF of zero volts": (
        lambda: (stack(), {"ctf": with_field(make_ctf(N), "voltage", 2, 0.0)}),
        r"ctf\[2\]\['voltage'\] is 0, it must be positive",
    ),
    "CTF without pixel size": (lambda: (stack(pixel_size=None), {"ctf": make_ctf(N)}), "CTFs need the pixel size"),
    "NaN pixel": (
        lambda: (stack().replace(data=with_one(images(), (6, 3, 3), np.nan)), {}),
        "Input X contains NaN: image 6",
    ),
    "infinite pixel in an array": (
        lambda: (with_one(images(), (6, 3, 3), np.inf), {"rotations": ROTATIONS}),
        "Input X contains infinity: image 6",
    ),
    "one image": (lambda: (stack()[:1], {}), "n_samples=1 .* half maps need at least two images"),
    "no image": (lambda: (images()[:0], {"rotations": ROTATIONS[:0]}), r"0 sample\(s\)"),
    "one image of weight": (
        lambda: (stack(), {"sample_weight": with_one(np.zeros(N), 3, 1.0)}),
        "half maps need at least two images",
    ),
    "no weight": (lambda: (stack(), {"sample_weight": np.zeros(N)}), "weight"),
    "negative weight": (lambda: (stack(), {"sample_weight": with_one(np.ones(N), 3, -1.0)}), "[Nn]egative"),
    "weights of other images": (
        lambda: (stack(), {"sample_weight": np.ones(5)}),
        "sample_weight has 5 entries but X has 12 images",
    ),
    "oblong images": (lambda: (np.zeros((N, 8, 10)), {"rotations": ROTATIONS}), "needs square images"),
    "one pixel": (lambda: (np.ones((N, 1, 1)), {"rotations": ROTATIONS}), "1 x 1 pixels"),
    "a volume instead of images": (lambda: (np.zeros((4, 4, 4, 4)), {"rotations": ROTATIONS[:4]}), "dim"),
    "a path": (lambda: ("particles.star", {}), "read it first"),
    "half sets 1 and 2": (
        lambda: (stack(), {"half_sets": np.arange(N) % 2 + 1}),
        r"half_sets\[1\] is 2; 0 or 1 is wanted",
    ),
    "half sets of other images": (lambda: (stack(), {"half_sets": [0, 1]}), r"half_sets must have shape \(12,\)"),
    "an empty half": (lambda: (stack(), {"half_sets": np.zeros(N)}), "half 1 holds no image"),
}


def with_field(ctf, name, index, value):
    ctf[name][index] = value
    return ctf


@pytest.mark.parametrize("case", FITS)
def test_fit(case):
    make, message = FITS[case]
    X, options = make()
    with pytest.raises((ValueError, TypeError), match=message):
        FourierReconstructor(random_state=0).fit(X, **options)


@pytest.mark.parametrize(
    "params",
    [{"mask_radius": 0}, {"mask_radius": "tight"}, {"max_frequency": 0.6}, {"n_iter": -1}, {"missing_poses": "guess"}],
    ids=repr,
)
def test_parameters(params):
    with pytest.raises(ValueError, match=f"The {next(iter(params))!r} parameter of FourierReconstructor must be"):
        FourierReconstructor(**params).fit(stack())


def test_use_before_and_after_fit():
    with pytest.raises(NotFittedError):
        FourierReconstructor().predict(stack())
    fitted = FourierReconstructor(random_state=0).fit(stack())
    with pytest.raises(ValueError, match="X carries no poses"):
        fitted.predict(images())
    with pytest.raises(ValueError, match="X has images of 8 x 8 pixels"):
        fitted.score(ParticleStack(images()[:, :8, :8], rotations=ROTATIONS))
    streaming = FourierReconstructor(random_state=0).partial_fit(stack())
    with pytest.raises(ValueError, match="X has pixels of 4.0 A, but earlier calls had 3.0 A"):
        streaming.partial_fit(stack(pixel_size=4.0))
    with pytest.raises(ValueError, match="X has images of 8 x 8 pixels"):
        streaming.partial_fit(ParticleStack(images()[:, :8, :8], rotations=ROTATIONS))


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1], "labels must be 12 integers"),
        (np.zeros(N), "labels must be 12 integers, one for each image; got float64"),
        (np.full(N, -1), "labels names no class"),
        (np.arange(N) // 11, "class 1 of 1 images: .* at least two images"),
    ],
)
def test_classes(labels, message):
    with pytest.raises(ValueError, match=message):
        reconstruct_classes(stack(), labels)
