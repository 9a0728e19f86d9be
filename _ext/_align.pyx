"""Add images, turned and moved back by cubic splines, to the sums of their classes."""

from cython.parallel cimport prange
from libc.stdlib cimport free, malloc

from skcryo._ext._typedefs cimport float32_t, float64_t, intp_t

cdef extern from *:
    """
    #include <math.h>
    #include <stddef.h>
    #include <string.h>
    #if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
    #define SKCRYO_ALIGN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
    #else
    #define SKCRYO_ALIGN_CLONES
    #endif
    #define REACH 12   /* taps on each side of the spline's prefilter: what is left out is below 2e-7 */
    #define MARGIN 2   /* mirrored coefficients around the image, for the taps of points at its edge */
    /* Four numbers at once. Without vector types it is a loop: the same sums in the same order. */
    #if defined(__GNUC__)
    typedef float four __attribute__((vector_size(16)));
    #define LANE(x, j) ((x)[j])
    #define FOUR(sum, a, b, c, d, wa, wb, wc, wd) (sum) = ((wa) * (a) + (wb) * (b)) + ((wc) * (c) + (wd) * (d))
    #else
    typedef struct { float v[4]; } four;
    #define LANE(x, j) ((x).v[j])
    #define FOUR(sum, a, b, c, d, wa, wb, wc, wd) \\
        for (int j = 0; j < 4; j++) \\
            (sum).v[j] = ((wa) * (a).v[j] + (wb) * (b).v[j]) + ((wc) * (c).v[j] + (wd) * (d).v[j])
    #endif
    #define BLOCK 64
    #define WORK (2 * (REACH + MARGIN))

    static ptrdiff_t mirror(ptrdiff_t i, ptrdiff_t n)
    {
        while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
        return i;
    }

    /* Coefficients (n + 2 MARGIN)^2 of the interpolating cubic B-spline; work is (n + WORK) * (n + 2 MARGIN). */
    SKCRYO_ALIGN_CLONES static void spline_coefficients(const float *image, ptrdiff_t n, float *work, float *out)
    {
        const ptrdiff_t wide = n + 2 * MARGIN, tall = n + WORK;
        float taps[REACH + 1], row[4096 + WORK];
        for (int j = 0; j <= REACH; j++) taps[j] = (float) (sqrt(3.0) * pow(sqrt(3.0) - 2.0, j));
        for (ptrdiff_t y = 0; y < tall; y++) {
            const float *source = image + n * mirror(y - REACH - MARGIN, n);
            float *target = work + y * wide;
            memcpy(row + REACH + MARGIN, source, n * sizeof(float));
            for (ptrdiff_t x = 0; x < REACH + MARGIN; x++) {
                row[x] = source[mirror(x - REACH - MARGIN, n)];
                row[n + REACH + MARGIN + x] = source[mirror(n + x, n)];
            }
            for (ptrdiff_t x = 0; x < wide; x++) target[x] = taps[0] * row[x + REACH];
            for (int j = 1; j <= REACH; j++)
                for (ptrdiff_t x = 0; x < wide; x++)
                    target[x] += taps[j] * (row[x + REACH - j] + row[x + REACH + j]);
        }
        for (ptrdiff_t y = 0; y < wide; y++) {
            const float *source = work + (y + REACH) * wide;
            float *target = out + y * wide;
            for (ptrdiff_t x = 0; x < wide; x++) target[x] = taps[0] * source[x];
            for (int j = 1; j <= REACH; j++)
                for (ptrdiff_t x = 0; x < wide; x++)
                    target[x] += taps[j] * (source[x - j * wide] + source[x + j * wide]);
        }
    }

    /* out(p) += weight * image(Rot(angle) p + shift) for pixels within `radius` of the centre. */
    SKCRYO_ALIGN_CLONES static void add_aligned(const float *coefficients, ptrdiff_t n, double angle, double sx,
                                                double sy, float weight, double radius, float *out)
    {
        const ptrdiff_t wide = n + 2 * MARGIN, centre = n / 2;
        const double c = cos(angle), s = sin(angle), end = (double) (n - 1) + 1e-3;
        float wx[4][BLOCK], wy[4][BLOCK];
        int corner[BLOCK];
        for (ptrdiff_t row = 0; row < n; row++) {
            const double dy = (double) (row - centre), rest = radius * radius - dy * dy;
            if (rest < 0) continue;
            const ptrdiff_t half = sqrt(rest) < (double) n ? (ptrdiff_t) sqrt(rest) : n;
            const ptrdiff_t first = centre - half > 0 ? centre - half : 0;
            const ptrdiff_t last = centre + half < n - 1 ? centre + half : n - 1;
            const double x0 = sx + (double) centre - s * dy, y0 = sy + (double) centre + c * dy;
            for (ptrdiff_t start = first; start <= last; start += BLOCK) {
                const int width = (int) (last + 1 - start < BLOCK ? last + 1 - start : BLOCK);
                float *target = out + row * n + start;
                for (int i = 0; i < width; i++) {
                    const double dx = (double) ((int) (start - centre) + i);
                    const double x = x0 + c * dx, y = y0 + s * dx;
                    /* less than a thousandth outside counts as on the edge: 90 degree turns are not exact */
                    const int inside = (x > -1e-3) & (y > -1e-3) & (x < end) & (y < end);
                    const double px = inside ? x + 1.0 : 1.0, py = inside ? y + 1.0 : 1.0;
                    const int ix = (int) px, iy = (int) py;
                    const float t = (float) (px - (double) ix), u = 1.0f - t;
                    const float v = (float) (py - (double) iy), w = 1.0f - v;
                    const float scale = inside ? weight : 0.0f;
                    /* ix is one too large, and so is the first tap: it is coefficient ix - 2 + MARGIN */
                    corner[i] = iy * (int) wide + ix;
                    wx[0][i] = u * u * u * (1.0f / 6.0f);
                    wx[1][i] = (2.0f / 3.0f) - t * t * (1.0f - 0.5f * t);
                    wx[2][i] = (2.0f / 3.0f) - u * u * (1.0f - 0.5f * u);
                    wx[3][i] = t * t * t * (1.0f / 6.0f);
                    wy[0][i] = scale * (w * w * w * (1.0f / 6.0f));
                    wy[1][i] = scale * ((2.0f / 3.0f) - v * v * (1.0f - 0.5f * v));
                    wy[2][i] = scale * ((2.0f / 3.0f) - w * w * (1.0f - 0.5f * w));
                    wy[3][i] = scale * (v * v * v * (1.0f / 6.0f));
                }
                for (int i = 0; i < width; i++) {
                    const float *tap = coefficients + corner[i];
                    four r0, r1, r2, r3, sum;
                    memcpy(&r0, tap, sizeof r0);
                    memcpy(&r1, tap + wide, sizeof r1);
                    memcpy(&r2, tap + 2 * wide, sizeof r2);
                    memcpy(&r3, tap + 3 * wide, sizeof r3);
                    FOUR(sum, r0, r1, r2, r3, wy[0][i], wy[1][i], wy[2][i], wy[3][i]);
                    target[i] += (wx[0][i] * LANE(sum, 0) + wx[1][i] * LANE(sum, 1))
                               + (wx[2][i] * LANE(sum, 2) + wx[3][i] * LANE(sum, 3));
                }
            }
        }
    }

    static void add_class(const float *images, ptrdiff_t n, const ptrdiff_t *members, ptrdiff_t count,
                          const double *angles, const double *shifts, const float *weights, double radius,
                          float *scratch, float *out)
    {
        float *coefficients = scratch + (n + WORK) * (n + 2 * MARGIN);
        for (ptrdiff_t m = 0; m < count; m++) {
            const ptrdiff_t i = members[m];
            spline_coefficients(images + i * n * n, n, scratch, coefficients);
            add_aligned(coefficients, n, angles[i], shifts[2 * i], shifts[2 * i + 1], weights[i], radius, out);
        }
    }
    #define SCRATCH(n) (((n) + WORK) * ((n) + 2 * MARGIN) + ((n) + 2 * MARGIN) * ((n) + 2 * MARGIN))
    """
    void add_class(const float *images, Py_ssize_t n, const Py_ssize_t *members, Py_ssize_t count,
                   const double *angles, const double *shifts, const float *weights, double radius,
                   float *scratch, float *out) noexcept nogil
    Py_ssize_t SCRATCH(Py_ssize_t n) noexcept nogil


cdef int _add_classes(const float32_t[:, :, ::1] images, const intp_t[::1] members, const intp_t[::1] starts,
                      const float64_t[::1] angles, const float64_t[:, ::1] shifts, const float32_t[::1] weights,
                      double radius, float32_t[:, :, ::1] out, Py_ssize_t k) noexcept nogil:
    cdef float *scratch = <float *> malloc(SCRATCH(images.shape[1]) * sizeof(float))
    if scratch == NULL:
        return 1
    add_class(&images[0, 0, 0], images.shape[1], &members[starts[k]], starts[k + 1] - starts[k], &angles[0],
              &shifts[0, 0], &weights[0], radius, scratch, &out[k, 0, 0])
    free(scratch)
    return 0


def add_aligned(const float32_t[:, :, ::1] images, const intp_t[::1] members, const intp_t[::1] starts,
                const float64_t[::1] angles, const float64_t[:, ::1] shifts, const float32_t[::1] weights,
                double radius, float32_t[:, :, ::1] out, int n_threads):
    """Add the images, turned back by their angles and moved back by their shifts, to the sums of their classes.

    ``out[k] += sum over the members i of class k of weights[i] * image_i(Rot(angles[i]) p + shifts[i])``; the
    members of class k are ``members[starts[k]:starts[k + 1]]``, added in this order by one thread.
    """
    cdef Py_ssize_t k, n_classes = out.shape[0], n = images.shape[0], L = images.shape[1]
    cdef int failed = 0
    if not (images.shape[2] == out.shape[1] == out.shape[2] == L and starts.shape[0] == n_classes + 1
            and angles.shape[0] == shifts.shape[0] == weights.shape[0] == n and shifts.shape[1] == 2):
        raise ValueError("add_aligned: shapes differ")
    if L < 2 or L > 4096:
        raise ValueError(f"add_aligned: images must have 2 to 4096 px, got {L}")
    for k in prange(n_classes, num_threads=n_threads, schedule="dynamic", nogil=True):
        if starts[k + 1] > starts[k]:
            failed += _add_classes(images, members, starts, angles, shifts, weights, radius, out, k)
    if failed:
        raise MemoryError("add_aligned")
