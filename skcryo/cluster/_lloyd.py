"""Lloyd's iteration of rotation-invariant k-means: starts, balancing, empty classes, checkpoints."""

import functools
import hashlib
import json
import os
from dataclasses import dataclass, field

import numpy as np

from ..alignment import synchronize_averages
from ..alignment._polar_search import turned
from ..fourier import shift_images
from ..io import load_checkpoint, save_checkpoint
from ._search import Found, join
from ._seeding import plus_plus_averages, random_averages

_CACHE = 2**30  # bytes of features kept from one iteration to the next
_GAP_SAMPLE = 256  # images on which the gap between best and second class is measured, for `balance`
_RATE = 0.5  # of the gap: how far a class of e times its share is penalised in one iteration
_RECENTER = 6  # iterations after which class averages that wandered off centre are moved back
_OFF_CENTRE = 0.5  # of the shifts searched: how far that may move the images of a class on average
_FULL_SEARCHES = (0, 1, 2, 3, 8, 32, 128)  # iterations that search all shifts
_WARM_UP = 4  # iterations under a smoothed distance before those under "w1"
_CHECKPOINT = "kmeans"


@dataclass
class Run:
    """One start of the iteration, at any moment of it."""

    averages: np.ndarray
    biases: np.ndarray
    found: Found | None = None
    n_iter: int = 0
    moved: float = 1.0
    converged: bool = False
    curve: list = field(default_factory=list)
    inertia: float = np.inf
    gap: float = 0.0


class Lloyd:
    """The fit of one estimator to some images."""

    def __init__(self, estimator, data, weights, make_search, rng, progress):
        self.est = estimator
        self.data = data
        self.weights = weights
        self.make_search = make_search
        self.search = make_search()
        self.rng = rng
        self.progress = progress
        self._cached = None
        self._gap_features = None
        self._near = None

    def run(self):
        """All starts; the one of least inertia."""
        start, current, best = self._resume()
        while start < self.est.n_init:
            if current is None:
                current = self._start()
                self._save(start, current, best)
            self._iterate(start, current, best)
            if best is None or current.inertia < best.inertia:
                best = current
            if self.progress.stopped:
                break  # and leave the checkpoint as it is: another fit goes on where this one was stopped
            start, current = start + 1, None
            self._save(start, current, best)
        return best

    def _iterate(self, start, run, best):
        while not run.converged and run.n_iter < self.est.max_iter and not self.progress.stopped:
            with self.progress.step("iteration", attributes=functools.partial(self._attributes, run)):
                near = self._looks_near(run)
                self._assign(run, self._find_near if near else self._find)
                if near and self._settled(run):  # the last word is a search of all shifts
                    self._assign(run, self._find)
                run.converged = run.n_iter > 0 and self._settled(run)
                run.n_iter += 1
                run.curve.append(run.inertia)
                if not run.converged:
                    self._update(run)
                self._save(start, run, best)
        if not run.converged:
            self._assign(run, self._find)

    def _assign(self, run, find):
        """Images to classes, by a full search or one near known shifts."""
        found = find(self.search, run)
        if run.found is not None and run.n_iter:
            run.moved = float(np.average(found.labels != run.found.labels, weights=self.weights))
        run.found = found
        costs = np.asarray(found.costs, np.float64)
        run.inertia = float((self.weights * costs**self.search.power).sum())

    def _attributes(self, run):
        """The fitted attributes as if the fit ended here, for callbacks."""
        est = self.est
        return {
            "class_averages_": run.averages,
            "cluster_centers_": run.averages.reshape(len(run.averages), -1)[:, : est.n_features_in_],
            "class_biases_": run.biases,
            "inertia_": run.inertia,
            "n_iter_": run.n_iter,
            "_n_features_out": len(run.averages),
        }

    def _settled(self, run):
        """Whether the classes are what they were; not while one is empty, unless filling it has changed nothing."""
        if self._recenters(run.n_iter) or run.moved > self.est.tol:
            return False
        return run.moved == 0 or bool(np.bincount(run.found.labels, minlength=len(run.averages)).all())

    # -------------------------------------------------------------------------------------- a step
    def _find(self, search, run, near=False):
        parts = []
        for where, part in self._features(search):
            previous = None
            if run.found is not None:
                previous = run.found.labels[where], run.found.angles[where], run.found.shifts[where]
            parts.append(search.find(part, run.averages, bias=run.biases, previous=previous, near=near))
        return join(parts)

    def _looks_near(self, run):
        """Whether an iteration looks for shifts only around those known: all but a few and the last."""
        return self.search.shifts and run.found is not None and run.n_iter not in _FULL_SEARCHES

    def _find_near(self, search, run):
        """As :meth:`_find`, with shifts only around those known."""
        step = search.near_step
        if step is None:
            return self._find(search, run, near=True)
        if self._near is None:
            self._near = self.make_search(max_shift=step)
        centres = _shortened(run.found.shifts, search.max_shift - step)
        parts = []
        for where, known, part in self.data.moved_back(self._near, centres):
            previous = run.found.labels[where], run.found.angles[where], np.zeros_like(known)
            found = self._near.find(part, run.averages, bias=run.biases, previous=previous)
            found.shifts += known
            parts.append(found)
        return join(parts)

    def _features(self, search):
        """(slice, features): kept from one iteration to the next if they fit into memory, else made anew."""
        if search.bytes_per_image(self.data.ctf) * len(self.data) > _CACHE:
            return self.data.features(search)
        if self._cached is None or self._cached[0] is not search:
            self._cached = None
            # shifted copies of a whole part are made at a time
            self._cached = search, list(self.data.features(search, None if search.shifts else _CACHE))
        return self._cached[1]

    def _update(self, run):
        k, found = len(run.averages), run.found
        labels = self._fill_empty(found.labels, run.biases)
        averages, totals = self.data.averages(labels, found.angles, found.shifts, k, self.weights)
        averages[totals == 0] = run.averages[totals == 0]
        if self._recenters(run.n_iter):
            averages = self._recentred(self.search, averages, totals, labels, found)
        if self.est.balance > 0 and k > 1:
            share = totals * k / self.weights.sum()
            if run.n_iter & (run.n_iter - 1) == 0:  # iterations 1, 2, 4, 8, ...: it changes less and less
                run.gap = self._gap(run)
            step = self.est.balance * run.gap * np.log((share + 0.1) / 1.1)
            kept = 1 - _RATE * (1 - self.est.balance)
            run.biases = (kept * run.biases + _RATE * step).astype(run.biases.dtype)
            run.biases -= run.biases.mean()
        run.averages = averages

    def _recenters(self, n_iter):
        return self.search.shifts and n_iter <= min(_RECENTER, self.est.max_iter - 2)

    def _recentred(self, search, averages, totals, labels, found):
        """Class averages moved back to one centre, but none so far that its images leave the shifts searched."""
        offsets = synchronize_averages(averages, totals, n_jobs=self.data.n_threads)
        own = turned(found.shifts, -found.angles)  # shifts in the frame of the class average
        mean = np.stack([np.bincount(labels, self.weights * part, len(averages)) for part in own.T], axis=1)
        mean /= np.maximum(totals, 1e-30)[:, None]
        length = np.hypot(*(mean + offsets).T)[:, None]
        offsets = (mean + offsets) * np.minimum(1, _OFF_CENTRE * search.max_shift / np.maximum(length, 1e-12)) - mean
        return shift_images(averages, -offsets)

    def _fill_empty(self, labels, biases):
        """Labels in which each empty class took a random half of the largest one, and its bias."""
        labels = labels.copy()
        counts = np.bincount(labels, minlength=len(biases))
        for empty in np.flatnonzero(counts == 0):
            largest = int(counts.argmax())
            members = np.flatnonzero(labels == largest)
            if len(members) < 2:
                break
            half = self.rng.permutation(members)[: len(members) // 2]
            labels[half] = empty
            biases[empty] = biases[largest]  # else all images of both would go to one of them
            counts[empty], counts[largest] = len(half), len(members) - len(half)
        return labels

    def _gap(self, run):
        """Median difference of cost between the best and the second class, on a sample of the images."""
        if self._gap_features is None:
            n = len(self.data)
            index = np.unique(np.linspace(0, n - 1, min(n, _GAP_SAMPLE)).astype(int))
            self._gap_features = [part for _, part in self.data.select(index).features(self.search)]
        costs = np.concatenate(
            [self.search.find(part, run.averages, return_all=True).all_costs for part in self._gap_features]
        )
        two = np.partition(costs, 1, axis=1)[:, :2]
        return float(np.median(two[:, 1] - two[:, 0]))

    # -------------------------------------------------------------------------------------- starts
    def _start(self):
        est, data = self.est, self.data
        k = est.n_clusters
        biases = np.zeros(k, data.dtype)
        if not isinstance(est.init, str):
            return Run(self._given_averages(), biases)
        if est.init == "random":
            return Run(random_averages(data, self.weights, k, self.rng), biases)
        cheap = self.search
        if est.metric == "w1":
            cheap = self.make_search(metric="l2", lowpass="auto")
        averages = plus_plus_averages(
            data, self.weights, cheap, k, self.rng,
            n_sample=max(1000 if cheap.shifts else 2000, 20 * k), n_trials=1 if cheap.shifts else 2 + int(np.log(k)),
        )
        run = Run(averages, biases)
        if cheap is not self.search:
            self._warm_up(cheap, run)
        return run

    def _warm_up(self, search, run):
        """A few iterations under a smoothed distance: averages of noisy images to start from."""
        k = len(run.averages)
        for _ in range(_WARM_UP):
            run.found = self._find(search, run)
            found = run.found
            labels = self._fill_empty(found.labels, run.biases)
            averages, totals = self.data.averages(labels, found.angles, found.shifts, k, self.weights)
            averages[totals == 0] = run.averages[totals == 0]
            if search.shifts:
                averages = self._recentred(search, averages, totals, labels, found)
            run.averages = averages

    def _given_averages(self):
        est, data = self.est, self.data
        given = np.array(est.init, data.dtype)
        if given.ndim == 2 and given.shape[1] == est.n_features_in_:
            padded = np.zeros((len(given), data.size**2), data.dtype)
            padded[:, : given.shape[1]] = given
            given = padded.reshape(-1, data.size, data.size)
        wanted = est.n_clusters, data.size, data.size
        if given.shape != wanted:
            raise ValueError(f"init has shape {np.shape(est.init)}, wanted are n_clusters first averages: {wanted}")
        if not np.isfinite(given).all():
            bad = int(np.flatnonzero(~np.isfinite(given).all(axis=(1, 2)))[0])
            raise ValueError(f"init holds values that are not finite: first average {bad}")
        return given

    # ---------------------------------------------------------------------------------- checkpoints
    @functools.cached_property
    def _fingerprint(self):
        """What a checkpoint must share with this fit: parameters, images, CTFs, weights.

        Images in files count by the files' names and sizes and the pixels of some; the state of a random generator that
        was passed in is in the checkpoint itself.
        """
        params = self.est.get_params(deep=False)
        if isinstance(self.est.random_state, np.random.RandomState):
            params["random_state"] = "given"
        given = params.pop("init")
        for name in ("n_jobs", "checkpoint_dir"):
            params.pop(name)
        digest = hashlib.sha256(json.dumps({k: repr(v) for k, v in sorted(params.items())}).encode())
        digest.update(given.encode() if isinstance(given, str) else np.asarray(given, np.float64).tobytes())
        digest.update(repr(self.data.stack.shape).encode())
        n = len(self.data)
        sample = range(n) if self.data.stack.in_memory else np.unique(np.linspace(0, n - 1, 256).astype(int))
        for i in sample:
            digest.update(np.ascontiguousarray(self.data.stack[int(i)]).tobytes())
        files = self.data.stack.image_files
        for path in [] if files is None else files[0]:
            digest.update(f"{path} {os.path.getsize(path)}".encode())
        if self.data.ctf is not None:
            digest.update(np.ascontiguousarray(self.data.ctf).tobytes() + repr(self.data.pixel_size).encode())
        digest.update(self.weights.tobytes())
        return digest.hexdigest()

    def _save(self, start, current, best):
        if self.est.checkpoint_dir is None:
            return
        arrays, runs = {}, {}
        for name, run in (("current", current), ("best", best)):
            if run is None:
                continue
            arrays |= {f"{name}_averages": run.averages, f"{name}_biases": run.biases}
            if run.found is not None:
                arrays |= {f"{name}_{a}": getattr(run.found, a) for a in ("labels", "angles", "shifts", "costs")}
            runs[name] = {
                "n_iter": run.n_iter, "moved": run.moved, "converged": run.converged, "curve": run.curve,
                "gap": run.gap,
                "inertia": run.inertia if np.isfinite(run.inertia) else None,
            }
        _, keys, position, has_gauss, gauss = self.rng.get_state()
        arrays["rng_keys"] = keys
        info = {
            "fingerprint": self._fingerprint, "start": start, "runs": runs,
            "rng": [int(position), int(has_gauss), float(gauss)],
        }
        save_checkpoint(self.est.checkpoint_dir, _CHECKPOINT, arrays, info)

    def _resume(self):
        """(start, its run or None, best run or None) from the checkpoint, if there is one."""
        if self.est.checkpoint_dir is None:
            return 0, None, None
        saved = load_checkpoint(self.est.checkpoint_dir, _CHECKPOINT)
        if saved is None:
            return 0, None, None
        arrays, info = saved
        if info["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"checkpoint_dir={self.est.checkpoint_dir!r} holds a fit of other images or parameters; "
                f"name another folder or remove that one"
            )
        position, has_gauss, gauss = info["rng"]
        self.rng.set_state(("MT19937", arrays["rng_keys"], position, has_gauss, gauss))
        runs = {}
        for name, about in info["runs"].items():
            found = None
            if f"{name}_labels" in arrays:
                found = Found(*(arrays[f"{name}_{a}"] for a in ("labels", "angles", "shifts", "costs")), None)
            inertia = about.pop("inertia")
            runs[name] = Run(
                arrays[f"{name}_averages"], arrays[f"{name}_biases"], found,
                inertia=np.inf if inertia is None else inertia, **about,
            )
        return info["start"], runs.get("current"), runs.get("best")


def _shortened(shifts, longest):
    """Shifts no longer than `longest`; those that were are whole pixels then."""
    length = np.hypot(shifts[:, 0], shifts[:, 1])[:, None]
    return np.where(length > longest, np.trunc(shifts * (longest / np.maximum(length, 1e-12))), shifts)
