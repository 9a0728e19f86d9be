"""Volumes of a few discrete states from images of known poses."""

import time
import warnings
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from .._callback import CallbackSupportMixin, FitProgress
from .._ext._emd import max_threads
from .._validation import (
    Interval,
    StackTagsMixin,
    StrOptions,
    _fit_context,
    check_is_fitted,
    iter_finite_chunks,
    padded_to,
    resolve_optics,
    validate_lazy,
    validate_parameters,
)
from ..alignment import FourierImages, refine_poses
from ..io import load_checkpoint, save_checkpoint
from ..particles import as_stack
from ..preprocessing import noise_spectrum
from ..projection import VolumeProjector
from ._ab_initio_refine import add_images, best_contrast, solve_volume
from ._ab_initio_start import signal_power
from ._accumulator import FourierAccumulator
from ._class_mixture import ClassMixture, MixtureState, class_log_likelihood, log_sum, random_partition
from ._half_sets import fingerprint
from ._known_poses import known_poses
from ._principal_volumes import coordinates, principal_volumes
from ._volume_classes import classify, stream_class_volumes

__all__ = ["MulticlassReconstruction"]

_SMALLEST_BOX = 8
_BAND = 16.0  # cycles per box that classes are told apart by
_COMPONENTS_BAND = 10.0
_MOST_COMPONENTS, _MOST_IMAGES, _COMPONENT_STEPS = 4, 10000, 12  # of the start
_CONTRAST_STD = 0.2
_CHUNK = 1000
_SAMPLE = 1000  # images whose power is the prior of the volumes
_NEGLIGIBLE = 1e-3  # responsibility below which an image is left out of a volume
_CHECKPOINT, _SECONDS_BETWEEN = "multiclass", 10.0


class MulticlassReconstruction(CallbackSupportMixin, StackTagsMixin, DensityMixin, BaseEstimator):
    """A volume for each of a few states, from images with known poses, by expectation-maximisation.

    Each image belongs to one of ``n_classes`` volumes (equation 5 of [1]_ at known poses); CTF, shift and contrast of
    each image are in the model. States of one molecule are alike: a volume is that of all images plus what its class
    adds, whose power a Wiener filter holds down. An image is judged by volumes that it has not helped to make, as in
    cross-validation: else images find themselves again in their volume, and classes are those of the start.

    Parameters
    ----------
    n_classes : int, default=2
        Volumes.
    init : {"components", "random"}, default="components"
        First classes. "components": of a mixture of normal distributions on the images' coordinates on principal
        volumes, which a few seconds tell. "random": by lot; it takes longer and ends in worse classes more often.
    n_init : int, default=1
        Starts, of which the one of the highest likelihood is kept.
    max_iter : int, default=50
        Iterations of a start, at most.
    tol : float, default=1e-3
        A start has converged when at most this share of the images changes class.
    resolution : float, default=None
        Finest detail that classes are told apart by, in Angstrom if the pixel size is known, else in pixels. None:
        16 cycles per box, beyond which there is little that tells classes. `volumes_` always have all frequencies.
    mask_radius : float or "auto", default="auto"
        Radius in pixels of the ball that holds the particle. "auto": 0.45 L.
    missing_poses : {"error", "identity"}, default="error"
        What happens to images without rotations. "identity": they are taken as views along z with nothing turned.
    checkpoint_dir : path, default=None
        Folder where the state is saved, at most every ten seconds; a fit that was killed goes on from there, to the
        same result, if data and parameters are the same.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    volumes_ : ndarray of shape (n_classes, L, L, L), float32
        ``V[z, y, x]``, in units of the images per pixel, by falling share.
    labels_ : ndarray of shape (n_images,), int64
        The likeliest class of each image.
    responsibilities_ : ndarray of shape (n_images, n_classes), float64
        Posterior of the classes, by volumes that the image is not part of.
    class_shares_ : ndarray of shape (n_classes,), float64
    contrast_ : ndarray of shape (n_images,), float64
        By the volume of all images.
    log_likelihood_curve_ : list of float
        Mean log-likelihood of an image above that of no particle, after each iteration that raised it.
    n_iter_ : int
        Iterations of the start that is kept.
    converged_ : bool
    resolution_ : float
        Finest detail that classes were told apart by, in Angstrom or pixels as `resolution`.
    noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        The noise's power by ring.
    pixel_size_ : float or None
    n_features_in_ : int
    image_shape_ : tuple of two ints

    See Also
    --------
    reconstruct_classes : Volumes of classes that are known, with half maps and resolution.
    skcryo.heterogeneity.CryoDRGN : Continuous motion instead of classes.
    skcryo.heterogeneity.CommonLinesMaxCut : Classes when poses are unknown, and whether they are real.

    Notes
    -----
    Images are held in memory up to `resolution` (5 kB each at 16 cycles, with CTFs) and read twice more for the
    volumes. Classes exist for any images and any `n_classes`, and continuous motion is cut into pieces by them: compare
    :meth:`score` of images that were held out.

    References
    ----------
    .. [1] Zhong, Bepler, Davis, Berger: Reconstructing continuous distributions of 3D protein structure from cryo-EM
       images. ICLR (2020).
    .. [2] Scheres: RELION: implementation of a Bayesian approach to cryo-EM structure determination. Journal of
       Structural Biology 180 (2012).

    Examples
    --------
    >>> import numpy as np
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.reconstruction import MulticlassReconstruction
    >>> states = np.stack([make_molecule(16, random_state=0, hinge=angle) for angle in (0, 90)])
    >>> stack, truth = make_particles(states, 200, snr=1.0, random_state=0)
    >>> found = MulticlassReconstruction(2, random_state=0).fit(stack, rotations=truth.rotations)
    >>> found.volumes_.shape
    (2, 16, 16, 16)
    >>> agree = float(np.mean(found.labels_ == truth.labels))
    >>> max(agree, 1 - agree) > 0.95
    True
    """

    _parameter_constraints: dict = {
        "n_classes": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"components", "random"})],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "resolution": [Interval(Real, 0, None, closed="neither"), None],
        "mask_radius": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "missing_poses": [StrOptions({"error", "identity"})],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_classes=2,
        *,
        init="components",
        n_init=1,
        max_iter=50,
        tol=1e-3,
        resolution=None,
        mask_radius="auto",
        missing_poses="error",
        checkpoint_dir=None,
        n_jobs=None,
        random_state=None,
    ):
        self.n_classes = n_classes
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.resolution = resolution
        self.mask_radius = mask_radius
        self.missing_poses = missing_poses
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, rotations=None, shifts=None, ctf=None):
        """Find the classes and their volumes.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images, light on dark.
        y : None
            Ignored.
        rotations : array-like of shape (n_images, 3, 3), default=None
            Poses. None: those that `X` carries; see `missing_poses` where it carries none.
        shifts : array-like of shape (n_images, 2), default=None
            (x, y) in pixels: where the particle's centre lies relative to the image's. None: those that `X` carries,
            else zero.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If images are not square and finite, or fewer than `n_classes`; if poses are missing, not of as many
            images, or no rotations; if CTFs come without a pixel size; if `resolution` or `mask_radius` do not go with
            the box; if the checkpoint is that of another fit.

        Warns
        -----
        ConvergenceWarning
            If classes had not settled in `max_iter` iterations.
        """
        stack = validate_lazy(self, X, ensure_min_samples=1)
        n = len(stack)
        if n < self.n_classes:
            raise ValueError(f"n_samples={n} images are fewer than n_classes={self.n_classes}")
        self.pixel_size_, ctf = resolve_optics(stack, ctf)
        poses = known_poses(stack, rotations, shifts, self.missing_poses)
        padded = padded_to(stack.replace(ctf=ctf), _SMALLEST_BOX)
        small = padded is not stack and stack.shape[1] < _SMALLEST_BOX
        self._band = self._highest_ring(padded.shape[1])
        self.noise_spectrum_ = noise_spectrum(padded, radius=0 if small else None)
        saver = _Saver(self, stack, (ctf, *poses))
        self._seed = saver.seed
        with FitProgress(self, X, y, max_steps=None) as progress:
            with progress.step("images"):
                images = self._fourier_images(padded, self._band)
                self._mean = self._first_mean(images, *poses)
                self.contrast_ = self._contrasts(images, *poses)
            state, mixture = self._iterate(images, poses, saver, progress)
            with progress.step("volumes"):
                self._finish(padded, images, poses, mixture, state)
        if not state.converged and not progress.stopped:
            warnings.warn(
                f"MulticlassReconstruction did not converge: classes had not settled in max_iter={self.max_iter} "
                "iterations",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _iterate(self, images, poses, saver, progress):
        """The best of all starts: its state, and the mixture at it."""
        mixture = ClassMixture(
            images, *poses, self.contrast_, band=self._band, mask_radius=self._radius(images.L), seed=self._seed,
            n_jobs=self._threads(),
        )  # fmt: skip
        mixture.begin(self.n_classes)
        while saver.run < self.n_init:
            if saver.state is None:
                with progress.step("start"):
                    saver.state = MixtureState.begin(self._start(images, poses, saver.run))
            state = saver.state
            while state.best is None or not (state.converged or state.n_iter >= self.max_iter or progress.stopped):
                with progress.step("iteration"):
                    state.advance(mixture, self.tol)
                saver(now=progress.stopped)
            if progress.stopped:
                break
            saver.end_run()
        found = [state for state in (saver.best, saver.state) if state is not None and state.best is not None]
        state = max(found, key=lambda each: each.curve[-1])
        mixture.keep(state)
        return state, mixture

    def _start(self, images, poses, run):
        """First responsibilities."""
        n, random = len(images), np.random.RandomState((self._seed + run) % 2**32)
        n_components = min(self.n_classes - 1, _MOST_COMPONENTS, n - 1)
        if self.init == "random" or n_components == 0:
            return random_partition(n, self.n_classes, random)
        rows = np.arange(n)
        if n > _MOST_IMAGES:
            rows = np.sort(random.choice(n, _MOST_IMAGES, replace=False))
        rotations, shifts = poses
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not have converged
            found = principal_volumes(
                images.take(rows), rotations[rows], shifts[rows], self.contrast_[rows], n_components=n_components,
                band=min(_COMPONENTS_BAND, self._band), mask_radius=self._radius(images.L), random_state=random,
                max_iter=_COMPONENT_STEPS, n_jobs=self._threads(),
            )  # fmt: skip
            z = coordinates(images, rotations, shifts, self.contrast_, found, n_jobs=self._threads())
            return classify(*z, self.n_classes, random_state=random)[1]

    def _first_mean(self, images, rotations, shifts):
        sums = FourierAccumulator(min(2 * (int(np.ceil(self._band)) + 2), images.L))
        add_images(sums, images, rotations, shifts, n_jobs=self._threads())
        return solve_volume(sums, signal_power(images), self._band, self._radius(images.L) * sums.L / images.L)

    def _contrasts(self, images, rotations, shifts):
        """The most probable contrast of each image, by the volume of all."""
        fit = refine_poses(
            images, VolumeProjector(self._mean), rotations, shifts, band=self._band, n_steps=0, n_jobs=self._threads()
        )
        return best_contrast(fit, _CONTRAST_STD)

    def _finish(self, padded, images, poses, mixture, state):
        order = np.argsort(-mixture.shares, kind="stable")
        self.responsibilities_ = mixture.responsibilities[:, order]
        self.labels_ = self.responsibilities_.argmax(axis=1)
        self.class_shares_ = mixture.shares[order]
        self.log_likelihood_curve_, self.n_iter_, self.converged_ = state.curve, state.n_iter, state.converged
        self._consensus, self._differences = mixture.consensus, mixture.differences[order]
        L = padded.shape[1]
        band = float((L - 1) // 2)
        sample = np.unique(np.linspace(0, len(padded) - 1, _SAMPLE).astype(int))

        def chunks():
            for where, chunk in iter_finite_chunks(padded, chunk_size=_CHUNK):
                yield where, self._fourier_images(_part(padded, where, chunk), band)

        used = np.where(self.responsibilities_ > _NEGLIGIBLE, self.responsibilities_, 0)
        volumes = stream_class_volumes(
            chunks, *poses, self.contrast_, used, L=L, band=band, mask_radius=self._radius(L), box=L,
            power=signal_power(self._fourier_images(padded[sample], band)), n_jobs=self._threads(),
        )  # fmt: skip
        side = self.image_shape_[1]
        start = (L - side + 1) // 2
        self.volumes_ = volumes[:, start : start + side, start : start + side, start : start + side]

    def fit_predict(self, X, y=None, *, rotations=None, shifts=None, ctf=None):
        """Fit, and return the class of each image.

        Parameters
        ----------
        X, y, rotations, shifts, ctf : as in :meth:`fit`

        Returns
        -------
        labels : ndarray of shape (n_images,), int64
            ``labels_``. :meth:`predict` may differ on a few of the fitted images, which are part of the volumes then.
        """
        return self.fit(X, y, rotations=rotations, shifts=shifts, ctf=ctf).labels_

    # ------------------------------------------------------------------------------------------- arguments
    def _threads(self):
        return max_threads() if self.n_jobs is None else joblib.effective_n_jobs(self.n_jobs)

    def _radius(self, L):
        return 0.45 * L if self.mask_radius == "auto" else float(self.mask_radius)

    def _highest_ring(self, L):
        highest, unit = (L - 1) // 2, self.pixel_size_ or 1.0
        if self._radius(L) > L:
            raise ValueError(f"mask_radius is {self.mask_radius} pixels; at most the box of {L} is wanted")
        ring = min(highest, _BAND if self.resolution is None else L * unit / self.resolution)
        if ring < 2:
            raise ValueError(
                f"resolution is {self.resolution}, coarser than half the box of {L * unit:g}; a smaller one is wanted"
            )
        self.resolution_ = L * unit / ring
        return float(ring)

    def _fourier_images(self, stack, band):
        return FourierImages.from_stack(
            stack, self.noise_spectrum_, band, ctf=stack.ctf, pixel_size=stack.pixel_size
        )

    # ------------------------------------------------------------------------------------------------- use
    def _log_joint(self, X, rotations, shifts, ctf):
        """Log-likelihood of each image in each class plus the logarithm of the class's share."""
        check_is_fitted(self, "volumes_")
        validate_parameters(self)
        stack = validate_lazy(self, X, reset=False)
        stack = stack.replace(ctf=resolve_optics(stack, ctf)[1])
        poses = known_poses(stack, rotations, shifts, self.missing_poses)
        parts = []
        for where, chunk in iter_finite_chunks(stack, chunk_size=_CHUNK):
            images = self._fourier_images(padded_to(_part(stack, where, chunk), _SMALLEST_BOX), self._band)
            own = [values[where] for values in poses]
            parts.append(class_log_likelihood(
                images, self._consensus, self._differences, *own, self._contrasts(images, *own), self._band,
                self._threads(),
            ))  # fmt: skip
        return np.concatenate(parts) + np.log(np.maximum(self.class_shares_, 1e-12))

    def predict_proba(self, X, *, rotations=None, shifts=None, ctf=None):
        """Posterior of the classes of images, each image by itself.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
        rotations, shifts, ctf : as in :meth:`fit`

        Returns
        -------
        responsibilities : ndarray of shape (n_images, n_classes), float64
            Of images that were fitted, ``responsibilities_`` is the honest one.
        """
        log = self._log_joint(X, rotations, shifts, ctf)
        return np.exp(log - log_sum(log)[:, None])

    def predict(self, X, *, rotations=None, shifts=None, ctf=None):
        """The likeliest class of images.

        Parameters
        ----------
        X, rotations, shifts, ctf : as in :meth:`predict_proba`

        Returns
        -------
        labels : ndarray of shape (n_images,), int64
        """
        return self._log_joint(X, rotations, shifts, ctf).argmax(axis=1)

    def score_samples(self, X, *, rotations=None, shifts=None, ctf=None):
        """Log-likelihood of each image, its class summed out, above that of no particle.

        Parameters
        ----------
        X, rotations, shifts, ctf : as in :meth:`predict_proba`

        Returns
        -------
        ndarray of shape (n_images,), float64
            Of frequencies up to `resolution_`.
        """
        return log_sum(self._log_joint(X, rotations, shifts, ctf))

    def score(self, X, y=None, *, rotations=None, shifts=None, ctf=None):
        """Mean of :meth:`score_samples`: higher is better. Of held-out images it tells how many classes are wanted.

        Parameters
        ----------
        X, rotations, shifts, ctf : as in :meth:`predict_proba`
        y : None
            Ignored.

        Returns
        -------
        score : float
        """
        return float(self.score_samples(X, rotations=rotations, shifts=shifts, ctf=ctf).mean())


def _part(stack, where, images):
    """Some images of a stack that were read, with their CTFs and pixel size."""
    ctf = None if stack.ctf is None else stack.ctf[where]
    return as_stack(images).replace(pixel_size=stack.pixel_size, ctf=ctf)


class _Saver:
    """Where a fit is, and the file that says so: seed, start, its state, and the best start that is over."""

    def __init__(self, estimator, stack, arrays):
        self.folder, self._last = estimator.checkpoint_dir, time.monotonic()
        self.seed = int(check_random_state(estimator.random_state).randint(2**31 - 1))
        self.run, self.state, self.best = 0, None, None
        if self.folder is None:
            return
        params = estimator.get_params(deep=False)
        if isinstance(params["random_state"], np.random.RandomState):
            params["random_state"] = "given"
        for name in ("n_jobs", "checkpoint_dir"):
            params.pop(name)
        self._key = fingerprint(params, stack, arrays)
        saved = load_checkpoint(self.folder, _CHECKPOINT)
        if saved is None:
            return
        arrays, info = saved
        if info["fingerprint"] != self._key:
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} holds a fit of other images or parameters; name another folder "
                "or remove that one"
            )
        # of a fit without random_state, that of its first session
        self.seed, self.run = info["seed"], info["run"]
        for name in ("state", "best"):
            if info[name] is not None:
                own = {key.split(":")[1]: value for key, value in arrays.items() if key.startswith(f"{name}:")}
                setattr(self, name, MixtureState(**own, **info[name]))

    def end_run(self):
        """The present start is over; the likelier one is kept."""
        if self.best is None or self.state.curve[-1] > self.best.curve[-1]:
            self.best = self.state
        self.run, self.state = self.run + 1, None
        self(now=True)

    def __call__(self, *, now):
        """Save, if asked to or ten seconds after the last time."""
        if self.folder is None or not (now or time.monotonic() - self._last >= _SECONDS_BETWEEN):
            return
        arrays, info = {}, {"fingerprint": self._key, "seed": self.seed, "run": self.run}
        for name in ("state", "best"):
            values = {} if getattr(self, name) is None else vars(getattr(self, name))
            arrays |= {f"{name}:{key}": value for key, value in values.items() if isinstance(value, np.ndarray)}
            info[name] = {key: v for key, v in values.items() if not isinstance(v, np.ndarray)} or None
        save_checkpoint(self.folder, _CHECKPOINT, arrays, info)
        self._last = time.monotonic()
