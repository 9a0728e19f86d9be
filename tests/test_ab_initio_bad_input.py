"""What no volume can be made of: each error names the argument, what was given and what is wanted."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from skcryo.ctf import make_ctf
from skcryo.particles import ParticleStack
from skcryo.reconstruction import AbInitioVolume

N, L = 12, 16
SHORT = {"angular_step": 30, "n_starts": 1, "max_epochs": 1, "max_rounds": 1, "random_state": 0, "n_jobs": 1}


def images():
    return np.random.default_rng(0).standard_normal((N, L, L)).astype(np.float32)


def stack(**changes):
    return ParticleStack(images(), **({"pixel_size": 3.0} | changes))


def with_one(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


def wrong_ctf(name, value):
    ctf = make_ctf(N)
    ctf[name][2] = value
    return ctf


def masked(side=32, radius=10):
    x = np.arange(side) - side // 2
    return np.random.default_rng(0).standard_normal((N, side, side)) * (np.hypot(x, x[:, None]) < radius)


FITS = {
    "NaN pixel": (lambda: (with_one(images(), (6, 3, 3), np.nan), {}), "Input X contains NaN: image 6"),
    "NaN pixel in a stack": (
        lambda: (ParticleStack(with_one(images(), (6, 3, 3), np.nan)), {}),
        "Input X contains NaN: image 6",
    ),
    "infinite pixel": (lambda: (with_one(images(), (6, 3, 3), np.inf), {}), "Input X contains infinity: image 6"),
    "CTFs of other images": (lambda: (stack(), {"ctf": make_ctf(7)}), "CTF has 7 records but X has 12 images"),
    "CTF of zero volts": (
        lambda: (stack(), {"ctf": wrong_ctf("voltage", 0)}),
        r"ctf\[2\]\['voltage'\] is 0, it must be positive",
    ),
    "CTF of unknown defocus": (
        lambda: (stack(), {"ctf": wrong_ctf("defocus_u", np.nan)}),
        r"ctf\[2\]\['defocus_u'\] is nan",
    ),
    "CTF that is no record": (lambda: (stack(), {"ctf": np.zeros(N)}), "ctf"),
    "CTF without pixel size": (lambda: (images(), {"ctf": make_ctf(N)}), "CTFs need the pixel size"),
    "one image": (lambda: (images()[:1], {}), r"1 sample\(s\) .* minimum of 2"),
    "no image": (lambda: (images()[:0], {}), r"0 sample\(s\)"),
    "all zero": (lambda: (np.zeros((N, L, L)), {}), "the background holds no power in Fourier ring 1"),
    "all the same grey": (lambda: (np.full((N, L, L), 3.0), {}), "the background holds no power"),
    "masked before": (lambda: (masked(), {}), "the background holds no power .* masked already"),
    "oblong images": (lambda: (images()[:, :, :8], {}), "needs square images"),
    "a volume's worth of dimensions": (lambda: (np.zeros((4, 4, 4, 4)), {}), "dim 4"),
    "a path": (lambda: ("particles.star", {}), "X is the path 'particles.star'; read it first"),
    "words": (lambda: (np.full((N, L, L), "particle"), {}), "could not convert"),
    "nothing": (lambda: (None, {}), "X is None"),
}


@pytest.mark.parametrize("case", FITS)
def test_fit(case):
    make, message = FITS[case]
    X, options = make()
    with pytest.raises((ValueError, TypeError), match=message):
        AbInitioVolume(**SHORT).fit(X, **options)


PARAMETERS = {
    "max_shift of half the box": ({"max_shift": 8}, "max_shift is 8 pixels; less than half of the box of 16 is wanted"),
    "mask beyond the box": ({"mask_radius": 140.0}, "mask_radius is 140.0 pixels; at most the box of 16 is wanted"),
    "more classes than images": ({"n_classes": 13}, "n_classes is 13; at most 12 is wanted for 12 images"),
    "as many components as images": ({"n_components": 12}, "n_components is 12; at most 11 is wanted for 12 images"),
    "no threads": ({"n_jobs": 0}, "n_jobs == 0"),
    "negative shift": ({"max_shift": -1}, "The 'max_shift' parameter of AbInitioVolume must be"),
    "shift in words": ({"max_shift": "far"}, "The 'max_shift' parameter of AbInitioVolume must be"),
    "mask of nothing": ({"mask_radius": 0}, "The 'mask_radius' parameter of AbInitioVolume must be"),
    "too fine a grid": ({"angular_step": 10}, "The 'angular_step' parameter of AbInitioVolume must be"),
    "no start": ({"n_starts": 0}, "The 'n_starts' parameter of AbInitioVolume must be"),
    "no epoch": ({"max_epochs": 0}, "The 'max_epochs' parameter of AbInitioVolume must be"),
    "no round": ({"max_rounds": 0}, "The 'max_rounds' parameter of AbInitioVolume must be"),
    "no ring": ({"max_ring": 0}, "The 'max_ring' parameter of AbInitioVolume must be"),
    "contrast of no width": ({"contrast_std": 0}, "The 'contrast_std' parameter of AbInitioVolume must be"),
    "half a class": ({"n_classes": 1.5}, "The 'n_classes' parameter of AbInitioVolume must be"),
    "negative components": ({"n_components": -1}, "The 'n_components' parameter of AbInitioVolume must be"),
    "a seed in words": ({"random_state": "lucky"}, "The 'random_state' parameter of AbInitioVolume must be"),
    "a checkpoint number": ({"checkpoint_dir": 7}, "The 'checkpoint_dir' parameter of AbInitioVolume must be"),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters(case):
    params, message = PARAMETERS[case]
    with pytest.raises(ValueError, match=message):
        AbInitioVolume(**SHORT | params).fit(stack())


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "ab_initio.npz").write_bytes(b"half of a file")
    with pytest.raises(ValueError, match="ab_initio.npz: not a readable checkpoint"):
        AbInitioVolume(**SHORT, checkpoint_dir=tmp_path).fit(stack())


def test_use_before_and_after_fit():
    with pytest.raises(NotFittedError):
        AbInitioVolume().predict(stack())
    with pytest.raises(NotFittedError):
        AbInitioVolume(n_components=1).transform(stack())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = AbInitioVolume(**SHORT).fit(stack())
    with pytest.raises(ValueError, match="X has images of 8 x 8 pixels"):
        fitted.predict(images()[:, :8, :8])
    with pytest.raises(ValueError, match="CTF has 7 records but X has 12 images"):
        fitted.score_samples(stack(), ctf=make_ctf(7))
    with pytest.raises(ValueError, match="CTFs need the pixel size"):
        fitted.score(images(), ctf=make_ctf(N))
    with pytest.raises(ValueError, match="Input X contains NaN: image 6"):
        fitted.predict(with_one(images(), (6, 3, 3), np.nan))
    with pytest.raises(AttributeError, match="transform"):
        fitted.transform(stack())


@pytest.mark.parametrize("n, side", [(2, 16), (3, 8), (20, 5), (20, 2), (20, 1)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_few_and_tiny_images_give_a_finite_volume(n, side):
    X = np.random.default_rng(0).standard_normal((n, side, side))
    fitted = AbInitioVolume(**SHORT).fit(X)
    assert fitted.volume_.shape == (side,) * 3 and np.isfinite(fitted.volume_).all()
    assert fitted.half_maps_.shape == (2, side, side, side)
    assert fitted.predict(X).shape == (n, 3, 3) and np.isfinite(fitted.score(X))
