"""What the tests of rotation-invariant k-means share: images of known classes, shorthands, comparison of fits."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skcryo.cluster import RotInvWassersteinKMeans
from skcryo.ctf import apply_ctf, make_ctf
from skcryo.fourier import rotate_images, shift_images
from skcryo.io import load_particles, save_particles
from skcryo.particles import ParticleStack

METRICS = ("w1", "l2", "sobolev")
SIZE = 32
N_ANGLES = 36
PIXEL_SIZE = 6.0
# (x, y, width) of blobs, for a box of 32 px: six shapes that no rotation makes alike and none maps to itself.
SHAPES = (
    ((-9, 0, 2), (-4, 0, 2), (1, 0, 2), (6, 0, 2), (6, 6, 1.5)),
    ((-8, -4, 2), (7, -6, 2.6), (2, 9, 1.6)),
    ((9, 0, 1.5), (6, 6, 1.8), (0, 8, 2), (-6, 6, 2.2), (-8, -1, 2.4)),
    ((-2, 0, 4.5), (9, 2, 1.6)),
    ((-5, -8, 1.6), (-5, 0, 1.6), (-5, 8, 1.6), (5, -4, 1.6), (5, 3, 1.6)),
    ((0, -9, 1.5), (0, 9, 3), (0, 0, 1.5)),
)


def shapes(n=4, size=SIZE, centre=(0.0, 0.0)):
    """Class averages of known shapes, their mass centred on `centre` (px from the centre of the box)."""
    x = np.arange(size) - size // 2
    images = np.zeros((n, size, size))
    for image, blobs in zip(images, SHAPES):
        u, v, w = np.array(blobs).T * size / 32
        u = u - np.average(u, weights=w**2) + centre[0]
        v = v - np.average(v, weights=w**2) + centre[1]
        for blob in zip(u, v, w):
            image += np.exp(-((x - blob[0]) ** 2 + (x[:, None] - blob[1]) ** 2) / (2 * blob[2] ** 2))
    return images


@dataclass
class Known:
    """Images whose classes and poses are known; `angles` in radians on the grid, `shifts` whole pixels."""

    X: np.ndarray
    clean: np.ndarray
    classes: np.ndarray
    labels: np.ndarray
    angles: np.ndarray
    shifts: np.ndarray
    ctf: np.ndarray | None
    sigma: float

    @property
    def stack(self):
        return ParticleStack(self.X, pixel_size=PIXEL_SIZE, ctf=self.ctf)


def particles(n=60, k=4, seed=0, *, size=SIZE, noise=0.5, shift=0, ctf=False, centre=(0.0, 0.0), chances=None):
    """Turned and moved shapes with noise of `noise` standard deviations of the images."""
    rng = np.random.default_rng(seed)
    classes = shapes(k, size, centre)
    labels = np.r_[np.arange(k), rng.choice(k, n - k, p=chances)]
    angles = 2 * np.pi / N_ANGLES * rng.integers(N_ANGLES, size=n)
    shifts = rng.integers(-shift, shift + 1, (n, 2)).astype(float)
    clean = shift_images(rotate_images(classes[labels], angles), shifts)
    records = None
    if ctf:
        u = rng.uniform(8000, 18000, n)
        records = make_ctf(
            n, defocus_u=u, defocus_v=0.95 * u, defocus_angle=rng.uniform(0, 180, n), voltage=300, cs=2.7
        )
        clean = apply_ctf(clean, records, PIXEL_SIZE)
    sigma = noise * clean.std()
    X = (clean + sigma * rng.standard_normal(clean.shape)).astype(np.float32)
    return Known(X, clean, classes, labels, angles, shifts, records, sigma)


def kmeans(n_clusters=4, **params):
    defaults = {"n_angles": N_ANGLES, "max_shift": 0, "random_state": 0, "n_jobs": 1}
    return RotInvWassersteinKMeans(n_clusters, **defaults | params)


def quiet(estimator, *args, **kwargs):
    """Fit, whether or not it converges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(*args, **kwargs)


def in_files(known, folder):
    """The same images as a lazy stack that lies in files."""
    save_particles(folder / "particles.star", known.stack, images_path=folder / "particles.mrcs")
    stack = load_particles(folder / "particles.star")
    assert not stack.in_memory
    return stack


def correlations(known, averages, labels, angles, shifts):
    """Of images without their noise with what the averages and poses make of them: the least but for a tenth."""
    model = shift_images(rotate_images(averages[labels], angles), shifts)
    if known.ctf is not None:
        model = apply_ctf(model, known.ctf, PIXEL_SIZE)
    inside = disc(known.X.shape[1])
    return np.quantile([np.corrcoef(a[inside], b[inside])[0, 1] for a, b in zip(model, known.clean)], 0.1)


def turned(vectors, angles):
    """Rot(angle) (x, y) for each of the vectors, counter-clockwise from x to y."""
    c, s = np.cos(angles), np.sin(angles)
    return np.stack([c * vectors[:, 0] - s * vectors[:, 1], s * vectors[:, 0] + c * vectors[:, 1]], axis=1)


def disc(size):
    x = np.arange(size) - size // 2
    return x**2 + x[:, None] ** 2 <= ((size - 1) // 2) ** 2


def assert_same_fit(a, b):
    """Bit for bit."""
    for name in ("labels_", "in_plane_angles_", "shifts_", "distances_", "class_averages_", "class_biases_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_array_equal(a.inertia_curve_, b.inertia_curve_)
    assert (a.inertia_, a.n_iter_, a.converged_) == (b.inertia_, b.n_iter_, b.converged_)
