"""Maximum over the angles of correlations given by their even and odd cosine and sine sums."""

from libc.stdint cimport int32_t

from skcryo._ext._typedefs cimport float32_t

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
    #define SKCRYO_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
    #else
    #define SKCRYO_CLONES
    #endif
    #define LANES 64

    /* Angles of the four quadrants in increasing order; `>` keeps the first of equals. */
    SKCRYO_CLONES static void skcryo_fold_max(const float *a, const float *b, const float *c, const float *d,
                                              ptrdiff_t quarter, ptrdiff_t n, float *best, int32_t *index)
    {
        for (ptrdiff_t first = 0; first < n; first += LANES) {
            float top[LANES];
            int32_t where[LANES];
            ptrdiff_t width = n - first < LANES ? n - first : LANES;
            for (int l = 0; l < LANES; l++) { top[l] = -3.4e38f; where[l] = 0; }
            for (int quadrant = 0; quadrant < 4; quadrant++) {
                float sign_odd = (quadrant == 1 || quadrant == 2) ? -1.0f : 1.0f;
                float sign_c = (quadrant == 1 || quadrant == 3) ? -1.0f : 1.0f;
                float sign_d = quadrant >= 2 ? -1.0f : 1.0f;
                for (ptrdiff_t step = quadrant == 0 ? 0 : 1; step <= quarter; step++) {
                    ptrdiff_t j = quadrant % 2 ? quarter - step : step;
                    int32_t angle = (int32_t) (quadrant * quarter + step);
                    const float *pa = a + j * n + first, *pb = b + j * n + first;
                    const float *pc = c + j * n + first, *pd = d + j * n + first;
                    if (quadrant == 3 && step == quarter) continue;
                    if (width == LANES) {
                        for (int l = 0; l < LANES; l++) {
                            float value = (pa[l] + sign_odd * pb[l]) + (sign_c * pc[l] + sign_d * pd[l]);
                            int better = value > top[l];
                            top[l] = better ? value : top[l];
                            where[l] = better ? angle : where[l];
                        }
                    } else {
                        for (int l = 0; l < width; l++) {
                            float value = (pa[l] + sign_odd * pb[l]) + (sign_c * pc[l] + sign_d * pd[l]);
                            if (value > top[l]) { top[l] = value; where[l] = angle; }
                        }
                    }
                }
            }
            for (int l = 0; l < width; l++) { best[first + l] = top[l]; index[first + l] = where[l]; }
        }
    }
    """
    void skcryo_fold_max(const float *a, const float *b, const float *c, const float *d, Py_ssize_t quarter,
                         Py_ssize_t n, float *best, int32_t *index) noexcept nogil


def fold_max(const float32_t[:, ::1] even_cos, const float32_t[:, ::1] odd_cos, const float32_t[:, ::1] even_sin,
             const float32_t[:, ::1] odd_sin, float32_t[::1] best, int32_t[::1] index):
    """Largest value over ``4 (rows - 1)`` angles, and the index of the first angle that has it, for every column.

    Row j holds the sums over even and odd orders at the angle ``j pi / (2 (rows - 1))``: the value there is
    ``even_cos + odd_cos + even_sin + odd_sin``, and the other three quadrants follow by symmetry.
    """
    cdef Py_ssize_t rows = even_cos.shape[0], n = even_cos.shape[1]
    if not (odd_cos.shape[0] == even_sin.shape[0] == odd_sin.shape[0] == rows
            and odd_cos.shape[1] == even_sin.shape[1] == odd_sin.shape[1] == best.shape[0] == index.shape[0] == n):
        raise ValueError("fold_max: shapes differ")
    if n == 0:
        return
    with nogil:
        skcryo_fold_max(&even_cos[0, 0], &odd_cos[0, 0], &even_sin[0, 0], &odd_sin[0, 0], rows - 1, n,
                        &best[0], &index[0])
