"""Sums over all pairs of images that least unsquared deviations need, in one pass over their common lines.

The lines of a pair i < j lie together, sixteen columns j to a block, in the order of the passes: `pack` puts them
there, `weighted_sums` goes through them. No matrix of the problem is ever formed.
"""

from libc.math cimport cosf, sinf
from libc.string cimport memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    enum { LANES = 16, FIELDS = 5, STRIP = 64, COLUMNS = 512, SUMS = 7 };
    #if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
    #define SKCRYO_LUD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
    #else
    #define SKCRYO_LUD_CLONES
    #endif
    #if defined(__clang__)
    #define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
    #elif defined(__GNUC__)
    #define INDEPENDENT _Pragma("GCC ivdep")
    #else
    #define INDEPENDENT
    #endif

    /* 1 / sqrt(x) by Newton's method, to the rounding of float: unlike sqrtf, the compiler does many at once. */
    static inline float inverse_root(float x)
    {
        uint32_t bits;
        float r;
        memcpy(&bits, &x, sizeof bits);
        bits = 0x5f375a86u - (bits >> 1);
        memcpy(&r, &bits, sizeof r);
        const float half = 0.5f * x;
        r = r * (1.5f - half * r * r);
        r = r * (1.5f - half * r * r);
        return r * (1.5f - half * r * r);
    }

    /* Image i, whose rows are `own`, with n_blocks blocks of images, whose rows are y (6, COLUMNS). To mine (SUMS,
    LANES)
       and theirs (SUMS, COLUMNS) are added what the pairs mean to either; lane by lane, whatever the vectors' width. */
    SKCRYO_LUD_CLONES static void pairs_of_row(const float *restrict lines, int n_blocks, const float *restrict own,
                                               const float *restrict y, float smoothing2, int redescending,
                                               float *restrict mine, float *restrict theirs)
    {
        float sum[SUMS][LANES];
        memcpy(sum, mine, sizeof sum);
        for (int block = 0; block < n_blocks; block++, lines += FIELDS * LANES, y += LANES, theirs += LANES) {
            INDEPENDENT
            for (int l = 0; l < LANES; l++) {
                const float ci = lines[l], si = lines[LANES + l], cj = lines[2 * LANES + l], sj = lines[3 * LANES + l];
                /* The line in space as either image has it. */
                const float u0 = ci * own[0] + si * own[3];
                const float u1 = ci * own[1] + si * own[4];
                const float u2 = ci * own[2] + si * own[5];
                const float v0 = cj * y[l] + sj * y[3 * COLUMNS + l];
                const float v1 = cj * y[COLUMNS + l] + sj * y[4 * COLUMNS + l];
                const float v2 = cj * y[2 * COLUMNS + l] + sj * y[5 * COLUMNS + l];
                const float e0 = u0 - v0, e1 = u1 - v1, e2 = u2 - v2;
                const float square = e0 * e0 + e1 * e1 + e2 * e2 + smoothing2;
                const float r = inverse_root(square);
                const float misfit = lines[4 * LANES + l] * square * r;
                const float w = lines[4 * LANES + l] * (redescending ? r * r : r);
                const float wci = w * ci, wsi = w * si, wcj = w * cj, wsj = w * sj;
                sum[0][l] += wci * v0;
                sum[1][l] += wci * v1;
                sum[2][l] += wci * v2;
                sum[3][l] += wsi * v0;
                sum[4][l] += wsi * v1;
                sum[5][l] += wsi * v2;
                sum[6][l] += misfit;
                theirs[l] += wcj * u0;
                theirs[COLUMNS + l] += wcj * u1;
                theirs[2 * COLUMNS + l] += wcj * u2;
                theirs[3 * COLUMNS + l] += wsj * u0;
                theirs[4 * COLUMNS + l] += wsj * u1;
                theirs[5 * COLUMNS + l] += wsj * u2;
                theirs[6 * COLUMNS + l] += misfit;
            }
        }
        memcpy(mine, sum, sizeof sum);
    }
    """
    enum:
        LANES      # columns of a block
        FIELDS     # cos and sin of the line in i, of the line in j, weight
        STRIP      # rows after which the columns' sums go on in double precision
        COLUMNS    # columns after which a row's sums do
        SUMS       # six of the direction, one of the misfit
    void pairs_of_row(const float* lines, int n_blocks, const float* own, const float* y, float smoothing2,
                      int redescending, float* mine, float* theirs) noexcept nogil


cdef inline Py_ssize_t _first_block(Py_ssize_t i) noexcept nogil:
    return (i + 1) // LANES


def n_blocks(Py_ssize_t n):
    """Number of blocks that the pairs of n images take."""
    cdef Py_ssize_t total = 0, i, per_row = (n + LANES - 1) // LANES
    for i in range(n - 1):
        total += per_row - _first_block(i)
    return total


def pack(const float[:, ::1] angles, const float[:, :] weights, const unsigned char[:, :] checked,
         float[:, :, ::1] lines):
    """Put the lines of all pairs i < j into lines (n_blocks(n), 5, 16), in the order of the passes.

    angles: (n, n) radians. weights: (n, n), the entries i < j are read. checked: (n, n), nothing is read of a pair
    where it is 0, which gets the weight 0, as have the places that belong to no pair.
    """
    cdef Py_ssize_t n = angles.shape[0], i, j, part, strip, chunk, start, stop, first, block, lane, at = 0
    cdef Py_ssize_t per_row = (n + LANES - 1) // LANES, step = COLUMNS // LANES
    cdef Py_ssize_t n_strips = (n + STRIP - 2) // STRIP, n_chunks = (per_row + step - 1) // step
    memset(&lines[0, 0, 0], 0, lines.shape[0] * FIELDS * LANES * sizeof(float))
    with nogil:
        for part in range(n_strips):
            strip = part * STRIP
            for chunk in range(n_chunks):
                start = chunk * step
                stop = min(start + step, per_row)
                for i in range(strip, min(strip + STRIP, n - 1)):
                    first = max(start, _first_block(i))
                    for block in range(first, stop):
                        for lane in range(LANES):
                            j = block * LANES + lane
                            if j <= i or j >= n or not checked[i, j]:
                                continue
                            lines[at, 0, lane] = cosf(angles[i, j])
                            lines[at, 1, lane] = sinf(angles[i, j])
                            lines[at, 2, lane] = cosf(angles[j, i])
                            lines[at, 3, lane] = sinf(angles[j, i])
                            lines[at, 4, lane] = weights[i, j]
                        at += 1


def weighted_sums(const float[:, :, ::1] lines, const float[:, ::1] rows, double smoothing, bint redescending,
                  double[:, ::1] sums):
    """One pass over all pairs.

    lines: of `pack`. rows: (6, n), the first two columns of the rotations: R_i[a, 0] at [a, i], R_i[a, 1] at [3 + a,
    i]. With d_ij = R_i c_ij - R_j c_ji, r_ij = sqrt(|d_ij|^2 + smoothing^2) and the pairs' weights w_ij, to sums (7,
    n) go sum_j w_ij / r_ij * c_ij (R_j c_ji)^T (with redescending, over r_ij^2), in the order of rows, and sum_j w_ij
    r_ij. Single precision within strips of 64 rows by 512 columns, double beyond; the order of summation is always
    the same.
    """
    cdef Py_ssize_t n = rows.shape[1], i, j, a, part, strip, chunk, start, stop, first, width, lane, at = 0
    cdef Py_ssize_t per_row = (n + LANES - 1) // LANES, step = COLUMNS // LANES
    cdef Py_ssize_t n_strips = (n + STRIP - 2) // STRIP, n_chunks = (per_row + step - 1) // step
    cdef float y[6 * COLUMNS]
    cdef float theirs[SUMS * COLUMNS]
    cdef float mine[SUMS * LANES]
    cdef float own[6]
    cdef double total
    cdef float smoothing2 = <float> (smoothing * smoothing)
    memset(&sums[0, 0], 0, SUMS * n * sizeof(double))
    with nogil:
        for part in range(n_strips):
            strip = part * STRIP
            for chunk in range(n_chunks):
                start = chunk * step
                stop = min(start + step, per_row)
                if stop <= _first_block(strip):
                    continue
                width = min(stop * LANES, n) - start * LANES
                memset(y, 0, sizeof(y))
                for a in range(6):
                    for j in range(width):
                        y[a * COLUMNS + j] = rows[a, start * LANES + j]
                memset(theirs, 0, sizeof(theirs))
                for i in range(strip, min(strip + STRIP, n - 1)):
                    first = max(start, _first_block(i))
                    if first >= stop:
                        continue
                    for a in range(6):
                        own[a] = rows[a, i]
                    memset(mine, 0, sizeof(mine))
                    pairs_of_row(&lines[at, 0, 0], <int> (stop - first), own, y + (first - start) * LANES, smoothing2,
                                 redescending, mine, theirs + (first - start) * LANES)
                    at += stop - first
                    for a in range(SUMS):
                        total = 0
                        for lane in range(LANES):
                            total += mine[a * LANES + lane]
                        sums[a, i] += total
                for a in range(SUMS):
                    for j in range(width):
                        sums[a, start * LANES + j] += theirs[a * COLUMNS + j]
