"""Images streamed into two half sets of sums, with a sample of them kept for the noise."""

import hashlib
import json
import os

import joblib
import numpy as np

from ._accumulator import FourierAccumulator, half_plane, slice_data

_CHUNK_BYTES = 64 * 2**20
_BLOCK = 64  # images whose spectra are computed together: fixed, so that threads change no bit
_SAMPLE = 256


def chunk_size(L):
    """Images read at a time: of the box alone, because the order of sums follows it."""
    return max(1, min(2048, _CHUNK_BYTES // (20 * L * L)))


class HalfSets:
    """Two accumulators and who goes where.

    Images come in pairs, in the order in which they are given, and chance decides who of a pair goes to which half:
    halves are even to one image, and where the stream is cut does not matter.

    Parameters
    ----------
    L : int
    max_frequency : float
    seed : int
    """

    def __init__(self, L, max_frequency, seed):
        self.L, self.max_frequency, self.seed = L, max_frequency, seed
        self.halves = [FourierAccumulator(L), FourierAccumulator(L)]
        self.n_images = 0
        self.counts = [0, 0]
        self.sample = []  # (number, half, image, rotation, shift, ctf record or None)
        self.stride = 1
        self._rng = np.random.RandomState(seed)
        self._flip = False

    def assign(self, n):
        """Halves of the next `n` images."""
        numbers = np.arange(self.n_images, self.n_images + n)
        first_new = (self.n_images + 1) // 2  # of the pairs
        new = self._rng.random_sample(max((self.n_images + n + 1) // 2 - first_new, 0)) < 0.5
        known = self.n_images % 2  # the first image may complete a pair
        flips = np.concatenate([[self._flip], new]) if known else new
        if n:
            halves = (numbers % 2) ^ flips[numbers // 2 - self.n_images // 2]
            self._flip = bool(flips[-1])
            return halves.astype(np.int8)
        return np.zeros(0, dtype=np.int8)

    def add(self, images, poses, weights, halves, pixel_size, n_jobs):
        """Add images (n, L, L); `poses` is (rotations, shifts, ctf or None)."""
        rotations, shifts, ctf = poses
        points = half_plane(self.L, self.max_frequency)[0]
        self._keep_sample(images, poses, halves)
        for half, accumulator in enumerate(self.halves):
            rows = np.flatnonzero(halves == half)
            self.counts[half] += len(rows)
            if not len(rows):
                continue

            def prepare(block):
                return slice_data(
                    images[block],
                    shifts=shifts[block],
                    ctf=None if ctf is None else ctf[block],
                    pixel_size=pixel_size,
                    sample_weight=weights[block],
                    max_frequency=self.max_frequency,
                )

            blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
            parts = _threads(n_jobs, len(blocks))(joblib.delayed(prepare)(block) for block in blocks)
            values = np.concatenate([part[0] for part in parts])
            density = np.concatenate([part[1] for part in parts])
            del parts
            accumulator.add(values, density, rotations[rows], points, n_jobs=n_jobs)
        self.n_images += len(images)

    def _keep_sample(self, images, poses, halves):
        """Keep every stride-th image; when there are too many, every other of these."""
        rotations, shifts, ctf = poses
        for i in range(-self.n_images % self.stride, len(images), self.stride):
            record = None if ctf is None else ctf[i].copy()
            image = np.array(images[i], dtype=np.float32)
            self.sample.append((self.n_images + i, int(halves[i]), image, rotations[i], shifts[i], record))
        while len(self.sample) > _SAMPLE:
            self.stride *= 2
            self.sample = [kept for kept in self.sample if kept[0] % self.stride == 0]

    # ----------------------------------------------------------------------------------------- checkpoints
    def state(self):
        """Arrays and facts from which :meth:`restore` makes this again."""
        arrays = {}
        for half, accumulator in enumerate(self.halves):
            arrays |= {f"numerator_{half}": accumulator.numerator, f"denominator_{half}": accumulator.denominator}
        numbers = np.array([(kept[0], kept[1]) for kept in self.sample], dtype=np.int64).reshape(-1, 2)
        arrays["sample_numbers"] = numbers
        for place, name, shape in ((2, "images", (self.L, self.L)), (3, "rotations", (3, 3)), (4, "shifts", (2,))):
            arrays[f"sample_{name}"] = np.array([kept[place] for kept in self.sample]).reshape(-1, *shape)
        if self.sample and self.sample[0][5] is not None:
            arrays["sample_ctf"] = np.array([kept[5] for kept in self.sample])
        _, keys, position, *_ = self._rng.get_state()
        arrays["rng_keys"] = keys
        info = {"seed": self.seed, "n_images": self.n_images, "counts": self.counts, "stride": self.stride}
        return arrays, info | {"flip": self._flip, "rng_position": int(position)}

    def restore(self, arrays, info):
        """Take over what :meth:`state` returned."""
        for half, accumulator in enumerate(self.halves):
            accumulator.numerator = arrays[f"numerator_{half}"]
            accumulator.denominator = arrays[f"denominator_{half}"]
        ctf = arrays.get("sample_ctf")
        self.sample = [
            (int(number), int(half), *rest, None if ctf is None else ctf[i])
            for i, ((number, half), *rest) in enumerate(
                zip(
                    arrays["sample_numbers"],
                    arrays["sample_images"],
                    arrays["sample_rotations"],
                    arrays["sample_shifts"],
                )
            )
        ]
        self.seed, self.n_images, self.stride = info["seed"], info["n_images"], info["stride"]
        self.counts, self._flip = list(info["counts"]), info["flip"]
        self._rng.set_state(("MT19937", arrays["rng_keys"], info["rng_position"], 0, 0.0))


def _threads(n_jobs, n_tasks):
    return joblib.Parallel(n_jobs=max(1, min(joblib.effective_n_jobs(n_jobs), n_tasks)), require="sharedmem")


def fingerprint(params, stack, arrays):
    """What a checkpoint must share with a fit: parameters, images and what is known of each."""
    digest = hashlib.sha256(json.dumps({k: repr(v) for k, v in sorted(params.items())}).encode())
    digest.update(repr((stack.shape, stack.pixel_size)).encode())
    n = len(stack)
    sample = range(n) if stack.in_memory else np.unique(np.linspace(0, n - 1, 256).astype(int))
    for i in sample:
        digest.update(np.ascontiguousarray(stack[int(i)]).tobytes())
    files = stack.image_files
    for path in [] if files is None else files[0]:
        digest.update(f"{path} {os.path.getsize(path)}".encode())
    for array in arrays:
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
