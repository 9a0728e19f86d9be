"""A volume and poses from raw images alone."""

import warnings
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch, check_random_state
from sklearn.utils.metaestimators import available_if

from .._callback import CallbackSupportMixin, FitProgress
from .._ext._emd import max_threads
from .._torch import DEVICES, accelerator
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
from ..metrics import fsc_resolution
from ..particles import as_stack
from ..projection import VolumeProjector
from ..rotations import random_rotations
from ._ab_initio_fit import AbInitioFit, Saver, load_fit, run_search
from ._ab_initio_refine import search_and_refine
from ._half_sets import fingerprint
from ._likeness import likeness, likeness_score
from ._principal_volumes import coordinates, principal_volumes
from ._volume_classes import classify, refine_classes

__all__ = ["AbInitioVolume"]

_SMALLEST_BOX = 8
_PREDICT_SEARCHES = 3  # each with the grid turned, so that they look between one another's poses


def _has_components(estimator):
    return estimator.n_components > 0 or estimator.n_classes > 1


class AbInitioVolume(
    CallbackSupportMixin, StackTagsMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Volume, poses, shifts and contrast from raw images alone.

    Stochastic expectation-maximisation finds a coarse volume from random poses; several starts are made until two of
    them found the same, the likelier one of which is refined: brute-force search over rotations and shifts,
    Levenberg-Marquardt on both, contrast and noise estimated on the way, the band following what half maps agree on.
    The CTF is part of the model, no image is phase-flipped.

    Parameters
    ----------
    n_components : int, default=0
        Principal volumes of what varies between the particles, by probabilistic PCA on the fitted poses;
        :meth:`transform` gives coordinates on them. 0: none (1 if `n_classes` asks for it).
    n_classes : int, default=1
        Classes of particles, by a mixture of Gaussians on the coordinates, and a volume for each.
    mask_radius : float or "auto", default="auto"
        Radius in pixels of the ball that holds the particle. "auto": 0.42 L.
    max_shift : float or "auto", default="auto"
        Largest shift in x and in y, in pixels. "auto": 0.055 L.
    angular_step : {15, 30}, default=15
        Spacing in degrees of the grid that poses are searched on before they are refined. 30 is for tests and tiny
        images; starts use twice the step.
    n_starts : int, default=5
        Starts at most. No further one is made once the likeliest is confirmed by another.
    max_epochs : int, default=30
        Passes of a start over its images, at most.
    max_rounds : int, default=8
        Rounds of refinement, at most.
    max_ring : int, default=32
        Highest frequency used for poses, in cycles per box; memory is proportional to its square. The volume has all
        frequencies.
    contrast_std : float or None, default=0.2
        Standard deviation of the images' contrast about its mean; None for images of one contrast.
    checkpoint_dir : path, default=None
        Folder where the state is saved after an epoch or a round, at most every ten seconds; a fit that was killed
        goes on from there, to the same result, if data and parameters are the same.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.
    device : {"auto", "cpu", "cuda"}, default="auto"
        Where the brute-force search runs, half of a fit or more; all else runs on the CPU. "cuda": on a GPU, by
        torch (``pip install "skcryo[torch]"``). "auto": on a GPU if torch is installed and sees one, else on the CPU.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    volume_ : ndarray of shape (L, L, L), float32
        ``V[z, y, x]``, Wiener-filtered by the correlation of the half maps.
    rotations_ : ndarray of shape (n_images, 3, 3), float64
        Poses, up to one rotation and hand of all.
    shifts_ : ndarray of shape (n_images, 2), float64
        (x, y) in pixels.
    contrast_ : ndarray of shape (n_images,), float64
        Of mean 1.
    half_maps_ : ndarray of shape (2, L, L, L), float32
        Of the half sets, each refined by itself from the common volume without its details.
    half_sets_ : ndarray of shape (n_images,), int64
    fsc_ : ndarray of shape (L // 2 + 1,), float64
        Fourier shell correlation of the half maps.
    resolution_ : float
        Where `fsc_` falls below 0.143: in Angstrom if the pixel size is known, else in pixels.
    resolution_pixels_ : float
    noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        The noise's power by ring, from residuals up to the band of the poses.
    converged_ : bool
        The verdict: whether another start found what the best one found, and the poses had settled. Do not trust a
        volume without it.
    start_scores_ : ndarray of shape (n_starts_made,), float64
        Mean log-likelihood of an image, above that of no particle, for each start; the same images for all.
    start_agreement_ : ndarray of shape (n_starts_made,), float64
        Share of these images whose poses are within 20 degrees of the best start's.
    start_curves_ : list of list of float
        Log-evidence of each epoch of each start.
    band_ : float
        Highest frequency that the poses were refined with, in cycles per box.
    n_iter_ : int
        Rounds of refinement.
    components_ : ndarray of shape (n_components, box, box, box), float32
        Principal volumes, low-passed in a smaller box of the same size in Angstrom; if asked for.
    embedding_ : ndarray of shape (n_images, n_components), float64
        Coordinates; if asked for.
    labels_ : ndarray of shape (n_images,), int64
        Class of each image, by falling size; if ``n_classes > 1``.
    class_volumes_ : ndarray of shape (n_classes, box, box, box), float32
        If ``n_classes > 1``; low-passed, in a box of the same size in Angstrom.
    responsibilities_ : ndarray of shape (n_images, n_classes), float64
        If ``n_classes > 1``.
    pixel_size_ : float or None
    n_features_in_ : int
    image_shape_ : tuple of two ints

    See Also
    --------
    FourierReconstructor : Volume from known poses.

    Notes
    -----
    Choices: poses are maximum-likelihood estimates under a uniform prior within `max_shift`; images smaller than 8
    pixels are padded with zeros; of images smaller than 16 pixels, which have no background, all pixels are taken for
    noise at first. Both hands fit images equally well: which one comes out is chance.

    On the CPU the result is the same, bit by bit, for any `n_jobs`. On a GPU the log-likelihoods of a search are those
    of the CPU to the rounding of float32, 1e-5 of the largest, and its poses are the same unless they are as close as
    that. A fit is many steps long, so that its end differs by more, and a start may end elsewhere, as from another
    seed. A checkpoint goes on on any device.

    References
    ----------
    .. [1] Punjani, Rubinstein, Fleet, Brubaker, "cryoSPARC: algorithms for rapid unsupervised cryo-EM structure
       determination", Nature Methods 14 (2017): stochastic starts.
    .. [2] Scheres, "RELION: implementation of a Bayesian approach to cryo-EM structure determination", J. Struct.
       Biol. 180 (2012): marginal likelihood, noise by ring.

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.metrics import pose_error
    >>> from skcryo.reconstruction import AbInitioVolume
    >>> stack, truth = make_particles(make_molecule(24, random_state=0), 200, snr=2.0, random_state=0)
    >>> ab_initio = AbInitioVolume(max_shift=1, n_starts=2, random_state=0).fit(stack)
    >>> ab_initio.rotations_.shape, ab_initio.volume_.shape
    ((200, 3, 3), (24, 24, 24))
    >>> bool(pose_error(ab_initio.rotations_, truth.rotations).median < 8)
    True
    """

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 0, None, closed="left")],
        "n_classes": [Interval(Integral, 1, None, closed="left")],
        "mask_radius": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "max_shift": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "angular_step": [Interval(Real, 15, 30, closed="both")],
        "n_starts": [Interval(Integral, 1, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "max_rounds": [Interval(Integral, 1, None, closed="left")],
        "max_ring": [Interval(Integral, 1, None, closed="left")],
        "contrast_std": [Interval(Real, 0, None, closed="neither"), None],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "device": [StrOptions(set(DEVICES))],
        "random_state": ["random_state"],
    }
    _seconds_between_checkpoints = 10.0

    def __init__(
        self,
        *,
        n_components=0,
        n_classes=1,
        mask_radius="auto",
        max_shift="auto",
        angular_step=15,
        n_starts=5,
        max_epochs=30,
        max_rounds=8,
        max_ring=32,
        contrast_std=0.2,
        checkpoint_dir=None,
        n_jobs=None,
        device="auto",
        random_state=None,
    ):
        self.n_components = n_components
        self.n_classes = n_classes
        self.mask_radius = mask_radius
        self.max_shift = max_shift
        self.angular_step = angular_step
        self.n_starts = n_starts
        self.max_epochs = max_epochs
        self.max_rounds = max_rounds
        self.max_ring = max_ring
        self.contrast_std = contrast_std
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.device = device
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, *, ctf=None):
        """Find volume and poses.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images, light on dark. Poses that it may carry are not used.
        y : None
            Ignored.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If images are not square and finite, fewer than two, or without any background; if CTFs come without a
            pixel size; if the checkpoint is that of another fit; if there is no such device.
        ImportError
            If ``device="cuda"`` and torch is not installed.
        """
        device = accelerator(self.device, caller="AbInitioVolume")
        stack = validate_lazy(self, X, ensure_min_samples=2)
        for name, most in (("n_classes", len(stack)), ("n_components", len(stack) - 1)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}; at most {most} is wanted for {len(stack)} images")
        pixel_size, ctf = resolve_optics(stack, ctf)
        for _ in iter_finite_chunks(stack):
            pass
        padded = padded_to(stack, _SMALLEST_BOX)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        key = None if self.checkpoint_dir is None else self._fingerprint(stack, ctf)
        saved = None if self.checkpoint_dir is None else load_fit(self.checkpoint_dir, key)
        seed = seed if saved is None else saved[1]["seed"]  # of a fit without random_state, that of its first session
        fit = AbInitioFit(padded, ctf, pixel_size, self._options(stack.shape[1]), seed, self._threads(), device)
        saver = Saver(fit, self.checkpoint_dir, key, self._seconds_between_checkpoints)
        start = None if saved is None else fit.restore(*saved)
        self.pixel_size_ = pixel_size
        with FitProgress(self, X, y, max_steps=None) as progress:
            finished = run_search(fit, start, progress, saver)
            if fit.refinement is None:  # stopped before: what there is, without refinement
                fit.refinement = fit.begin_refinement()
                fit.refinement.run_round()
            for half in (0, 1):
                if fit.halves[half] is None:
                    with progress.step("half set"):
                        fit.refine_half(half)
                    if finished:  # what was stopped by a callback goes on from there, not from its halves
                        saver()
        self._finish(fit, stack.shape[1], finished)
        return self

    def _finish(self, fit, L, finished):
        refinement = fit.refinement
        for name, value in fit.result().items():
            setattr(self, name, value)
        cut = slice((len(self.volume_) - L + 1) // 2, (len(self.volume_) - L + 1) // 2 + L)
        if len(self.volume_) != L:
            self.volume_, self.half_maps_ = self.volume_[cut, cut, cut], self.half_maps_[:, cut, cut, cut]
        self._box = fit.images.L
        self.rotations_, self.shifts_ = refinement.fit.rotations, refinement.fit.shifts
        self.contrast_, self.half_sets_ = refinement.contrast, fit.half_sets
        self.resolution_pixels_ = fsc_resolution(self.fsc_, 0.143, 1.0, box_size=fit.images.L)
        self.resolution_ = self.resolution_pixels_ * (self.pixel_size_ or 1.0)
        self.start_scores_ = np.array(fit.scores)
        self.start_agreement_ = fit.start_agreement()
        self.start_curves_ = fit.curves
        self.band_, self.n_iter_ = refinement.band, refinement.round
        self.volume_for_poses_ = refinement.volume
        problem = fit.problem()
        self.converged_ = problem is None
        if finished and problem is not None:
            warnings.warn(
                f"AbInitioVolume did not converge: {problem}. The volume may be wrong; try more starts (n_starts), "
                "more images, or a smaller max_shift or mask_radius",
                ConvergenceWarning,
                stacklevel=3,
            )
        if _has_components(self):
            self._fit_components(refinement, fit.seed)

    def _fit_components(self, refinement, seed):
        n_components = max(self.n_components, 1 if self.n_classes > 1 else 0)
        images, n_jobs = refinement.images, self._threads()
        poses = (self.rotations_, self.shifts_, self.contrast_)
        self._principal = principal_volumes(
            images, *poses, n_components=n_components, band=min(12.0, float(images.radii[-1])),
            mask_radius=refinement.mask_radius, random_state=seed, n_jobs=n_jobs,
        )
        self.components_, self.embedding_ = self._principal.components, self._principal.coordinates
        self._n_features_out = n_components
        if self.n_classes > 1:
            _, self.responsibilities_, self._mixture = classify(
                self.embedding_, self._principal.covariance, self.n_classes, random_state=seed
            )
            self.labels_ = self.responsibilities_.argmax(axis=1)
            self.class_volumes_, self.rotations_, self.shifts_ = refine_classes(
                images, *poses, self.responsibilities_, pose_band=self.band_,
                band=min(self.band_ + 4, float(images.radii[-1])), mask_radius=refinement.mask_radius, n_jobs=n_jobs,
            )

    # ------------------------------------------------------------------------------------------- arguments
    def _threads(self):
        return max_threads() if self.n_jobs is None else joblib.effective_n_jobs(self.n_jobs)

    def _options(self, L):
        L = max(L, _SMALLEST_BOX)
        max_shift = 0.055 * L if self.max_shift == "auto" else float(self.max_shift)
        if max_shift >= L / 2:
            raise ValueError(f"max_shift is {self.max_shift} pixels; less than half of the box of {L} is wanted")
        if self.mask_radius != "auto" and self.mask_radius > L:
            raise ValueError(f"mask_radius is {self.mask_radius} pixels; at most the box of {L} is wanted")
        return {
            "max_shift": max_shift,
            "mask_radius": 0.42 * L if self.mask_radius == "auto" else float(self.mask_radius),
            "max_ring": min(self.max_ring, (L - 1) // 2),
            "n_starts": self.n_starts,
            "max_epochs": self.max_epochs,
            "max_rounds": self.max_rounds,
            "contrast_std": self.contrast_std,
            "angular_step": self.angular_step,
        }

    def _fingerprint(self, stack, ctf):
        params = self.get_params(deep=False)
        if isinstance(self.random_state, np.random.RandomState):
            params["random_state"] = "given"
        for name in ("n_jobs", "device", "checkpoint_dir", "n_components", "n_classes"):
            params.pop(name)
        return fingerprint(params, stack, (ctf,))

    # ------------------------------------------------------------------------------------------------- use
    def predict_poses(self, X, *, ctf=None):
        """Poses of images against the fitted volume, each image by itself.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
        ctf : structured array of shape (n_images,), default=None
            None: those that `X` carries, if any.

        Returns
        -------
        poses : Bunch
            ``rotations`` (n, 3, 3), in the frame of ``volume_``; ``shifts`` (n, 2) in pixels; ``contrast`` (n,);
            ``correlation`` (n,) between image and projection, noise made white; ``excess`` (n,) of the residual's power
            over the noise's, as a share; ``unevenness`` (n,), the share of the log-likelihood that two halves of the
            projection gain by a contrast each; ``log_likelihood`` (n,) above that of no particle.
        """
        parts = [part for part, _ in self._pose_chunks(X, ctf)]
        return Bunch(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _pose_chunks(self, X, ctf):
        check_is_fitted(self, "volume_")
        validate_parameters(self)
        stack = validate_lazy(self, X, reset=False)
        pixel_size, ctf = resolve_optics(stack, ctf)
        projector = VolumeProjector(self.volume_for_poses_)
        options = self._options(stack.shape[1])
        device = accelerator(self.device, caller="AbInitioVolume")
        step = {"n_side": 2, "n_psi": 12} if self.angular_step >= 30 else {}
        shared = {"contrast_std": self.contrast_std, "n_jobs": self._threads()}
        for where, chunk in iter_finite_chunks(stack, chunk_size=1000):
            images = FourierImages.from_stack(
                padded_to(as_stack(chunk), _SMALLEST_BOX), self.noise_spectrum_, options["max_ring"],
                ctf=None if ctf is None else ctf[where], pixel_size=pixel_size,
            )
            fit, band = None, min(14.0, self.band_)
            for turn in range(_PREDICT_SEARCHES):
                fit = search_and_refine(
                    images, projector, max_shift=options["max_shift"], band=band, fit=fit,
                    turn=random_rotations(1, turn)[0], device=device, **step, **shared,
                )
            fit = refine_poses(
                images, projector, fit.rotations, fit.shifts, band=self.band_, n_steps=6, **shared
            )
            found = likeness(images, projector, fit.rotations, fit.shifts, band=self.band_, **shared)
            yield {"rotations": fit.rotations, "shifts": fit.shifts, **found}, images

    def predict(self, X, *, ctf=None):
        """Poses of images against the fitted volume.

        Parameters
        ----------
        X, ctf : as in :meth:`predict_poses`

        Returns
        -------
        rotations : ndarray of shape (n_images, 3, 3), float64
        """
        return self.predict_poses(X, ctf=ctf).rotations

    def score_samples(self, X, *, ctf=None):
        """How well each image shows the fitted volume; junk is low.

        The correlation with the best projection, less half of two shares: that by which the residual's power exceeds
        the noise's, for a particle that is not alone, and that of the log-likelihood which two halves of the projection
        gain by a contrast each, for one of which a part is missing.

        Parameters
        ----------
        X, ctf : as in :meth:`predict_poses`

        Returns
        -------
        ndarray of shape (n_images,), float64
        """
        poses = self.predict_poses(X, ctf=ctf)
        return likeness_score(poses)

    def score(self, X, y=None, *, ctf=None):
        """Mean log-likelihood of the images at their best poses, above that of no particle.

        Parameters
        ----------
        X, ctf : as in :meth:`predict_poses`
        y : None
            Ignored.

        Returns
        -------
        score : float
        """
        return float(self.predict_poses(X, ctf=ctf).log_likelihood.mean())

    def transform(self, X, *, ctf=None):
        """Coordinates of images on the principal volumes, at their best poses; only with components or classes.

        Parameters
        ----------
        X, ctf : as in :meth:`predict_poses`

        Returns
        -------
        ndarray of shape (n_images, n_components)
        """
        dtype = np.float64 if getattr(X, "dtype", np.float64) == np.float64 else np.float32
        parts = []
        for part, images in self._pose_chunks(X, ctf):
            parts.append(coordinates(
                images, part["rotations"], part["shifts"], part["contrast"], self._principal, n_jobs=self._threads()
            )[0])
        return np.concatenate(parts).astype(dtype)

    def fit_transform(self, X, y=None, *, ctf=None):
        """Fit, and return the coordinates of the images as :meth:`transform` finds them.

        Those at the poses of the fit itself are in ``embedding_``.

        Parameters
        ----------
        X, y, ctf : as in :meth:`fit`

        Returns
        -------
        ndarray of shape (n_images, n_components)
        """
        return self.fit(X, y, ctf=ctf).transform(X, ctf=ctf)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        if not _has_components(self):
            tags.transformer_tags = None
        return tags


# Not as decorators: scikit-learn wraps the methods that it finds in a class, and would hide that they come and go.
for _name in ("transform", "fit_transform"):
    setattr(AbInitioVolume, _name, available_if(_has_components)(getattr(AbInitioVolume, _name)))
del _name
