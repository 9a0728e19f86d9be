"""Rotated wavelet coefficients and the exact search of the wavelet earth mover's distance."""
import numpy as np

cdef extern from "emd_kernels.h":
    int EMD_LANES, EMD_ROW, EMD_MAX_ANGLES
    ctypedef struct emd_plan:
        int size
        int n_levels
        int n_taps
        const float *lowpass
        const float *highpass
        const float *weights
        const int *keep
        const int *offsets
        const int *extent
    ctypedef struct emd_centres:
        int n_levels
        int n_angles
        int n_coarse
        int stride
        int n
        int first
        long row_length
        const int *offsets
        const float *rows
        const float *norms
        const float *below
        const float *above
        const float *bias
    ctypedef struct emd_images:
        long n
        const float *rows
        const float *norms
        int shift
        float *best
        int *labels
        int *angles
        int *shifts
        float *all
        long n_all
    ctypedef struct emd_kernels:
        void (*transform)(const emd_plan *, const float *, const int *, const double *, const double *, long,
                          float *, int) noexcept nogil
        void (*transform_rotations)(const emd_plan *, const float *, long, const double *, const double *, long,
                                    float *, int) noexcept nogil
        void (*norms)(int, const int *, const float *, long, float *, int) noexcept nogil
        void (*paired)(int, const int *, const float *, const float *, long, float *, int) noexcept nogil
        void (*all_pairs)(int, const int *, long, const float *, long, const float *, long, float *, int) noexcept nogil
        void (*tables)(const emd_centres *, float *, float *, float *, int) noexcept nogil
        double (*search)(const emd_images *, const emd_centres *, int) noexcept nogil
    const emd_kernels *emd_kernels_for(int isa)
    int emd_max_threads()

LANES = EMD_LANES
ROW = EMD_ROW
MAX_ANGLES = EMD_MAX_ANGLES
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

cdef const emd_kernels *kernels = NULL
cdef str current = ""


def available_instruction_sets():
    """Names of the code paths that this processor can run, slowest first."""
    return tuple(name for i, name in enumerate(INSTRUCTION_SETS) if emd_kernels_for(i) != NULL)


def use_instruction_set(str name):
    """Choose the code path; returns the one used before. Results do not depend on it."""
    global kernels, current
    cdef const emd_kernels *chosen
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"instruction set must be one of {INSTRUCTION_SETS}, got {name!r}")
    chosen = emd_kernels_for(INSTRUCTION_SETS.index(name))
    if chosen == NULL:
        raise ValueError(f"this processor has no {name}; it has {available_instruction_sets()}")
    before, current = current, name
    kernels = chosen
    return before


def max_threads():
    """Threads that OpenMP would use: the cores, bounded by affinity and OMP_NUM_THREADS."""
    return emd_max_threads()


use_instruction_set(list(available_instruction_sets()).pop())


cdef class Plan:
    """The transform's sizes and tables, with the arrays that it points into kept alive."""
    cdef emd_plan plan
    cdef const float[::1] lowpass, highpass, weights
    cdef const int[::1] keep, offsets, extent
    cdef readonly int size, n_levels
    cdef readonly long row_length

    def __init__(self, int size, const float[::1] lowpass, const float[::1] highpass, const float[::1] weights,
                 const int[::1] keep, const int[::1] offsets, const int[::1] extent):
        self.lowpass, self.highpass, self.weights = lowpass, highpass, weights
        self.keep, self.offsets, self.extent = keep, offsets, extent
        self.size, self.n_levels = size, weights.shape[0]
        self.row_length = offsets[self.n_levels]
        if keep.shape[0] != self.row_length or extent.shape[0] != 2 * size or lowpass.shape[0] != highpass.shape[0]:
            raise ValueError("plan tables of inconsistent lengths")
        self.plan.size = size
        self.plan.n_levels = self.n_levels
        self.plan.n_taps = lowpass.shape[0]
        self.plan.lowpass = &lowpass[0]
        self.plan.highpass = &highpass[0]
        self.plan.weights = &weights[0]
        self.plan.keep = &keep[0]
        self.plan.offsets = &offsets[0]
        self.plan.extent = &extent[0]

    def transform(self, const float[:, :, ::1] images, const int[::1] source, float[:, ::1] rows, cosines=None,
                  sines=None, int n_threads=1):
        """Coefficients of images[source] (turned by the given angles, if any) into rows."""
        cdef const double[::1] c, s
        cdef const double *pc = NULL
        cdef const double *ps = NULL
        cdef long n = source.shape[0], i
        cdef int width = self.size
        if cosines is not None:
            c, s = cosines, sines
            width += 4
            if c.shape[0] != n or s.shape[0] != n:
                raise ValueError("one angle for each row is wanted")
            if n:
                pc, ps = &c[0], &s[0]
        if images.shape[1] != width or images.shape[2] != width \
                or rows.shape[0] < n or rows.shape[1] != self.row_length:
            raise ValueError("images or rows of the wrong shape")
        for i in range(n):
            if source[i] < 0 or source[i] >= images.shape[0]:
                raise IndexError(f"source[{i}] = {source[i]} is not one of {images.shape[0]} images")
        if n == 0:
            return
        with nogil:
            kernels.transform(&self.plan, &images[0, 0, 0], &source[0], pc, ps, n, &rows[0, 0], n_threads)

    def transform_rotations(self, const float[:, :, :, ::1] splines, const double[::1] cosines,
                            const double[::1] sines, float[:, :, ::1] rows, int n_threads=1):
        """Coefficients of all turned copies of splines (blocks, size + 4, size + 4, LANES) into rows."""
        cdef long n_blocks = splines.shape[0], na = cosines.shape[0]
        if splines.shape[1] != self.size + 4 or splines.shape[2] != self.size + 4 or splines.shape[3] != EMD_LANES:
            raise ValueError("splines of the wrong shape")
        if rows.shape[0] != n_blocks * EMD_LANES or rows.shape[1] != na or rows.shape[2] != self.row_length:
            raise ValueError("rows of the wrong shape")
        if <size_t>&splines[0, 0, 0, 0] % 64:
            raise ValueError("splines must start at a multiple of 64 bytes")
        with nogil:
            kernels.transform_rotations(&self.plan, &splines[0, 0, 0, 0], n_blocks, &cosines[0], &sines[0], na,
                                        &rows[0, 0, 0], n_threads)

    def norms(self, const float[:, ::1] rows, float[:, ::1] out, int n_threads=1):
        """l1 norms by level, (n, n_levels), coarsest first."""
        if rows.shape[1] != self.row_length or out.shape[0] < rows.shape[0] or out.shape[1] != self.n_levels:
            raise ValueError("rows or out of the wrong shape")
        if rows.shape[0]:
            with nogil:
                kernels.norms(self.n_levels, self.plan.offsets, &rows[0, 0], rows.shape[0], &out[0, 0], n_threads)

    def paired(self, const float[:, ::1] x, const float[:, ::1] y, float[::1] out, int n_threads=1):
        """Distance of x[i] to y[i]."""
        if x.shape[0] != y.shape[0] or x.shape[1] != self.row_length or y.shape[1] != self.row_length \
                or out.shape[0] != x.shape[0]:
            raise ValueError("rows or out of the wrong shape")
        if x.shape[0]:
            with nogil:
                kernels.paired(self.n_levels, self.plan.offsets, &x[0, 0], &y[0, 0], x.shape[0], &out[0], n_threads)

    def all_pairs(self, const float[:, ::1] x, const float[:, ::1] y, float[:, ::1] out, int n_levels=-1,
                  int n_threads=1):
        """Distance of every x to every y, over the n_levels coarsest levels (all by default)."""
        cdef long length = self.row_length
        if n_levels < 0:
            n_levels = self.n_levels
        if x.shape[1] != length or y.shape[1] != length or out.shape[0] != x.shape[0] or out.shape[1] != y.shape[0]:
            raise ValueError("rows or out of the wrong shape")
        if not 1 <= n_levels <= self.n_levels:
            raise ValueError(f"n_levels must lie between 1 and {self.n_levels}, got {n_levels}")
        if x.shape[0] and y.shape[0]:
            with nogil:
                kernels.all_pairs(n_levels, self.plan.offsets, length, &x[0, 0], x.shape[0], &y[0, 0], y.shape[0],
                                  &out[0, 0], n_threads)

    def search(self, const float[:, ::1] rows, const float[:, ::1] norms, int shift, float[::1] best,
               int[::1] labels, int[::1] angles, int[::1] shifts, Centres centres, float[:, ::1] everything=None,
               int n_threads=1):
        """Exact search over the turned copies of some centres; best, labels, angles, shifts and, where given, the least
        distance to every class are updated in place. Returns how many coefficients were read past the coarse levels."""
        cdef emd_images im
        cdef long n = rows.shape[0]
        cdef double read
        if not (norms.shape[0] == best.shape[0] == labels.shape[0] == angles.shape[0] == shifts.shape[0] == n) \
                or rows.shape[1] != self.row_length or norms.shape[1] != self.n_levels:
            raise ValueError("image arrays of inconsistent shapes")
        if centres.plan is not self:
            raise ValueError("centres of another transform")
        if n == 0:
            return 0.0
        im.n, im.rows, im.norms, im.shift = n, &rows[0, 0], &norms[0, 0], shift
        im.best, im.labels, im.angles, im.shifts = &best[0], &labels[0], &angles[0], &shifts[0]
        im.all, im.n_all = NULL, 0
        if everything is not None:
            if everything.shape[0] != n or everything.shape[1] < centres.centres.first + centres.centres.n:
                raise ValueError("everything of the wrong shape")
            im.all, im.n_all = &everything[0, 0], everything.shape[1]
        with nogil:
            read = kernels.search(&im, &centres.centres, n_threads)
        return read


cdef class Centres:
    """Turned copies (n, n_angles, row_length) of the classes first, first + 1, ..., with the tables of their bounds."""
    cdef emd_centres centres
    cdef readonly Plan plan
    cdef const float[:, :, ::1] rows
    cdef const float[::1] bias
    cdef float[:, :, ::1] norms
    cdef float[:, ::1] below, above

    def __init__(self, Plan plan, const float[:, :, ::1] rows, const float[::1] bias, int first, int stride,
                 int n_coarse, int n_threads=1):
        cdef long n = rows.shape[0], na = rows.shape[1]
        if rows.shape[2] != plan.row_length or bias.shape[0] != n or n == 0:
            raise ValueError("rows or bias of the wrong shape")
        if stride < 1 or na % stride or not 1 <= n_coarse <= plan.n_levels:
            raise ValueError("stride must divide the number of angles, n_coarse lie within the levels")
        self.plan, self.rows, self.bias = plan, rows, bias
        self.norms = np.empty((n, plan.n_levels, na), np.float32)
        self.below = np.empty((n, na), np.float32)
        self.above = np.empty((n, na), np.float32)
        self.centres.n_levels, self.centres.n_angles = plan.n_levels, <int>na
        self.centres.n_coarse, self.centres.stride = n_coarse, stride
        self.centres.n, self.centres.first = <int>n, first
        self.centres.row_length, self.centres.offsets = plan.row_length, plan.plan.offsets
        self.centres.rows, self.centres.bias = &rows[0, 0, 0], &bias[0]
        self.centres.norms, self.centres.below = &self.norms[0, 0, 0], &self.below[0, 0]
        self.centres.above = &self.above[0, 0]
        with nogil:
            kernels.tables(&self.centres, &self.norms[0, 0, 0], &self.below[0, 0], &self.above[0, 0], n_threads)
