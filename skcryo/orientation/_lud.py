"""Rotations of raw images from their common lines."""

import warnings
from numbers import Integral, Real
from os import PathLike

import joblib
import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch

from .._callback import CallbackSupportMixin, FitProgress
from .._ext._emd import max_threads
from .._torch import DEVICES, accelerator
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
from ..fourier import check_shifts
from ..io._checkpoint import StageCheckpoints
from ..metrics import common_line_detection_rate
from ..particles import as_stack
from ..preprocessing import Centerer, noise_spectrum
from ..projection import VolumeProjector
from ..reconstruction._ab_initio_refine import best_contrast, search_and_refine
from ..reconstruction._half_sets import fingerprint
from ..rotations import check_rotations, random_rotations
from ._common_lines import CommonLines, detect_common_lines
from ._lud_solver import LUDResult, line_residuals, solve_lud
from ._lud_weights import equalized_weights
from ._pose_refinement import PoseRefinement, moved_back

__all__ = ["LUDRotations"]

_SMALLEST_BOX = 8
_CONTRAST_STD = 0.2
_MAX_ROUNDS = 24
_CONVERGED = 0.5  # degrees by which poses may move in the last round
_UNREFINED_BAND = 10.0  # cycles per box of the volume for `predict`: what poses three degrees off leave of it
_PREDICT_SEARCHES = 2  # each with the grid turned, so that they look between one another's poses
_FEWEST_AGREEING = 0.1
_COUNTED_PAIRS = 100_000


class LUDRotations(CallbackSupportMixin, StackTagsMixin, BaseEstimator):
    """Rotations of images from their common lines, by least unsquared deviations.

    The Fourier transforms of any two images of one molecule share a line. Lines of all pairs are searched for
    (:func:`detect_common_lines`) and the images turned such that their lines meet (:func:`solve_lud`), which needs no
    first volume and no start by lot. The poses are then refined against the volume that the images make at them, unless
    that is not wanted.

    Parameters
    ----------
    init : AbInitioVolume, array-like of shape (n_images, 2) or (n_images, 3, 3), default=None
        What is known. Lines of images that are not centred do not meet: shifts in pixels, instead of those that `X`
        carries, or an :class:`~skcryo.reconstruction.AbInitioVolume` that finds them. One that is fitted already, on as
        many images, is taken to be fitted on these; otherwise a clone is fitted. Rotations (n_images, 3, 3) are where
        the solution starts.
    metric : {"likelihood", "correlation"}, default="likelihood"
        What lines are compared by: the `score` of :func:`detect_common_lines`.
    weights : {"confidence", "equal"}, default="confidence"
        How pairs count: by the confidence in their lines, or all alike. Either way they are made even over the angles
        of each image, see :func:`equalized_weights`.
    alpha : float, default=2/3
        Bound on how far views may draw together, see :func:`solve_lud`: 2/3 for evenly spread views, 1 for none.
    refine : {"volume"} or None, default="volume"
        "volume": poses, shifts and contrasts are refined against the volume that the images make, and wrong ones looked
        for anew. None: rotations are those of the common lines alone.
    max_shift : float, default=0.0
        Largest shift in x and in y, in pixels, beyond the known ones. 0: images are centred; what the refinement finds
        of small shifts is in ``shifts_`` all the same. Above 0 and without known shifts, images are first centred as
        round things (:class:`~skcryo.preprocessing.Centerer`), and the refinement searches for shifts too.
    mask_radius : float or "auto", default="auto"
        Radius in pixels of the ball that holds the particle. "auto": 0.42 L.
    max_ring : int, default=20
        Highest frequency used, in cycles per box.
    max_iter : int, default=200
        Steps at most, in each stage of :func:`solve_lud`.
    checkpoint_dir : path, default=None
        Folder where the fit saves its state: each block of common lines, the solution, each round of refinement. A fit
        that was killed goes on from there to the same bits; files of other images or parameters are refused.
    n_jobs : int, default=None
        Threads. None: all cores (OMP_NUM_THREADS is respected). Results do not depend on it.
    device : {"auto", "cpu", "cuda"}, default="auto"
        Where poses are searched for. "cuda": on a GPU, by torch (``pip install "skcryo[torch]"``). "auto": on a GPU if
        torch is installed and sees one, else on the CPU.

    Attributes
    ----------
    rotations_ : ndarray of shape (n_images, 3, 3), float64
        Poses, up to one rotation and hand of all.
    shifts_ : ndarray of shape (n_images, 2), float64
        (x, y) in pixels, the known ones included.
    common_lines_ : CommonLines
        The lines that were detected, or those given to `fit`.
    objective_ : float
        ``sum_{i<j} w_ij |R_i c_ij - R_j c_ji|`` of the solution from common lines, before it is refined.
    residuals_ : ndarray of shape (n_images,), float64
        Of each image, the weighted mean of ``|R_i c_ij - R_j c_ji|`` over its pairs, R being ``rotations_``; high where
        its lines are wrong.
    line_agreement_ : float
        Share of pairs whose lines lie within ten degrees of those that ``rotations_`` predict, in both images: an
        estimate of the share of lines that are right, without the truth. By chance it is 0.006; poses fitted to noise
        reach 0.05.
    n_iter_ : int
        Steps of the solution.
    n_rounds_ : int
        Rounds of refinement.
    converged_ : bool
        Whether solution and refinement had settled and a tenth of the lines agrees with the poses.
    volume_ : ndarray of shape (box, box, box), float32
        What `predict` compares with: a volume of frequencies up to ``band_`` alone, in a box of the same size in
        Angstrom. For one to look at, give ``rotations_`` and ``shifts_`` to
        :class:`~skcryo.reconstruction.FourierReconstructor`.
    band_ : float
        Cycles per box.
    noise_spectrum_ : ndarray of shape (L // 2 + 1,), float64
        The noise's power by ring.
    init_ : AbInitioVolume
        The fitted one, if `init` is one.
    pixel_size_ : float or None
    n_features_in_ : int
    image_shape_ : tuple of two ints

    See Also
    --------
    solve_lud : The solution from lines alone.
    skcryo.reconstruction.AbInitioVolume : Poses, shifts and volume, by search; slower, for images of any kind.

    Notes
    -----
    Images and their mirror images in the focal plane fit two molecules of opposite hand equally well: which of the two
    comes out, and in what frame, is chance. All ``R_i`` and all ``J R_i J``, ``J = diag(1, 1, -1)``, are equivalent;
    :func:`skcryo.metrics.pose_error` tries both.

    :meth:`predict` compares each image by itself with the volume of the fitted ones, whether or not they were refined
    against it: all poses are searched, none of the other new images plays a part. So scores of held-out images are
    honest and cross-validation works. Of images that were fitted, ``rotations_`` are the poses of the fit, and
    `predict` finds them again to within fractions of a degree. Memory and time of lines grow with the square of the
    number of images, 1.5 GB at 5000: of very many, fit some thousand and `predict` the others.

    Choices: images smaller than 8 pixels are padded with zeros; the contrast of images is taken to vary by 20 %;
    without refinement, the volume for `predict` has 10 cycles per box. Nothing is drawn by lot: the same
    images give the same bits.

    References
    ----------
    .. [1] Wang, Singer, Wen, "Orientation determination of cryo-EM images using least unsquared deviations", SIAM J.
       Imaging Sci. 6 (2013).
    .. [2] Aizenbud, Shkolnisky, "A max-cut approach to heterogeneity in cryo-electron microscopy", J. Math. Anal.
       Appl. 479 (2019), section 4.

    Examples
    --------
    >>> from skcryo.datasets import make_molecule, make_particles
    >>> from skcryo.metrics import pose_error
    >>> from skcryo.orientation import LUDRotations
    >>> stack, truth = make_particles(make_molecule(32, random_state=0), 150, snr=1.0, random_state=0)
    >>> lud = LUDRotations().fit(stack)
    >>> lud.rotations_.shape
    (150, 3, 3)
    >>> bool(pose_error(lud.rotations_, truth.rotations).mean < 3)
    True
    """

    _parameter_constraints: dict = {
        "init": [HasMethods(["fit", "predict_poses"]), "array-like", None],
        "metric": [StrOptions({"likelihood", "correlation"})],
        "weights": [StrOptions({"confidence", "equal"})],
        "alpha": [Interval(Real, 2 / 3, 1, closed="both")],
        "refine": [StrOptions({"volume"}), None],
        "max_shift": [Interval(Real, 0, None, closed="left")],
        "mask_radius": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "max_ring": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "checkpoint_dir": [str, PathLike, None],
        "n_jobs": [Integral, None],
        "device": [StrOptions(set(DEVICES))],
    }

    def __init__(
        self,
        *,
        init=None,
        metric="likelihood",
        weights="confidence",
        alpha=2 / 3,
        refine="volume",
        max_shift=0.0,
        mask_radius="auto",
        max_ring=20,
        max_iter=200,
        checkpoint_dir=None,
        n_jobs=None,
        device="auto",
    ):
        self.init = init
        self.metric = metric
        self.weights = weights
        self.alpha = alpha
        self.refine = refine
        self.max_shift = max_shift
        self.mask_radius = mask_radius
        self.max_ring = max_ring
        self.max_iter = max_iter
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.device = device

    # ------------------------------------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, *, ctf=None, common_lines=None):
        """Find rotations.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Particle images, light on dark; three at least. Shifts that it carries are undone; poses that it carries are
            not used.
        y : None
            Ignored.
        ctf : structured array of shape (n_images,), default=None
            CTFs (:data:`skcryo.ctf.CTF_DTYPE`). None: those that `X` carries, if any.
        common_lines : CommonLines of n_images images, default=None
            Lines that are known already, with the mask of pairs that were looked at. None: they are detected.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If images are not square and finite, or fewer than three; if lines, CTFs, shifts or rotations are not those
            of as many images; if images fall into groups without a common line between them; if `checkpoint_dir`
            holds another fit.
        ImportError
            If ``device="cuda"`` and torch is not installed.

        Warns
        -----
        ConvergenceWarning
            If the solution or the refinement did not settle, or hardly any lines agree with the poses.
        """
        device = accelerator(self.device, caller="LUDRotations")
        stack = validate_lazy(self, X, ensure_min_samples=3)
        for _ in iter_finite_chunks(stack):
            pass
        vars(self).pop("init_", None)
        self.pixel_size_, ctf = resolve_optics(stack, ctf)
        stack = stack.replace(ctf=ctf)
        if common_lines is not None:
            _check_common_lines(common_lines, len(stack))
        with FitProgress(self, X, y, max_steps=None) as progress:
            known, rough, start = self._known(stack)
            images = self._fourier_images(stack, known, fitting=True)
            shifts = None if known is None and not rough.any() else rough + (0 if known is None else known)
            saved = StageCheckpoints(self.checkpoint_dir, self._fingerprint(stack, known, start, common_lines))
            with progress.step("common lines"):
                self.common_lines_ = common_lines or self._detect(stack, shifts, saved.subfolder("common_lines"))
            with progress.step("rotations"):
                found = self._solve(start, saved)
            refinement = PoseRefinement(
                images,
                found.rotations,
                rough,
                max_shift=self.max_shift,
                mask_radius=self._radius(images.L),
                n_jobs=self._threads(),
                device=device,
            )
            before = saved.load("refinement")
            if before is not None:
                refinement.restore(*before)
            while self._refining(refinement) and not progress.stopped:
                with progress.step("round"):
                    refinement.run_round()
                saved.save("refinement", *refinement.state())
            self.rotations_ = refinement.fit.rotations
            self.shifts_ = refinement.fit.shifts + (0 if known is None else known)
            if common_lines is None and self.refine and self.max_shift > 0:
                with progress.step("common lines"):
                    self.common_lines_ = self._detect(stack, self.shifts_, saved.subfolder("common_lines_again"))
        self._finish(found, refinement, stopped=progress.stopped)
        return self

    def _refining(self, refinement):
        return self.refine is not None and refinement.round < _MAX_ROUNDS and not refinement.settled

    def _solve(self, start, saved):
        found = self._saved_solution(saved)
        if found is None:
            found = self._solution(start)
            arrays = {"rotations": found.rotations, "residuals": found.residuals}
            names = ("objective", "objective_path", "n_iter", "converged")
            saved.save("rotations", arrays, {name: getattr(found, name) for name in names})
        self.objective_, self.n_iter_ = found.objective, found.n_iter
        return found

    @staticmethod
    def _saved_solution(saved):
        before = saved.load("rotations")
        return None if before is None else LUDResult(**before[0], **before[1])

    def _solution(self, start):
        lines = self.common_lines_
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said in the end, together with what else went wrong
            return solve_lud(
                lines.angles,
                weights=self._weights(),
                checked=lines.checked,
                alpha=self.alpha,
                init=start,
                max_iter=self.max_iter,
            )

    def _weights(self):
        lines = self.common_lines_
        trusted = lines.confidences if self.weights == "confidence" else None
        return equalized_weights(lines.angles, trusted, lines.checked)

    def _finish(self, found, refinement, *, stopped):
        self.n_rounds_ = refinement.round
        top = float(refinement.images.radii[-1])
        self.band_ = top if self.refine else min(_UNREFINED_BAND, top)
        self.volume_ = refinement.solve(self.band_)
        self.noise_spectrum_ = self._spectrum * np.interp(
            np.arange(len(self._spectrum)), np.arange(len(refinement.noise)), refinement.noise
        )
        lines = self.common_lines_
        self.residuals_ = line_residuals(lines.angles, self.rotations_, self._weights(), lines.checked)
        self.line_agreement_ = _line_agreement(self.common_lines_, self.rotations_)
        problems = []
        if self.refine is None and not found.converged:
            problems.append(f"rotations had not settled after {self.max_iter} steps (max_iter)")
        if self.refine is not None and not refinement.change < _CONVERGED:
            problems.append(f"poses still moved by {refinement.change:.2g} degrees in round {refinement.round}")
        if self.line_agreement_ < _FEWEST_AGREEING:
            problems.append(
                f"only {self.line_agreement_:.1%} of the common lines agree with the poses, which may be wrong: more "
                "or better images, or shifts (init) are wanted"
            )
        self.converged_ = not problems
        if problems and not stopped:
            warnings.warn(f"LUDRotations did not converge: {'; '.join(problems)}", ConvergenceWarning, stacklevel=3)

    def fit_predict(self, X, y=None, *, ctf=None, common_lines=None):
        """Fit, and return the rotations of the images.

        Parameters
        ----------
        X, y, ctf, common_lines : as in :meth:`fit`

        Returns
        -------
        rotations : ndarray of shape (n_images, 3, 3), float64
            ``rotations_``.
        """
        return self.fit(X, y, ctf=ctf, common_lines=common_lines).rotations_

    # ----------------------------------------------------------------------------------- what is known of images
    def _known(self, stack):
        """Known shifts or None, rough ones (n, 2) beyond them, and rotations to start from or None."""
        n, start = len(stack), None
        shifts, rough = stack.shifts, np.zeros((n, 2))
        if hasattr(self.init, "predict_poses"):
            self.init_ = self.init
            if len(getattr(self.init, "shifts_", ())) != n:
                self.init_ = clone(self.init).fit(stack)
            return self.init_.shifts_, rough, None
        if self.init is not None:
            given = np.asarray(self.init, dtype=np.float64)
            if given.ndim == 3:
                start = check_rotations(given, n, name="init")
            elif given.shape == (n, 2):
                shifts = check_shifts(given, n)
            else:
                raise ValueError(
                    f"init has shape {given.shape}; shifts ({n}, 2), rotations ({n}, 3, 3) or an AbInitioVolume is "
                    "wanted"
                )
        if shifts is None and self.max_shift > 0:
            padded = padded_to(stack, _SMALLEST_BOX)
            rough = Centerer(max_shift=int(np.ceil(self.max_shift))).fit(padded).estimate_shifts(padded)
        return shifts, rough, start

    def _detect(self, stack, shifts, folder):
        return detect_common_lines(
            padded_to(stack, _SMALLEST_BOX),
            score=self.metric,
            shifts=shifts,
            checkpoint_dir=folder,
            device=self.device,
            n_jobs=self._threads(),
        )

    def _fingerprint(self, stack, shifts, start, lines):
        """Of all that the result depends on; None where nothing is saved."""
        if self.checkpoint_dir is None:
            return None
        params = self.get_params(deep=False)
        for name in ("init", "n_jobs", "device", "checkpoint_dir"):
            params.pop(name)
        given = () if lines is None else (lines.angles, lines.confidences, lines.checked)
        return fingerprint(params, stack, (stack.ctf, shifts, start, *given))

    def _fourier_images(self, stack, shifts, *, fitting=False):
        padded = padded_to(stack, _SMALLEST_BOX)
        if fitting:
            L = padded.shape[1]
            if self.max_shift >= L / 2:
                raise ValueError(f"max_shift is {self.max_shift} pixels; less than half of the box of {L} is wanted")
            self._spectrum = noise_spectrum(padded, radius=0 if L < 16 else None)
        spectrum = self._spectrum if fitting else self.noise_spectrum_
        images = FourierImages.from_stack(padded, spectrum, self.max_ring, ctf=stack.ctf, pixel_size=stack.pixel_size)
        return images if shifts is None else moved_back(images, shifts)

    def _radius(self, L):
        return 0.42 * L if self.mask_radius == "auto" else float(self.mask_radius)

    def _threads(self):
        return max_threads() if self.n_jobs is None else joblib.effective_n_jobs(self.n_jobs)

    # ------------------------------------------------------------------------------------------------- use
    def predict_poses(self, X, *, ctf=None):
        """Poses of images against those that were fitted, each image by itself.

        Parameters
        ----------
        X : ParticleStack or array-like of shape (n_images, L, L) or (n_images, n_pixels)
            Shifts that it carries are undone first; with an :class:`~skcryo.reconstruction.AbInitioVolume` as `init`,
            that finds them.
        ctf : structured array of shape (n_images,), default=None
            None: those that `X` carries, if any.

        Returns
        -------
        poses : Bunch
            ``rotations`` (n, 3, 3), in the frame of ``rotations_``; ``shifts`` (n, 2) in pixels; ``contrast`` (n,);
            ``log_likelihood`` (n,) above that of no particle.
        """
        check_is_fitted(self, "volume_")
        validate_parameters(self)
        stack = validate_lazy(self, X, reset=False)
        stack = stack.replace(ctf=resolve_optics(stack, ctf)[1])
        device, projector = accelerator(self.device, caller="LUDRotations"), VolumeProjector(self.volume_)
        options = {"contrast_std": _CONTRAST_STD, "n_jobs": self._threads()}
        parts = []
        for where, chunk in iter_finite_chunks(stack, chunk_size=1000):
            part = as_stack(chunk).replace(
                pixel_size=stack.pixel_size,
                ctf=None if stack.ctf is None else stack.ctf[where],
                shifts=None if stack.shifts is None else stack.shifts[where],
            )
            known = self.init_.predict_poses(part).shifts if hasattr(self, "init_") else part.shifts
            images = self._fourier_images(part, known)
            fit = None
            for turn in range(_PREDICT_SEARCHES):
                fit = search_and_refine(
                    images,
                    projector,
                    max_shift=self.max_shift,
                    band=min(14.0, self.band_),
                    fit=fit,
                    n_best=3,
                    turn=random_rotations(1, turn)[0],
                    device=device,
                    **options,
                )
            fit = refine_poses(images, projector, fit.rotations, fit.shifts, band=self.band_, n_steps=4, **options)
            contrast = best_contrast(fit, _CONTRAST_STD)
            parts.append(
                {
                    "rotations": fit.rotations,
                    "shifts": fit.shifts if known is None else fit.shifts + known,
                    "contrast": contrast,
                    "log_likelihood": 2 * contrast * fit.cross - contrast**2 * fit.power,
                }
            )
        return Bunch(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def predict(self, X, *, ctf=None):
        """Rotations of images against those that were fitted, each image by itself.

        Parameters
        ----------
        X, ctf : as in :meth:`predict_poses`

        Returns
        -------
        rotations : ndarray of shape (n_images, 3, 3), float64
            In the frame of ``rotations_``.
        """
        return self.predict_poses(X, ctf=ctf).rotations

    def score(self, X, y=None, *, ctf=None):
        """Mean log-likelihood of images at their best poses, above that of no particle.

        Parameters
        ----------
        X, ctf : as in :meth:`predict_poses`
        y : None
            Ignored; for scores by true poses see :func:`skcryo.metrics.make_pose_scorer`.

        Returns
        -------
        score : float
        """
        return float(self.predict_poses(X, ctf=ctf).log_likelihood.mean())


def _check_common_lines(common_lines, n):
    if not isinstance(common_lines, CommonLines):
        raise TypeError(f"common_lines is a {type(common_lines).__name__}; CommonLines are wanted")
    if len(common_lines) != n:
        raise ValueError(f"common_lines are of {len(common_lines)} images but X has {n}")


def _line_agreement(lines, rotations):
    """Share of lines within ten degrees of those predicted: of all pairs, or of a sample, always the same, of many."""
    n = len(rotations)
    if n * (n - 1) // 2 <= _COUNTED_PAIRS:
        i, j = np.triu_indices(n, 1)
    else:
        i, j = np.random.default_rng(0).integers(n, size=(2, _COUNTED_PAIRS))
    counted = lines.checked[i, j]
    i, j = i[counted], j[counted]
    if not np.linalg.norm(np.cross(rotations[i, :, 2], rotations[j, :, 2]), axis=1).max(initial=0) > 1e-5:
        return 0.0  # all views are the same: their lines tell nothing
    both = np.stack([lines.angles[i, j], lines.angles[j, i]], axis=1)
    return common_line_detection_rate(both, rotations, pairs=np.stack([i, j], axis=1))
