"""Classes and rotations of images of several molecules, from their common lines."""

import warnings
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from .._callback import CallbackSupportMixin, FitProgress
from .._ext._emd import max_threads
from .._validation import (
    HasMethods,
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
from ..io._checkpoint import StageCheckpoints
from ..orientation import RadialLines, detect_common_lines, equalized_weights, solve_lud
from ..particles import as_stack
from ..projection import VolumeProjector
from ..reconstruction._ab_initio_fit import _spectrum
from ..reconstruction._ab_initio_refine import add_images, search_and_refine, solve_volume
from ..reconstruction._ab_initio_start import signal_power
from ..reconstruction._accumulator import FourierAccumulator
from ..reconstruction._class_mixture import ClassMixture, log_sum
from ..reconstruction._half_sets import fingerprint
from ._consensus import consensus_poses
from ._cut_alternation import alternate
from ._line_graph import line_misfits, objective
from ._max_k_cut import max_k_cut
from ._separation import HalfClasses, classes_of_halves
from ._start_poses import StartPoses

__all__ = ["CommonLinesMaxCut"]

_SMALLEST_BOX = 8
_MAX_RING = 32  # cycles per box: poses need no more
_BAND = 12.0  # cycles per box of the classes' volumes: what lies beyond tells little about classes and takes its time
_LINE_IMAGES = 2000  # with "em"
_MAX_ROUNDS = 14
_LUD_STEPS = 60


class CommonLinesMaxCut(
    CallbackSupportMixin,
    StackTagsMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClusterMixin,
    BaseEstimator,
):
    """Classes of images of several molecules, and their rotations, from images alone.

    Two central slices of one volume's Fourier transform share a line. Least unsquared deviations of these lines give
    rotations of images even where molecules differ in part, and how badly lines and rotations agree is the weight of
    the graph whose maximum K-cut the paper [1]_ takes for the classes. By default rotations go on to the volume that
    all images make, and classes are found by expectation-maximisation on what the images' lines add up to, with shares
    of any size and every image judged by volumes that it is no part of.

    Parameters
    ----------
    n_clusters : int, default=2
        Number of classes. With one there is nothing to cut, but rotations and scores to compare with.
    refine : {"em", "likelihood"} or None, default="em"
        What classes are found by:

        * "em": expectation-maximisation, after poses were refined against the volume of all images. On all simulated
          data the most precise, by far where classes are uneven, alike or noisy.
        * "likelihood": max-K-cut in turn with least unsquared deviations within each class, all classes in one frame,
          edges weighed by minus the log-likelihood ratio of two images at the lines which their rotations predict.
        * None: algorithm 2 of the paper as printed. It favours classes of equal size.
    init : {"lud", "poses"} or estimator, default="lud"
        Where rotations come from. "lud": common lines of the images. "poses": the rotations, and shifts if any, that
        `X` carries (RELION's, say). An estimator that has ``rotations_`` when fitted: for real particles, with shifts,
        CTFs and coloured noise, an :class:`~skcryo.reconstruction.AbInitioVolume`, whose ``shifts_`` and contrast are
        used too. One that is fitted already, on as many images, is taken to be fitted on these; otherwise a clone is
        fitted.
    max_shift : float, default=0.0
        Largest shift in x and in y that is looked for beside common lines, in pixels; they want centred images. Shifts
        from `init` are refined whatever this is.
    mask_radius : float or "auto", default="auto"
        Radius in pixels of the ball that holds the particle. "auto": 0.42 L.
    angular_step : {15, 30}, default=15
        Spacing in degrees of the grid on which poses are searched before they are refined. 30 is for tests and tiny
        images.
    n_line_images : int or "auto", default="auto"
        Images, drawn by lot, whose common lines are detected; memory grows as its square. "auto": at most 2000 with
        "em", where the others are oriented by the volume that these make, else all. The graph and its cut are theirs.
    n_init : int, default=2
        Starts of the expectation-maximisation, in each half of the images.
    max_iter : int, default=30
        Iterations at most: of the expectation-maximisation, or of LUD and cut.
    checkpoint_dir : path, default=None
        Folder where the fit saves its state: where rotations come from, each block of common lines, each round of
        rotations or of cuts, the classes of half sets. A fit that was killed goes on from there to the same bits; files
        of other images or parameters are refused.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    labels_ : ndarray of shape (n_images,), int64
        Class of each image; class 0 is the largest.
    rotations_ : ndarray of shape (n_images, 3, 3), float64
        Up to one rotation and hand of all; with ``refine=None``, of each class.
    shifts_ : ndarray of shape (n_images, 2), float64
        (x, y) in pixels.
    class_log_likelihood_ : ndarray of shape (n_images, n_clusters), float64
        Log-likelihood of each image in each class, above that of no particle. With "em", under volumes made without
        the image.
    class_shares_ : ndarray of shape (n_clusters,), float64
        Falling.
    class_volumes_ : ndarray of shape (n_clusters, box, box, box), float32
        Low-passed, in a box of the same size in Angstrom.
    separation_ : ndarray of shape (n_clusters, n_clusters), float64, or None
        With "em": the log-likelihood that an image gains on average when two classes have a volume each instead of one
        for both, of classes found in one half of the images and shown to the other. Diagonal 0. Where it is not
        clearly above zero there are no two classes.
    separation_error_ : ndarray of shape (n_clusters, n_clusters), float64, or None
        Standard errors.
    converged_ : bool
        Whether iterations ended by themselves and, with "em", all classes are told apart by images that took no part
        in finding them. *Do not trust classes without it.*
    cut_value_ : float
        Weight of all pairs of images in different classes, each pair counted once; a pair weighs
        ``|R_i c_ij - R_j c_ji|``, of the lines detected and ``rotations_``.
    upper_bound_ : float
        Certified: no partition into so many classes cuts more.
    objective_path_ : list of float
        What was minimised, before each iteration and at the end; it never rises. ``refine=None``: F, the misfit of the
        lines within classes; "likelihood": minus their log-likelihood ratio; "em": minus the mean log-likelihood of an
        image under volumes made without it.
    n_iter_ : int
    common_lines_ : CommonLines
    line_images_ : ndarray of shape (n_line_images,), int64
        Images that `common_lines_` are of.
    noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        The noise's power by ring.
    pixel_size_ : float or None
    n_features_in_ : int
    image_shape_ : tuple of two ints

    Warns
    -----
    ConvergenceWarning
        If ``converged_`` is False; it says why.

    See Also
    --------
    max_k_cut : The cut by itself.
    skcryo.orientation.LUDRotations : Rotations of images of one molecule.
    skcryo.reconstruction.AbInitioVolume : What to start from on real particles.

    Notes
    -----
    With "em": (1) rotations of the line images by least unsquared deviations. (2) Rounds of a search over all rotations
    and of Levenberg-Marquardt, for all images, against the volume that they make. At SNR 0.02 lines leave a mean error
    of 60 degrees with 2000 images, and that volume of 5000 brings it to 5. (3) Classes of each half of the images by
    itself, from partitions by lot; each half is shown to the other, which says whether they are classes
    (``separation_``) and gives the partition that (4) the fit to all images goes on from. (5) Each image's pose is
    refined as a member of each class.

    Choices: classes are numbered by falling share; of refinements (5) there are at most two. Where contrasts scatter by
    more than 6 % beyond the noise, or `init` is an estimator that found contrasts, each image has its own in the
    likelihood (20 % about their mean), or classes would be those of contrast. A state that all images
    share, such as a consensus that is wrong everywhere, has no classes: where lines fail, ``separation_`` says so.

    References
    ----------
    .. [1] Aizenbud, Shkolnisky: A max-cut approach to heterogeneity in cryo-electron microscopy. J. Math. Anal. Appl.
       479 (2019), algorithms 1 and 2, equations 8 to 12.

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.heterogeneity import CommonLinesMaxCut
    >>> from skcryo.metrics import partition_precision
    >>> states = [make_molecule(24, random_state=0), make_molecule(24, random_state=0, hinge=60)]
    >>> stack, truth = make_particles(states, 150, snr=1.0, random_state=0)
    >>> fitted = CommonLinesMaxCut(2, angular_step=30, n_init=1, random_state=0).fit(stack)
    >>> fitted.converged_, bool(fitted.cut_value_ <= fitted.upper_bound_)
    (True, True)
    >>> partition_precision(truth.labels, fitted.labels_) > 0.95
    True
    """

    _parameter_constraints: dict = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "refine": [StrOptions({"em", "likelihood"}), None],
        "init": [StrOptions({"lud", "poses"}), HasMethods("fit")],
        "max_shift": [Interval(Real, 0, None, closed="left")],
        "mask_radius": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "angular_step": [Interval(Real, 15, 30, closed="both")],
        "n_line_images": [Interval(Integral, 3, None, closed="left"), StrOptions({"auto"})],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters=2,
        *,
        refine="em",
        init="lud",
        max_shift=0.0,
        mask_radius="auto",
        angular_step=15,
        n_line_images="auto",
        n_init=2,
        max_iter=30,
        checkpoint_dir=None,
        n_jobs=None,
        random_state=None,
    ):
        self.n_clusters = n_clusters
        self.refine = refine
        self.init = init
        self.max_shift = max_shift
        self.mask_radius = mask_radius
        self.angular_step = angular_step
        self.n_line_images = n_line_images
        self.n_init = n_init
        self.max_iter = max_iter
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)  # init is fitted with its own
    def fit(self, X, y=None, *, ctf=None, labels=None):
        """Find classes and rotations.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images, light on dark.
        y : None
            Ignored.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.
        labels : array-like of shape (n_images,), default=None
            Classes to start from, 0 to ``n_clusters - 1``. Where "em" finds likelier ones, those are taken.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there are fewer than three images, or fewer than classes; if images are not square and finite; if
            ``init="poses"`` and `X` carries none; if CTFs come without a pixel size; if `labels` do not fit; if
            `checkpoint_dir` holds another fit.
        """
        stack = validate_lazy(self, X, ensure_min_samples=3)
        n = len(stack)
        if n < self.n_clusters:
            raise ValueError(f"n_samples={n} should be >= n_clusters={self.n_clusters}: so many classes need as many")
        self.pixel_size_, ctf = resolve_optics(stack, ctf)
        labels = self._check_labels(labels, n)
        self._check_lengths(stack.shape[1])
        for _ in iter_finite_chunks(stack):
            pass
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        padded = padded_to(stack, _SMALLEST_BOX).replace(ctf=ctf, rotations=stack.rotations, shifts=stack.shifts)
        saved = StageCheckpoints(self.checkpoint_dir, self._fingerprint(padded, labels))
        before = saved.load("start")
        seed = seed if before is None else before[1]["seed"]  # of a fit without random_state, that of its first session
        with FitProgress(self, X, y, max_steps=None) as progress:
            self._fit_stack(padded, labels, seed, progress, saved)
        return self

    def _fit_stack(self, stack, labels, seed, progress, saved):
        with progress.step("common lines"):
            self.line_images_ = self._line_rows(len(stack), seed)
            start = self._start(stack, seed, saved)
        self.noise_spectrum_ = _spectrum(stack)
        images = FourierImages.from_stack(
            stack, self.noise_spectrum_, min(_MAX_RING, (stack.shape[1] - 1) // 2), ctf=stack.ctf,
            pixel_size=self.pixel_size_,
        )
        self._contrast_std = start.contrast_std
        self._search_shift = 0.0 if start.centred else max(self.max_shift, float(np.abs(start.shifts).max()))
        reason = (
            self._fit_mixture(images, start, labels, seed, progress, saved)
            if self.refine == "em"
            else self._fit_cuts(stack, images, start, labels, seed, progress, saved)
        )
        self._n_features_out = self.n_clusters
        with progress.step("cut"):
            self._keep_cut(stack, seed)
        empty = self.n_clusters - len(np.unique(self.labels_))
        if empty:
            reason = f"{empty} of the n_clusters={self.n_clusters} classes hold no image: there may be fewer molecules"
        self.converged_ = reason is None
        if reason and not progress.stopped:
            warnings.warn(f"CommonLinesMaxCut did not converge: {reason}", ConvergenceWarning, stacklevel=4)

    # --------------------------------------------------------------------------------------------- the start
    def _line_rows(self, n, seed):
        most = self.n_line_images
        if most == "auto":
            most = _LINE_IMAGES if self.refine == "em" else n
        if n <= most:
            return np.arange(n)
        if self.refine != "em":
            raise ValueError(
                f"n_line_images is {most} but X has {n} images; refine={self.refine!r} needs the lines of all"
            )
        random = np.random.RandomState(np.random.SeedSequence([seed, 0]).generate_state(4))
        return np.sort(random.choice(n, most, replace=False))

    def _start(self, stack, seed, saved):
        start = StartPoses.load(saved)
        by_lines = isinstance(self.init, str) and self.init == "lud"
        if start is None and not by_lines:
            start = StartPoses.given(self.init, stack, centred=self.max_shift == 0)
            start.save(saved, seed)
        rows = self.line_images_
        self.common_lines_ = detect_common_lines(
            stack[rows].replace(rotations=None, shifts=None if by_lines else start.shifts[rows]),
            checkpoint_dir=saved.subfolder("common_lines"),
            n_jobs=self._threads(),
        )
        if start is None:
            rotations = self._lud(self.common_lines_) if self.refine == "em" else None
            start = StartPoses(rotations, np.zeros((len(rows), 2)), rows, False, centred=self.max_shift == 0)
            start.save(saved, seed)
        return start

    @staticmethod
    def _lud(common_lines):
        weights = equalized_weights(common_lines.angles, checked=common_lines.checked)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a start: what counts is whether poses settle
            return solve_lud(
                common_lines.angles, weights=weights, checked=common_lines.checked, max_iter=_LUD_STEPS
            ).rotations

    # ------------------------------------------------------------------------------------------------- "em"
    def _fit_mixture(self, images, start, labels, seed, progress, saved):
        """Classes of volumes; returns what keeps them from being trusted, or None."""
        n, n_jobs = len(images), self._threads()
        half_sets = np.random.RandomState(np.random.SeedSequence([seed, 3]).generate_state(4)).permutation(
            np.arange(n) % 2
        )
        radius = self._mask_radius(images.L)
        with progress.step("consensus", max_steps=_MAX_ROUNDS) as task:

            def round_ended():
                with task.step("round"):
                    pass
                return task.stopped

            refinement = consensus_poses(
                images, start.rotations, start.shifts, start.rows, search=not start.handed_in,
                max_shift=self._search_shift, mask_radius=radius, contrast_std=start.contrast_std, grid=self._grid(),
                max_rounds=_MAX_ROUNDS, half_sets=half_sets, saved=saved, step=round_ended, n_jobs=n_jobs,
            )
        self._contrast_std = refinement.contrast_prior
        fit, contrast = refinement.fit, None if refinement.contrast_prior is None else refinement.contrast
        data = (refinement.images, fit.rotations, fit.shifts, contrast)
        options = {"band": _BAND, "mask_radius": radius, "seed": seed, "n_jobs": n_jobs}
        with progress.step("halves"):
            before = saved.load("halves")
            if before is None:
                halves = classes_of_halves(
                    *data, self.n_clusters, n_init=self.n_init, max_iter=self.max_iter, **options
                )
                arrays = {"responsibilities": halves.responsibilities, "gains": halves.gains}
                saved.save("halves", arrays, {"converged": halves.converged})
            else:
                halves = HalfClasses(**before[0], **before[1])
        starts = [halves.responsibilities]
        if labels is not None:
            starts.append(0.9 * np.eye(self.n_clusters)[labels] + 0.1 / self.n_clusters)
        with progress.step("classes"):
            fits = [ClassMixture(*data, **options).fit(first, max_iter=self.max_iter) for first in starts]
            mixture = max(fits, key=lambda each: each.curve[-1])
            settled = mixture.converged
            for _ in range(2):
                if not mixture.refine(refine_shifts=not start.centred):
                    break
        self._keep_mixture(mixture, halves)
        self.noise_spectrum_ = self._scaled_spectrum(refinement.noise)
        if not start.handed_in and refinement.change > 5:
            return (
                f"views still moved by {refinement.change:.0f} degrees in the last of {refinement.round} rounds. "
                "Common lines alone may not orient these images: give poses (init=AbInitioVolume()), or more images"
            )
        return self._not_told_apart() or (
            None if settled else f"classes had not settled in max_iter={self.max_iter} iterations"
        )

    def _scaled_spectrum(self, noise):
        """Noise by ring as residuals tell it; beyond the last ring used as there."""
        size = len(self.noise_spectrum_)
        return self.noise_spectrum_ * np.concatenate([noise, np.full(max(0, size - len(noise)), noise[-1])])[:size]

    def _keep_mixture(self, mixture, halves):
        order = np.argsort(-mixture.shares, kind="stable")
        n = len(mixture.images)
        self.labels_ = mixture.responsibilities[:, order].argmax(axis=1)
        own = order[self.labels_]
        self.rotations_, self.shifts_ = mixture.rotations[np.arange(n), own], mixture.shifts[np.arange(n), own]
        self.class_log_likelihood_, self.class_shares_ = mixture.log_likelihood[:, order], mixture.shares[order]
        self.class_volumes_ = mixture.consensus + mixture.differences[order]
        self.objective_path_, self.n_iter_ = [-value for value in mixture.curve], mixture.n_iter
        self._separation = halves.separation(self.labels_)
        self.separation_, self.separation_error_ = self._separation.gains, self._separation.errors

    def _not_told_apart(self):
        pairs = np.argwhere(np.triu(~self._separation.distinct))
        if not len(pairs):
            return None
        told = ", ".join(
            f"{k} and {m} ({self.separation_[k, m]:.2g} +- {self.separation_error_[k, m]:.1g})" for k, m in pairs[:5]
        )
        return (
            f"classes {told}{' and others' if len(pairs) > 5 else ''} are not told apart. In brackets: what images "
            "that took no part in finding them gain in log-likelihood by two volumes instead of one. There may be "
            f"fewer than n_clusters={self.n_clusters} molecules, too few images or, if lines do not orient them, wrong "
            "rotations (init=AbInitioVolume())"
        )

    # ------------------------------------------------------------------------------------------------- cuts
    def _fit_cuts(self, stack, images, start, labels, seed, progress, saved):
        """Classes of maximum cuts; returns what keeps them from being trusted, or None."""
        lines = None
        if self.refine == "likelihood":
            lines = RadialLines.from_images(
                stack.replace(rotations=None, shifts=start.shifts), n_jobs=self._threads()
            )
        with progress.step("cuts", max_steps=self.max_iter) as task:

            def iteration_ended():
                with task.step("iteration"):
                    pass
                return task.stopped

            found = alternate(
                self.common_lines_, self.n_clusters, lines=lines, labels=labels, rotations=start.rotations,
                max_iter=self.max_iter, tol=1e-6, seed=seed, saved=saved, step=iteration_ended,
                n_jobs=self._threads(),
            )
        shares = np.bincount(found.labels, minlength=self.n_clusters) / len(stack)
        order = np.argsort(-shares, kind="stable")
        self.labels_, self.class_shares_ = np.argsort(order)[found.labels], shares[order]
        self.rotations_, self.shifts_ = found.rotations, start.shifts
        self.objective_path_, self.n_iter_ = found.objective_path, found.n_iter
        self.separation_ = self.separation_error_ = None
        power, radius = signal_power(images), self._mask_radius(images.L)
        band = min(_BAND, float(images.radii[-1]))
        volumes = []
        for k in range(self.n_clusters):
            own = np.flatnonzero(self.labels_ == k)
            sums = FourierAccumulator(min(2 * (int(np.ceil(band)) + 2), images.L))
            if len(own):
                add_images(
                    sums, images.take(own), self.rotations_[own], self.shifts_[own], band=band, n_jobs=self._threads()
                )
            volumes.append(solve_volume(sums, power, band, radius * sums.L / images.L))
        self.class_volumes_ = np.stack(volumes)
        self.class_log_likelihood_ = self._log_likelihood(images)
        return None if found.converged else f"classes still changed in the last of max_iter={self.max_iter} iterations"

    def _keep_cut(self, stack, seed):
        rows = self.line_images_
        if self.n_clusters == 1:
            self.cut_value_ = self.upper_bound_ = 0.0
            return
        weights = line_misfits(self.common_lines_.angles, self.rotations_[rows], self.common_lines_.checked)
        total = float(weights.sum(dtype=np.float64)) / 2
        self.cut_value_ = total - objective(weights, self.labels_[rows])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the bound holds, however tight it is
            self.upper_bound_ = max_k_cut(
                weights, self.n_clusters, init=self.labels_[rows], n_init=1, n_jobs=self._threads(), random_state=seed
            ).upper_bound

    # ------------------------------------------------------------------------------------------- arguments
    def _threads(self):
        return max_threads() if self.n_jobs is None else joblib.effective_n_jobs(self.n_jobs)

    def _grid(self):
        side = 2 if self.angular_step >= 30 else 4
        return {"n_side": side, "n_psi": 6 * side}

    def _mask_radius(self, L):
        return 0.42 * L if self.mask_radius == "auto" else float(self.mask_radius)

    def _fingerprint(self, stack, labels):
        """Of all that the result depends on; None where nothing is saved."""
        if self.checkpoint_dir is None:
            return None
        params = self.get_params(deep=False)
        if isinstance(self.random_state, np.random.RandomState):
            params["random_state"] = "given"
        for name in ("n_jobs", "checkpoint_dir"):
            params.pop(name)
        poses = [stack.rotations, stack.shifts] if self.init == "poses" else []
        poses += [getattr(self.init, name, None) for name in ("rotations_", "shifts_", "contrast_")]
        return fingerprint(params, stack, (stack.ctf, labels, *poses))

    def _check_labels(self, labels, n):
        if labels is None:
            return None
        labels = np.asarray(labels)
        if labels.shape != (n,) or labels.dtype.kind not in "iu":
            raise ValueError(f"labels has shape {labels.shape} and dtype {labels.dtype}; integers ({n},) are wanted")
        bad = np.flatnonzero((labels < 0) | (labels >= self.n_clusters))
        if len(bad):
            raise ValueError(f"labels[{bad[0]}] is {labels[bad[0]]}; 0 to {self.n_clusters - 1} is wanted")
        return labels.astype(np.int64)

    def _check_lengths(self, L):
        L = max(L, _SMALLEST_BOX)
        if self.max_shift >= L / 2:
            raise ValueError(f"max_shift is {self.max_shift} pixels; less than half of the box of {L} is wanted")
        if self.mask_radius != "auto" and self.mask_radius > L:
            raise ValueError(f"mask_radius is {self.mask_radius} pixels; at most the box of {L} is wanted")

    # ------------------------------------------------------------------------------------------------- use
    def _log_likelihood(self, images):
        """Log-likelihood of images at their best poses in each class, above that of no particle."""
        n_jobs = self._threads()
        shared = {"band": _BAND, "contrast_std": self._contrast_std, "n_jobs": n_jobs}
        search = {"max_shift": self._search_shift, "n_best": 3, **self._grid(), **shared}
        projectors = [VolumeProjector(volume) for volume in self.class_volumes_]
        one_frame = self.refine is not None
        if one_frame:  # one search against the mean, in whose frame all classes are
            mean = np.tensordot(self.class_shares_.astype(np.float32), self.class_volumes_, axes=1)
            first = search_and_refine(images, VolumeProjector(mean), **search)
        log = np.empty((len(images), len(projectors)))
        n_points = images.n_points(_BAND)
        power = np.square(np.abs(images.values[:, :n_points])).sum(axis=1, dtype=np.float64)
        for k, projector in enumerate(projectors):
            own = first if one_frame else search_and_refine(images, projector, **search)
            fit = refine_poses(
                images, projector, own.rotations, own.shifts, n_steps=4, refine_shifts=self._search_shift > 0, **shared
            )
            log[:, k] = power - fit.error
        return log

    def _chunks(self, X, ctf):
        check_is_fitted(self)
        validate_parameters(self)
        stack = validate_lazy(self, X, reset=False)
        pixel_size, ctf = resolve_optics(stack, ctf)
        for where, chunk in iter_finite_chunks(stack, chunk_size=1000):
            images = FourierImages.from_stack(
                padded_to(as_stack(chunk), _SMALLEST_BOX), self.noise_spectrum_, _BAND,
                ctf=None if ctf is None else ctf[where], pixel_size=pixel_size,
            )
            yield self._log_likelihood(images)

    def transform(self, X, *, ctf=None):
        """Log-likelihood of images in each class, each image by itself at its best pose.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
        ctf : structured array of shape (n_images,), default=None
            None: those that `X` carries, if any.

        Returns
        -------
        ndarray of shape (n_images, n_clusters)
            Above that of no particle; without the classes' shares.
        """
        dtype = np.float64 if getattr(X, "dtype", np.float64) == np.float64 else np.float32
        return np.concatenate(list(self._chunks(X, ctf))).astype(dtype)

    def fit_transform(self, X, y=None, *, ctf=None, labels=None):
        """Fit, and return what :meth:`transform` finds.

        Parameters
        ----------
        X, y, ctf, labels : as in :meth:`fit`

        Returns
        -------
        ndarray of shape (n_images, n_clusters)
        """
        return self.fit(X, y, ctf=ctf, labels=labels).transform(X, ctf=ctf)

    def _weighted(self, X, ctf):
        return np.concatenate(list(self._chunks(X, ctf))) + np.log(np.maximum(self.class_shares_, 1e-12))

    def predict(self, X, *, ctf=None):
        """Class of new images, each by itself.

        Parameters
        ----------
        X, ctf : as in :meth:`transform`

        Returns
        -------
        labels : ndarray of shape (n_images,), int64
        """
        return self._weighted(X, ctf).argmax(axis=1)

    def predict_proba(self, X, *, ctf=None):
        """Probabilities of the classes for new images, each by itself.

        Parameters
        ----------
        X, ctf : as in :meth:`transform`

        Returns
        -------
        ndarray of shape (n_images, n_clusters), float64
        """
        weighted = self._weighted(X, ctf)
        return np.exp(weighted - log_sum(weighted)[:, None])

    def score(self, X, y=None, *, ctf=None):
        """Mean log-likelihood of images under the mixture of classes, above that of no particle.

        Parameters
        ----------
        X, ctf : as in :meth:`transform`
        y : None
            Ignored.

        Returns
        -------
        score : float
        """
        return float(log_sum(self._weighted(X, ctf)).mean())
