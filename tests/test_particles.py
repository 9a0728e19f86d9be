"""ParticleStack: slicing, pickling, laziness, mapped functions, joining, streaming."""

import gzip
import os
import pickle
import tracemalloc
from functools import partial

import mrcfile
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.utils import _safe_indexing

from skcryo.ctf import make_ctf
from skcryo.io import load_particles, save_images
from skcryo.particles import ParticleStack, as_stack, concatenate_stacks, describe_image, iter_chunks
from skcryo.rotations import random_rotations

N, L = 23, 6


def add(images, offset=0.0, weight=None):
    weight = 1.0 if weight is None else weight[:, None, None]
    return images + weight * offset


def crop(images):
    return images[:, 1:-1, 1:-1]


def refuse(images):
    raise AssertionError("pixels were read")


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((N, L, L)).astype(np.float32)


@pytest.fixture
def facts():
    rng = np.random.default_rng(1)
    return {
        "pixel_size": 1.7,
        "ctf": make_ctf(N, defocus_u=1e4 + 100.0 * np.arange(N)),
        "rotations": random_rotations(N, random_state=0),
        "shifts": rng.uniform(-2, 2, (N, 2)),
    }


@pytest.fixture(params=["array", "memmap", "files", "files of int16", "mapped", "joined"])
def pair(request, images, facts, tmp_path):
    """A stack of each kind, and the pixels that it must have."""
    if request.param == "array":
        return ParticleStack(images, **facts), images
    if request.param == "memmap":
        np.save(tmp_path / "x.npy", images)
        return ParticleStack(np.load(tmp_path / "x.npy", mmap_mode="r"), **facts), images
    if request.param == "mapped":
        stack = ParticleStack(images, **facts)
        return stack.map(add, per_image={"weight": np.arange(N)}).map(partial(add, offset=2.0)), images + 2
    if request.param == "joined":
        parts = [
            as_stack(images[:5]),
            as_stack(images[5:10] - 1).map(partial(add, offset=1.0)),
            as_stack(images[10:]),
        ]
        return concatenate_stacks(parts).replace(**facts), np.concatenate(
            [images[:5], (images[5:10] - 1) + np.float32(1), images[10:]]
        )
    if request.param == "files of int16":
        images = np.round(100 * images).astype(np.int16)
    bounds = [0, 9, 10, N]
    for start, stop in zip(bounds, bounds[1:]):
        with mrcfile.new(tmp_path / f"{start}.mrcs") as mrc:
            mrc.set_data(images[start:stop])
            mrc.set_image_stack()
    stack = load_particles([tmp_path / f"{start}.mrcs" for start in bounds[:-1]])
    return stack.replace(**facts), images.astype(np.float32)


KEYS = [
    slice(None),
    slice(3, 17, 4),
    slice(None, None, -1),
    slice(20, 2, -3),
    slice(5, 5),
    [4, 2, 2, -1],
    np.array([22, 0, 11], dtype=np.uint8),
    np.arange(N) % 3 == 1,
    np.zeros(N, dtype=bool),
    [],
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_slices_as_numpy_does(pair, facts, key):
    stack, pixels = pair
    key_of_array = np.asarray(key, dtype=int) if isinstance(key, list) else key
    for taken in (stack[key], stack[key, ...], stack[(key,)], stack[key, :, :]):
        assert isinstance(taken, ParticleStack)
        assert_array_equal(np.asarray(taken), pixels[key_of_array])
        assert taken.shape == pixels[key_of_array].shape == (len(taken), L, L)
        assert taken.pixel_size == 1.7
        for name in ("ctf", "rotations", "shifts"):
            assert_array_equal(getattr(taken, name), facts[name][key_of_array])


@pytest.mark.parametrize("i", [0, 7, N - 1, -1, np.int64(9)])
def test_an_integer_gives_one_image(pair, i):
    stack, pixels = pair
    assert_array_equal(stack[i], pixels[i])
    assert_array_equal(stack[i, ...], pixels[i])
    assert stack[i].dtype == np.float32


def test_slices_of_slices(pair):
    stack, pixels = pair
    rows = np.array([8, 3, 19, 9, 10, 0])
    assert_array_equal(np.asarray(stack[::-1][rows][[5, 0, 1]][1:]), pixels[::-1][rows][[5, 0, 1]][1:])


def test_pickles_what_it_is(pair, facts):
    stack, pixels = pair
    again = pickle.loads(pickle.dumps(stack[[9, 8, 21]]))
    assert_array_equal(np.asarray(again), pixels[[9, 8, 21]])
    assert_array_equal(again.ctf, facts["ctf"][[9, 8, 21]])
    assert again.pixel_size == 1.7
    assert_array_equal(np.asarray(pickle.loads(pickle.dumps(again))), pixels[[9, 8, 21]])


@pytest.mark.parametrize("chunk_size", [1, 4, N, 100, None])
def test_chunks_cover_the_stack_in_order(pair, chunk_size):
    stack, pixels = pair
    seen = 0
    for where, chunk in iter_chunks(stack, chunk_size, max_bytes=4 * L * L * 5):
        assert where.start == seen and chunk.dtype == np.float32
        assert_array_equal(chunk, pixels[where])
        seen = where.stop
    assert seen == N
    assert_array_equal(np.stack(list(stack)), pixels)


def test_chunk_size_follows_memory():
    images = np.zeros((10, 8, 8), dtype=np.float32)
    assert [len(c) for _, c in iter_chunks(images, max_bytes=3 * 256)] == [3, 3, 3, 1]
    assert [len(c) for _, c in iter_chunks(images, max_bytes=1)] == [1] * 10


@pytest.mark.parametrize("dtype, expected", [(None, np.float64), (np.float32, np.float32)])
def test_float64_stays_until_chunks_are_float32(dtype, expected):
    stack = ParticleStack(np.ones((3, 4, 4)))
    assert stack.dtype == np.float64 and np.asarray(stack).dtype == np.float64
    assert next(iter_chunks(stack, dtype=dtype))[1].dtype == expected


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.float16, np.int64, bool, ">f4"])
def test_other_real_types_become_float32(dtype):
    stack = ParticleStack(np.ones((3, 4, 4), dtype=dtype))
    assert (
        stack.dtype == np.float32 and stack[0].dtype == np.float32 and np.asarray(stack).dtype == np.float32
    )


def test_an_array_is_neither_copied_nor_changed(images):
    stack = ParticleStack(images)
    assert np.shares_memory(np.asarray(stack), images) and np.shares_memory(np.asarray(stack[3:7]), images)
    assert not np.shares_memory(np.array(stack), images)
    assert as_stack(stack) is stack
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(stack.map(lambda x: np.multiply(x, 2, out=x)))


def test_array_protocol_refuses_what_needs_a_copy(images):
    lazy = ParticleStack(images).map(np.negative)
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(lazy, copy=False)
    assert np.asarray(lazy, dtype=np.float64).dtype == np.float64


# Laziness -------------------------------------------------------------------------------------------------


def test_nothing_is_computed_before_pixels_are_asked_for(images, facts):
    stack = ParticleStack(images, **facts).map(refuse, image_shape=(3, 3))
    taken = pickle.loads(pickle.dumps(stack[::2][[1, 3]]))
    assert taken.shape == (2, 3, 3)
    repr(concatenate_stacks([taken, taken]).replace(ctf=None))
    with pytest.raises(AssertionError, match="pixels were read"):
        taken[0]


@pytest.mark.parametrize("n", [100, 100_000])
def test_a_pickle_of_files_holds_no_pixels(tmp_path, n):
    # Sparse: 25.6 GB that take no room on the disk. Reading it, or pickling pixels, could not go unnoticed.
    side = 256
    save_images(tmp_path / "x.mrcs", np.zeros((1, side, side), dtype=np.float32), 1.0)
    with open(tmp_path / "x.mrcs", "r+b") as file:
        file.truncate(1024 + 4 * side * side * n)
        file.seek(8)
        file.write(np.int32(n).tobytes())
    stack = load_particles(tmp_path / "x.mrcs")
    assert stack.shape == (n, side, side)
    half = stack[np.arange(n) % 2 == 0].map(crop, image_shape=(side - 2, side - 2))
    assert len(pickle.dumps(half)) < 5000 + 12 * n
    assert half[n // 2 - 1].shape == (side - 2, side - 2)
    assert "in 1 file" in repr(stack) and "lazy" in repr(half)


def test_streaming_needs_the_memory_of_one_chunk(tmp_path):
    side, n = 64, 4000  # 65 MB
    save_images(tmp_path / "x.mrcs", (np.zeros((500, side, side), np.float32) for _ in range(n // 500)), 1.0)
    stack = load_particles(tmp_path / "x.mrcs")[np.random.default_rng(0).permutation(n)]
    mapped = stack.map(crop, image_shape=(side - 2, side - 2))
    tracemalloc.start()
    try:
        for _ in iter_chunks(mapped, max_bytes=2**20):
            pass
        save_images(tmp_path / "y.mrcs", iter_chunks_of(mapped, 2**20), 1.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * 2**20  # whole stacks in memory would be over 60


def iter_chunks_of(stack, max_bytes):
    return (images for _, images in iter_chunks(stack, max_bytes=max_bytes))


def test_a_pickled_memmap_is_its_file_name(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((200, 32, 32)))
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    stack = ParticleStack(stored[20:].transpose(0, 2, 1))[[7, 0]]
    assert len(pickle.dumps(stack)) < 1000
    again = pickle.loads(pickle.dumps(stack))
    assert_array_equal(np.asarray(again), stored.transpose(0, 2, 1)[[27, 20]])
    private = ParticleStack(np.load(tmp_path / "x.npy", mmap_mode="c"))
    private._images.array[0] = 5.0  # differs from the file, so it must not be pickled as the file
    assert_array_equal(pickle.loads(pickle.dumps(private))[0], np.full((32, 32), 5.0))


def test_any_number_of_files_without_keeping_them_open(tmp_path):
    resource = pytest.importorskip("resource")
    pixels = np.random.default_rng(0).standard_normal((120, 3, 4, 4)).astype(np.float32)
    for i, part in enumerate(pixels):
        save_images(tmp_path / f"{i:03d}.mrcs", part, 1.0)
    stack = load_particles(sorted(tmp_path.glob("*.mrcs")))
    order = np.random.default_rng(1).permutation(360)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 10, hard))
    try:
        assert_array_equal(np.asarray(stack[order]), pixels.reshape(360, 4, 4)[order])
        assert_array_equal(np.asarray(stack), pixels.reshape(360, 4, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert stack[order].image_files is not None and len(pickle.dumps(stack[5:6])) < 600


def test_compressed_files_are_kept_in_memory_with_a_warning(tmp_path, images):
    save_images(tmp_path / "x.mrcs", images, 1.0)
    (tmp_path / "x.mrcs.gz").write_bytes(gzip.compress((tmp_path / "x.mrcs").read_bytes()))
    with pytest.warns(UserWarning, match=r"x\.mrcs\.gz: compressed files cannot be mapped"):
        stack = load_particles(tmp_path / "x.mrcs.gz")
    assert_array_equal(np.asarray(pickle.loads(pickle.dumps(stack[3:9]))), images[3:9])


def test_a_file_that_has_gone_or_shrunk_is_named(tmp_path, images):
    save_images(tmp_path / "x.mrcs", images, 1.0)
    stack = load_particles(tmp_path / "x.mrcs")
    with open(tmp_path / "x.mrcs", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(OSError, match=r"x\.mrcs: cannot read the images, has the file changed"):
        stack[0]
    (tmp_path / "x.mrcs").unlink()
    with pytest.raises(FileNotFoundError, match=r"x\.mrcs: the file of images has gone"):
        stack[2:4].load()


# Mapped functions and replaced parts ----------------------------------------------------------------------


def test_map_declares_shape_dtype_and_changed_facts(images, facts):
    stack = ParticleStack(images, **facts)
    mapped = stack.map(crop, image_shape=(L - 2, L - 2), dtype=np.float64, pixel_size=3.4, ctf=None)
    assert mapped.shape == (N, L - 2, L - 2) and mapped.dtype == np.float64 and mapped[0].dtype == np.float64
    assert mapped.pixel_size == 3.4 and mapped.ctf is None and mapped.shifts is stack.shifts
    assert_array_equal(np.asarray(mapped[::-1]), crop(images)[::-1])
    loaded = mapped.load()
    assert loaded.in_memory and not mapped.in_memory and loaded.pixel_size == 3.4
    assert_array_equal(np.asarray(loaded), crop(images))


def test_map_gives_each_image_its_own_values(images):
    weight = np.arange(N, dtype=float)
    mapped = ParticleStack(images).map(partial(add, offset=1.0), per_image={"weight": weight})
    rows = [20, 3, 3, 11]
    expected = (images + weight[:, None, None]).astype(np.float32)[rows]
    assert_array_equal(np.asarray(mapped[rows]), expected)
    assert_array_equal(mapped[rows][2], expected[2])


def test_map_works_in_bounded_blocks(images, monkeypatch):
    monkeypatch.setattr("skcryo._images._BLOCK_BYTES", 5 * L * L * 4)
    sizes = []

    def record(chunk):
        sizes.append(len(chunk))
        return -chunk

    assert_array_equal(np.asarray(ParticleStack(images).map(record)), -images)
    assert max(sizes) == 5 and sum(sizes) == N


def test_map_refuses_what_was_not_declared(images):
    stack = ParticleStack(images)
    with pytest.raises(
        ValueError, match=r"returned shape \(23, 4, 4\) for 23 images, declared was \(23, 6, 6\)"
    ):
        np.asarray(stack.map(crop))
    with pytest.raises(ValueError, match="weight has 3 entries but X has 23 images"):
        stack.map(add, per_image={"weight": np.ones(3)})
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got int64"):
        stack.map(add, dtype=int)
    with pytest.raises(ValueError, match="image_shape"):
        stack.map(add, image_shape=(0, 4))
    with pytest.raises(TypeError, match="no pixels"):
        stack.map(add, pixels=3)


def test_replace_shares_the_rest(images, facts):
    stack = ParticleStack(images, **facts)
    other = stack.replace(shifts=None, data=2 * images)
    assert other.shifts is None and other.rotations is stack.rotations and other.ctf is stack.ctf
    assert_array_equal(np.asarray(other), 2 * images)
    with pytest.raises(AttributeError):
        stack.pixel_size = 2.0
    with pytest.raises(ValueError, match="CTF has 23 records but X has 4 images"):
        stack.replace(data=images[:4])


def test_one_ctf_record_stands_for_all(images):
    stack = ParticleStack(images, ctf=make_ctf(1, defocus_u=12345.0)[0])
    assert stack.ctf.shape == (N,) and (stack.ctf["defocus_u"] == 12345.0).all()


# Joining --------------------------------------------------------------------------------------------------


def test_concatenated_files_stay_one_flat_source(tmp_path, images):
    save_images(tmp_path / "x.mrcs", images, 1.0)
    stack = load_particles(tmp_path / "x.mrcs")
    joined = concatenate_stacks([stack[5:], stack[:5][::-1], stack[3:4]])
    assert_array_equal(np.asarray(joined), np.concatenate([images[5:], images[:5][::-1], images[3:4]]))
    assert joined.image_files[0] == [str(tmp_path / "x.mrcs")]
    assert joined.locate(N) == f"image 4 of {tmp_path / 'x.mrcs'}"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pixel_size": 2.0}, "differ in pixel size: stack 1 has 2 A, stack 0 has 1.7 A"),
        ({"pixel_size": None}, "stack 1 has None A"),
        ({"ctf": None}, "stack 0 has ctf but stack 1 has none"),
        ({"shifts": None}, "stack 0 has shifts but stack 1 has none"),
        (
            {"data": np.zeros((N, L, L + 1))},
            "differ in image size: stack 1 has 6 x 7 pixels, stack 0 has 6 x 6",
        ),
    ],
)
def test_stacks_that_do_not_fit_are_not_joined(images, facts, change, message):
    stack = ParticleStack(images, **facts)
    with pytest.raises(ValueError, match=message):
        concatenate_stacks([stack, stack.replace(**change)])


def test_concatenate_nothing():
    with pytest.raises(ValueError, match="no stacks"):
        concatenate_stacks([])


# What does not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"ctf": make_ctf(90)}, "CTF has 90 records but X has 23 images"),
        ({"rotations": np.zeros((5, 3, 3))}, "rotations has 5 matrices but X has 23 images"),
        ({"rotations": np.zeros((N, 3))}, r"rotations must have shape \(23, 3, 3\), got \(23, 3\)"),
        (
            {"rotations": [np.eye(3)] * 22 + [np.diag([1, 1, -1])]},
            r"rotations\[22\] is not a rotation matrix",
        ),
        ({"rotations": [np.eye(3)] * 3 + [np.full((3, 3), np.nan)] * 20}, r"rotations\[3\]"),
        ({"shifts": np.zeros((N, 3))}, r"shifts must have shape \(23, 2\)"),
        ({"shifts": np.zeros((N - 1, 2))}, "shifts has 22 rows but X has 23 images"),
        (
            {"shifts": np.where(np.arange(2 * N).reshape(N, 2) == 9, np.inf, 0)},
            r"shifts\[4\] is \[0.0, inf\]",
        ),
        ({"metadata": [1, 2]}, "metadata has 2 rows but X has 23 images"),
        ({"pixel_size": 0}, "pixel_size must be a positive number"),
        ({"pixel_size": "1.3"}, "pixel_size must be a positive number"),
        ({"pixel_size": np.nan}, "pixel_size must be a positive number"),
    ],
)
def test_facts_that_do_not_fit_the_images(images, fields, message):
    with pytest.raises(ValueError, match=message):
        ParticleStack(images, **fields)


@pytest.mark.parametrize(
    "data, message",
    [
        (np.zeros((4, 4)), r"\(n_images, height, width\), got shape \(4, 4\)"),
        (np.zeros((4, 4, 4), dtype=complex), "real numbers, got dtype complex128"),
        (np.zeros((4, 4, 4), dtype=object), "real numbers, got dtype object"),
        ([np.zeros((4, 4)), np.zeros((4, 5))], r"image 1 has shape \(4, 5\), image 0 has shape \(4, 4\)"),
    ],
)
def test_data_that_are_no_stack(data, message):
    with pytest.raises(ValueError, match=message):
        ParticleStack(data)


def test_a_path_is_not_images(tmp_path):
    with pytest.raises(TypeError, match=r"x\.mrcs'?: skcryo\.io\.load_particles reads it"):
        ParticleStack(tmp_path / "x.mrcs")


@pytest.mark.parametrize(
    "key, message",
    [
        (N, "index 23 is out of range for a stack of 23 images"),
        (-N - 1, "out of range"),
        ([0, 99], "index 99 is out of range"),
        (np.ones(5, dtype=bool), "mask has 5 entries but the stack has 23 images"),
        ([0.5], "1-D array of integers"),
        (np.zeros((2, 2), dtype=int), "1-D array of integers"),
        ((slice(None), 0), "along its images only"),
        ((..., 0), "along its images only"),
        (True, "1-D array of integers"),
        ("a", "1-D array of integers"),
    ],
)
def test_keys_that_are_no_index(images, key, message):
    with pytest.raises(IndexError, match=message):
        ParticleStack(images)[key]


@pytest.mark.parametrize("value, kind", [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_pixels_that_are_not_finite_are_named(tmp_path, images, value, kind):
    images[17, 2, 3] = value
    with pytest.raises(ValueError, match=f"Input X contains {kind}: image 17$"):
        list(iter_chunks(images, 5, check_finite=True))
    save_images(tmp_path / "x.mrcs", np.zeros_like(images), 1.0)
    np.memmap(tmp_path / "x.mrcs", np.float32, "r+", offset=1024)[:] = images.ravel()
    stack = load_particles(tmp_path / "x.mrcs")[::-1]
    with pytest.raises(ValueError, match=rf"contains {kind}: image 5 \(image 18 of .*x\.mrcs\)"):
        list(iter_chunks(stack, 5, check_finite=True))
    assert describe_image(stack.map(np.negative), 5) == f"image 5 (image 18 of {tmp_path / 'x.mrcs'})"


def test_large_finite_pixels_pass():
    assert len(list(iter_chunks(np.full((2, 4, 4), 3e38, dtype=np.float32), check_finite=True))) == 1


def test_chunk_size_must_be_positive(images):
    with pytest.raises(ValueError, match="chunk_size must be a positive integer"):
        list(iter_chunks(images, 0))


# scikit-learn's tools -------------------------------------------------------------------------------------


class MeanImage(BaseEstimator):
    """Scores by defocus and pixels, so that a fold with the wrong metadata or pixels shows."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def fit(self, X, y=None):
        self.mean_ = np.asarray(X).mean(axis=0)
        return self

    def score(self, X, y=None):
        return self.scale * float(np.mean(np.asarray(X).mean(axis=(1, 2)) * X.ctf["defocus_u"]))


def test_folds_carry_their_facts(pair):
    stack, pixels = pair
    for train, test in KFold(4, shuffle=True, random_state=0).split(stack):
        assert_array_equal(np.asarray(_safe_indexing(stack, test)), pixels[test])
        assert_array_equal(_safe_indexing(stack, train).ctf["defocus_u"], stack.ctf["defocus_u"][train])


def test_grid_search_in_other_processes(tmp_path, images, facts):
    save_images(tmp_path / "x.mrcs", images, 1.7)
    stack = load_particles(tmp_path / "x.mrcs").replace(**facts)
    scores = [
        GridSearchCV(MeanImage(), {"scale": [1.0, 2.0]}, cv=3, n_jobs=n_jobs)
        .fit(X)
        .cv_results_["mean_test_score"]
        for n_jobs, X in ((None, ParticleStack(images, **facts)), (2, stack))
    ]
    assert_array_equal(*scores)
