"""Bad arrays and parameters for estimators and transformers: each message says what is wrong, and where."""

import functools
import re
from contextlib import suppress

import numpy as np
import pytest
import scipy.sparse
from common_estimators import public_estimators
from sklearn.base import clone

from skcryo._callback import FitProgress
from skcryo._torch import import_optional, resolve_device
from skcryo._validation import (
    check_sample_weight,
    resolve_ctf,
    resolve_pixel_size,
    rows_to_images,
    validate_stack,
)
from skcryo.cluster import RotInvWassersteinKMeans as KMeans
from skcryo.ctf import make_ctf
from skcryo.particles import ParticleStack
from skcryo.preprocessing import (
    Centerer,
    CircularMask,
    Flattener,
    FourierDownsampler,
    NoiseWhitener,
    NormalizeBackground,
    PhaseFlipper,
    noise_spectrum,
    ring_weights,
    whiten_images,
)

CASES = public_estimators()
METHODS = ("transform", "predict", "score_samples", "decision_function", "score")


def images(n_images=12, side=12):
    return np.random.default_rng(0).standard_normal((n_images, side, side)).astype(np.float32)


def with_pixel(value, index=7):
    X = images()
    X[index, 3, 4] = value
    return X


def unchanged(X):
    return X


def lazy(X):
    """As if it lay in a file: nothing is read before it is needed."""
    return ParticleStack(X).map(unchanged)


def ragged():
    return [np.zeros((12, 12)), np.zeros((12, 12)), np.zeros((12, 11))]


BAD_ARRAYS = {
    "NaN in an array": (lambda: with_pixel(np.nan), "contains NaN: image 7"),
    "NaN in rows": (lambda: with_pixel(np.nan).reshape(12, -1), "contains NaN: image 7"),
    "infinity in an array": (lambda: with_pixel(-np.inf), "contains infinity: image 7"),
    "NaN in a stack": (lambda: ParticleStack(with_pixel(np.nan)), "contains NaN: image 7"),
    "no images": (lambda: images()[:0], r"Found array with 0 sample\(s\)"),
    "no images in a stack": (lambda: ParticleStack(images()[:0]), r"Found array with 0 sample\(s\)"),
    "no pixels": (lambda: np.zeros((5, 0, 12)), "images of 0 x 12 pixels"),
    "one number": (lambda: np.float64(3), "scalar array"),
    "one row": (lambda: np.zeros(144), "1D array"),
    "four dimensions": (lambda: np.zeros((2, 3, 12, 12)), "dim 4"),
    "complex": (lambda: images() + 1j, "[Cc]omplex"),
    "words": (lambda: np.full((12, 12, 12), "particle"), "could not convert string to float"),
    "sparse rows": (lambda: scipy.sparse.csr_matrix(images().reshape(12, -1)), "[Ss]parse"),
    "images of two sizes": (ragged, r"image 2 has \(12, 11\), image 0 has \(12, 12\)"),
    "nothing": (lambda: None, "X is None; images are wanted"),
    "a file name": (lambda: "particles.star", "X is the path 'particles.star'; read it first"),
}


every_estimator = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * case.heavy, id=repr(case.estimator)) for case in CASES],
)


@functools.cache
def _fitted(number):
    return clone(CASES[number].estimator).fit(images())


def fitted(case):
    """The case's estimator, fitted once for all tests: what it refuses must not change it."""
    return _fitted(next(number for number, other in enumerate(CASES) if other is case))


@every_estimator
@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays(case, kind):
    make, message = BAD_ARRAYS[kind]
    # transform and predict refuse what fit refuses; fit of what learns nothing need not read a stack.
    estimator = fitted(case)
    method = next(method for method in METHODS if hasattr(estimator, method))
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(estimator, method)(make())
    if kind != "NaN in a stack":
        with pytest.raises((ValueError, TypeError), match=message):
            clone(case.estimator).fit(make())


@every_estimator
def test_nan_in_a_lazy_stack_is_named_at_the_latest_when_it_is_read(case):
    from skcryo.particles import iter_chunks

    estimator = fitted(case)
    method = next(method for method in METHODS if hasattr(estimator, method))
    with pytest.raises(ValueError, match="contains NaN: image 7"):
        answer = getattr(estimator, method)(lazy(with_pixel(np.nan)))
        # What stays lazy hands the NaN on, in its own image alone, to whoever reads.
        for _ in iter_chunks(answer, check_finite=True):
            pass


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_nan_in_a_file_names_the_file(tmp_path):
    import mrcfile

    from skcryo.io import load_particles

    path = tmp_path / "stack.mrcs"
    with mrcfile.new(path) as mrc:
        mrc.set_data(with_pixel(np.nan))
        mrc.set_image_stack()
        mrc.voxel_size = 2.0
    with pytest.raises(ValueError, match=r"contains NaN: image 5 .*8.*stack\.mrcs"):
        NoiseWhitener().fit(load_particles(path)[2:])


CTF = make_ctf(12)
STACK = {"pixel_size": 2.0, "ctf": CTF}

SPECIFIC = {
    # parameters of the transformers
    "radius of a negative number": (lambda: NormalizeBackground(-3.0).fit(images()), "'radius' parameter"),
    "radius in words": (lambda: NormalizeBackground("large").fit(images()), "'radius' parameter"),
    "radius set after fit": (
        lambda: NormalizeBackground().fit(images()).set_params(radius=-1).transform(images()),
        "'radius' parameter",
    ),
    "radius that leaves no background": (
        lambda: NormalizeBackground(50.0).fit(images()),
        "radius=50 pixels leaves no background in images of 12 x 12 pixels; give a radius below 8.5",
    ),
    "radius that leaves no noise": (
        lambda: NoiseWhitener(50.0).fit(images()),
        "radius=50 pixels leaves no background",
    ),
    "ramp of a word": (lambda: NormalizeBackground(ramp="yes").fit(images()), "'ramp' parameter"),
    "mask of radius 0": (lambda: CircularMask(0.0).fit(images()), "'radius' parameter"),
    "mask edge of a negative width": (
        lambda: CircularMask(edge_width=-1.0).fit(images()),
        "'edge_width' parameter",
    ),
    "mask fill unknown": (lambda: CircularMask(fill="mean").fit(images()), "'fill' parameter.*'background'"),
    "box larger than the images": (
        lambda: FourierDownsampler(16).fit(images()),
        "box_size=16 is larger than the images of 12 x 12 pixels",
    ),
    "box of half a pixel": (lambda: FourierDownsampler(4.5).fit(images()), "'box_size' parameter"),
    "downsampling images that are not square": (
        lambda: FourierDownsampler().fit(np.ones((3, 12, 10))),
        "images of 12 x 10 pixels; FourierDownsampler needs square images",
    ),
    "method of centring unknown": (lambda: Centerer("mass").fit(images()), "'method' parameter"),
    "search radius of a fraction": (lambda: Centerer(max_shift=1.5).fit(images()), "'max_shift' parameter"),
    "centring rounds of zero": (lambda: Centerer(n_iter=0).fit(images()), "'n_iter' parameter"),
    "known shifts of an array": (
        lambda: Centerer("known").fit_transform(images()),
        "needs shifts, and X has none",
    ),
    "phase flipping without a CTF": (
        lambda: PhaseFlipper().fit_transform(images()),
        "PhaseFlipper needs the CTF of the images, and X has none",
    ),
    "phase flipping without a pixel size": (
        lambda: PhaseFlipper().fit_transform(images(), ctf=CTF),
        "PhaseFlipper needs the pixel size",
    ),
    "phase flipping twice": (
        lambda: PhaseFlipper().fit_transform(PhaseFlipper().fit_transform(ParticleStack(images(), **STACK))),
        "Images whose phases are flipped carry none",
    ),
    "missing CTF handled in an unknown way": (
        lambda: PhaseFlipper(missing_ctf="warn").fit(images()),
        "'missing_ctf' parameter",
    ),
    "pixel size of zero": (lambda: PhaseFlipper(pixel_size=0.0).fit(images()), "'pixel_size' parameter"),
    "too many CTF records": (
        lambda: PhaseFlipper(pixel_size=2.0).fit_transform(images(), ctf=make_ctf(90)),
        "CTF has 90 records but X has 12 images",
    ),
    "CTF that is no table": (
        lambda: PhaseFlipper(pixel_size=2.0).fit_transform(images(), ctf=np.full(12, 15000.0)),
        "structured array",
    ),
    "CTF that lacks a field": (
        lambda: PhaseFlipper(pixel_size=2.0).fit_transform(images(), ctf=CTF[["defocus_u", "defocus_v"]]),
        "voltage",
    ),
    "rows to images of another width": (
        lambda: Flattener().fit(images()).inverse_transform(np.ones((2, 100))),
        r"\(n_images, 144\).*got \(2, 100\)",
    ),
    "whitened images of another box": (
        lambda: NoiseWhitener().fit(images()).inverse_transform(np.ones((2, 16, 16))),
        r"\(n_images, 12, 12\), got \(2, 16, 16\)",
    ),
    "use before fit": (lambda: NoiseWhitener().transform(images()), "not fitted yet"),
    # k-means
    "more clusters than images": (
        lambda: KMeans(13).fit(images()),
        "n_samples=12 should be >= n_clusters=13",
    ),
    "more clusters than images of positive weight": (
        lambda: KMeans(3).fit(images(), sample_weight=[1, 1, *[0] * 10]),
        "n_samples=2 should be >= n_clusters=3",
    ),
    "clusters of a fraction": (lambda: KMeans(2.5).fit(images()), "'n_clusters' parameter"),
    "unknown metric": (lambda: KMeans(2, metric="w2").fit(images()), "'metric' parameter.*'w1'"),
    "no angles": (lambda: KMeans(2, n_angles=0).fit(images()), "'n_angles' parameter"),
    "balance beyond 1": (lambda: KMeans(2, balance=2.0).fit(images()), "'balance' parameter"),
    "shifts of half the box": (lambda: KMeans(2, max_shift=6).fit(images()), "max_shift.*12 px, got 6"),
    "first averages of another number": (lambda: KMeans(2, init=images(3)).fit(images()), "init"),
    "first averages of another box": (lambda: KMeans(2, init=images(2, side=16)).fit(images()), "init"),
    "CTF of other images in k-means": (
        lambda: KMeans(2).fit(ParticleStack(images(), pixel_size=2.0), ctf=make_ctf(90)),
        "CTF has 90 records but X has 12 images",
    ),
    "CTF without a pixel size in k-means": (lambda: KMeans(2).fit(images(), ctf=CTF), "pixel size"),
    "weights of other images in k-means": (
        lambda: KMeans(2).fit(images(), sample_weight=np.ones(90)),
        "sample_weight has 90 entries but X has 12 images",
    ),
    "k-means of images that are not square": (
        lambda: KMeans(2).fit(np.ones((3, 12, 10))),
        "images of 12 x 10 pixels; RotInvWassersteinKMeans needs square images",
    ),
    "k-means before fit": (lambda: KMeans(2).predict(images()), "not fitted yet"),
    # functions behind them
    "constant image": (
        lambda: NormalizeBackground().fit_transform(np.concatenate([images(3), np.ones((1, 12, 12))])),
        "image 3 has zero variance",
    ),
    "background of constant images": (
        lambda: noise_spectrum(np.ones((3, 12, 12))),
        "no power in Fourier ring 1",
    ),
    "spectrum of no images": (lambda: noise_spectrum(images()[:0]), "X has 0 images"),
    "spectrum of another box": (lambda: ring_weights(np.ones(9), 12), r"shape \(7,\).*got \(9,\)"),
    "spectrum with a zero": (
        lambda: whiten_images(images(), [1, 1, 1, 0, 1, 1, 1]),
        r"spectrum\[3\] is 0",
    ),
    # the seam
    "image_shape of other rows": (
        lambda: validate_stack(Flattener(), np.ones((3, 12)), image_shape=(3, 5)),
        r"image_shape=\(3, 5\) does not describe the rows of X, which have 12 pixels",
    ),
    "image_shape of another stack": (
        lambda: validate_stack(Flattener(), images(), image_shape=(10, 10)),
        r"image_shape=\(10, 10\) but X has images of 12 x 12 pixels",
    ),
    "rows that are no square": (
        lambda: validate_stack(Flattener(), np.ones((3, 12)), non_square="raise"),
        "rows of 12 pixels are no square image",
    ),
    "rows too wide for an image": (lambda: rows_to_images(np.ones((2, 9)), (2, 2)), "rows of 9 pixels"),
    "CTF of other images": (lambda: resolve_ctf(images(60), make_ctf(90)), "CTF has 90 records but X has 60"),
    "one CTF record": (lambda: resolve_ctf(images(60), CTF[0]), "CTF has 1 records but X has 60 images"),
    "pixel size of a negative number": (lambda: resolve_pixel_size(images(), -2.0), "pixel_size.*got -2.0"),
    "pixel size in words": (lambda: resolve_pixel_size(images(), "1.2 A"), "pixel_size.*got '1.2 A'"),
    "too few weights": (
        lambda: check_sample_weight(np.ones(5), images()),
        "sample_weight has 5 entries but X has 12 images",
    ),
    "negative weights": (lambda: check_sample_weight(-np.ones(12), images()), "sample_weight"),
    "no weight at all": (lambda: check_sample_weight(np.zeros(12), images()), "at least one non-zero"),
    "weights with NaN": (
        lambda: check_sample_weight(np.full(12, np.nan), images()),
        "sample_weight contains NaN",
    ),
}


@pytest.mark.parametrize("kind", SPECIFIC)
def test_specific(kind):
    function, message = SPECIFIC[kind]
    with pytest.raises((ValueError, TypeError), match=re.compile(message, re.DOTALL)):
        function()


def test_missing_module_names_the_extra():
    with pytest.raises(ImportError, match=r'CryoDRGN needs no_such_module.*pip install "skcryo\[torch\]"'):
        import_optional("no_such_module", extra="torch", caller="CryoDRGN")


def test_fault_inside_an_installed_module_is_not_taken_for_its_absence(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="^No module named 'no_such_dependency'"):
        import_optional("half_installed", extra="torch", caller="CryoDRGN")


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_unknown_device_is_refused(device):
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=device):
        resolve_device(device, caller="CryoDRGN")


def test_failing_step_reports_no_end_and_tears_callbacks_down():
    from sklearn.base import BaseEstimator

    from skcryo._callback import CallbackSupportMixin
    from skcryo._validation import _fit_context

    class Failing(CallbackSupportMixin, BaseEstimator):
        _parameter_constraints: dict = {}

        @_fit_context(prefer_skip_nested_validation=True)
        def fit(self, X, y=None):
            with FitProgress(self, X, y) as progress, progress.step("iteration"):
                raise ZeroDivisionError

    class Recorder:
        def __init__(self):
            self.events = []

        def setup(self, estimator, context):
            self.events.append("setup")

        def teardown(self, estimator, context):
            self.events.append("teardown")

        def on_fit_task_begin(self, estimator, context):
            self.events.append("begin")

        def on_fit_task_end(self, estimator, context):
            self.events.append("end")

    recorder = Recorder()
    with suppress(ZeroDivisionError):
        Failing().set_callbacks(recorder).fit(None)
    assert recorder.events == ["setup", "begin", "begin", "teardown"]
