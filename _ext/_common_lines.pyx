"""Common lines of pairs of images, and scores of pairs at given lines."""
from cython.parallel import parallel, prange
from libc.stdlib cimport free, malloc

cdef extern from "common_lines_kernels.h":
    int CL_LANES, CL_LINES, CL_MOST_WINDOW
    ctypedef struct cl_plan:
        int n_lines
        int n_padded
        int n_fine
        int n_coordinates
        int slopes
        int peak
        int window
        int n_candidates
        float narrow
    ctypedef struct cl_lines:
        const float *fine
        const float *fine_penalty
        const float *columns
        const float *penalty
        const float *weights
    ctypedef struct cl_found:
        float *row_angle
        float *column_angle
        float *log_best
        float *log_all
    ctypedef void (*cl_detect)(const cl_plan *, const cl_lines *, long, const cl_lines *, long, long, const cl_found *,
                               float *) noexcept nogil

cdef extern from *:
    """
    #define CL_KERNEL(isa) \
        void cl_detect_##isa(const cl_plan *, const cl_lines *, long, const cl_lines *, long, long, const cl_found *, \
                             float *)
    CL_KERNEL(baseline);
    #ifdef COMMON_LINES_X86
    CL_KERNEL(avx2);
    CL_KERNEL(avx512);
    #endif

    /* The same bits from all but the baseline, in which nothing is fused; NULL where the processor has not got it. */
    static cl_detect cl_kernel(int isa)
    {
        if (isa == 0) return cl_detect_baseline;
    #ifdef COMMON_LINES_X86
        __builtin_cpu_init();
        if (!__builtin_cpu_supports("fma")) return NULL;
        if (isa == 1 && __builtin_cpu_supports("avx2")) return cl_detect_avx2;
        if (isa == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
            return cl_detect_avx512;
    #endif
        return NULL;
    }
    """
    cl_detect cl_kernel(int isa)

LANES = CL_LANES
LINES = CL_LINES
MOST_WINDOW = CL_MOST_WINDOW
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

cdef int current = 0
while current < 2 and cl_kernel(current + 1) != NULL:
    current += 1


def available_instruction_sets():
    """Names of the code paths that this processor can run, slowest first."""
    return tuple(name for isa, name in enumerate(INSTRUCTION_SETS) if cl_kernel(isa) != NULL)


def use_instruction_set(str name):
    """Choose the code path; returns the one used before. Results do not depend on it."""
    global current
    if name not in available_instruction_sets():
        raise ValueError(f"instruction set must be one of {available_instruction_sets()}, got {name!r}")
    before, current = INSTRUCTION_SETS[current], INSTRUCTION_SETS.index(name)
    return before


cdef class Lines:
    """Lines of images as the search reads them; arrays as in common_lines_kernels.h, kept alive."""
    cdef cl_lines lines
    cdef const float[:, :, ::1] fine, columns
    cdef const float[:, ::1] fine_penalty, penalty, weights

    def __init__(self, const float[:, :, ::1] fine, const float[:, ::1] fine_penalty, const float[:, :, ::1] columns,
                 const float[:, ::1] penalty, const float[:, ::1] weights):
        cdef Py_ssize_t n = fine.shape[0], n_padded = columns.shape[2]
        if (fine_penalty.shape[0] != n or columns.shape[0] != n or penalty.shape[0] != n or weights.shape[0] != n
                or fine_penalty.shape[1] != fine.shape[1] or columns.shape[1] != 2 * fine.shape[2]
                or penalty.shape[1] != n_padded or weights.shape[1] != n_padded or n_padded % CL_LANES
                or fine.shape[2] % 8 or n == 0):
            raise ValueError("arrays of inconsistent shapes")
        self.fine, self.fine_penalty, self.columns, self.penalty, self.weights = (
            fine, fine_penalty, columns, penalty, weights)
        self.lines.fine = &fine[0, 0, 0]
        self.lines.fine_penalty = &fine_penalty[0, 0]
        self.lines.columns = &columns[0, 0, 0]
        self.lines.penalty = &penalty[0, 0]
        self.lines.weights = &weights[0, 0]

    def __len__(self):
        return self.fine.shape[0]


def detect(Lines rows, Lines columns, int n_lines, float[:, :, ::1] result, *, bint same, bint slopes, bint peak,
           int window, int n_candidates, float narrow, int n_threads=1):
    """Best line of each pair of an image of `rows` and one of `columns`; with `same`, of those above the diagonal.

    result: (4, n_rows, n_columns). Angles in lines, in either image; logarithms of likelihood ratios, summed over the
    window around the best line and over all lines (with `peak` both are the largest score).
    """
    cdef Py_ssize_t n = rows.fine.shape[0], n_columns = columns.fine.shape[0], i, first
    cdef cl_plan plan
    cdef cl_found *found
    cdef float *work
    cdef cl_detect kernel = cl_kernel(current)
    plan.n_lines, plan.n_padded = n_lines, columns.columns.shape[2]
    plan.n_fine, plan.n_coordinates = rows.fine.shape[1] // n_lines, rows.fine.shape[2] // 2
    plan.slopes, plan.peak, plan.window, plan.n_candidates = slopes, peak, window, n_candidates
    plan.narrow = narrow
    if (n_lines % CL_LINES or plan.n_padded < n_lines or rows.fine.shape[1] != n_lines * plan.n_fine
            or columns.fine.shape[1] != rows.fine.shape[1] or columns.fine.shape[2] != rows.fine.shape[2]
            or rows.columns.shape[2] != plan.n_padded or not 0 <= window <= CL_MOST_WINDOW or 2 * window >= n_lines):
        raise ValueError("lines of inconsistent shapes")
    if result.shape[0] != 4 or result.shape[1] != n or result.shape[2] != n_columns or (same and n != n_columns):
        raise ValueError("a result of the wrong shape")
    with nogil, parallel(num_threads=n_threads):
        work = <float *> malloc(
            n_lines * (2 * plan.n_padded + plan.n_padded // CL_LANES + 4 * plan.n_coordinates) * sizeof(float))
        found = <cl_found *> malloc(sizeof(cl_found))
        for i in prange(n, schedule="dynamic"):
            first = i + 1 if same else 0
            found.row_angle = &result[0, i, 0] + first
            found.column_angle = &result[1, i, 0] + first
            found.log_best = &result[2, i, 0] + first
            found.log_all = &result[3, i, 0] + first
            kernel(&plan, &rows.lines, i, &columns.lines, first, n_columns, found, work)
        free(found)
        free(work)


def products_at(const float[:, :, ::1] first, const float[:, :, ::1] second, const int[:, ::1] row_line,
                const int[:, ::1] column_line, float[:, ::1] products, int n_threads=1):
    """Even and odd products of one line of each image of `first` with one of each of `second`.

    first, second: (n, n_lines, even and odd coordinates). row_line, column_line: which, on the full circle: from
    n_lines on lines are turned.
    """
    cdef Py_ssize_t n = first.shape[0], n_columns = second.shape[0], n_lines = first.shape[1], i, j, k, a, b
    cdef Py_ssize_t m = first.shape[2] // 2
    cdef float even, odd
    cdef const float *x
    cdef const float *y
    if (row_line.shape[0] != n or row_line.shape[1] != n_columns or column_line.shape[0] != n
            or column_line.shape[1] != n_columns or products.shape[0] != n or products.shape[1] != n_columns
            or second.shape[1] != n_lines or second.shape[2] != first.shape[2]):
        raise ValueError("arrays of inconsistent shapes")
    for i in prange(n, nogil=True, num_threads=n_threads, schedule="static"):
        for j in range(n_columns):
            a = row_line[i, j]
            b = column_line[i, j]
            x = &first[i, a % n_lines, 0]
            y = &second[j, b % n_lines, 0]
            even = 0
            odd = 0
            for k in range(m):
                even = even + x[k] * y[k]
                odd = odd + x[m + k] * y[m + k]
            products[i, j] = even - odd if (a >= n_lines) != (b >= n_lines) else even + odd
