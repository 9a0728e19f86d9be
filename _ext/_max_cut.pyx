"""Max-K-cut: sweeps of the low-rank semidefinite relaxation, products with its slack matrix, and flips.

`sweep` moves the unit vectors v_i of the relaxation one after the other; `slack_product` multiplies by its slack
matrix; `class_weights` and `flip` are the local search. `sweep` takes rows in blocks: what a block needs of the columns
outside is a matrix product, in chunks of fixed width that threads share out, and then its rows move in turn. So
every sum has one order, whatever the threads and the instruction set.
"""

from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.string cimport memcpy, memset

import numpy as np

cdef extern from *:
    """
    #include <stddef.h>
    #include <string.h>
    enum { LANES = 16, ROWS = 64, COLUMNS = 128, CHUNK = 512 };

    /* Vectors as wide as each instruction set has them. Without vector types they are loops: the same sums in the
       same order. */
    #if defined(__GNUC__)
    #define VECTOR(name, width) typedef float name __attribute__((vector_size(4 * width), aligned(4), may_alias))
    #define ADD_SCALED(sum, x, w) (sum) += (x) * (w)
    #define ADD(sum, x) (sum) += (x)
    #define INLINE static inline __attribute__((always_inline))
    #else
    #define VECTOR(name, width) typedef struct { float v[width]; } name
    #define WIDTH(x) ((int) (sizeof (x) / sizeof (float)))
    #define ADD_SCALED(sum, x, w) do { for (int l = 0; l < WIDTH(x); l++) (sum).v[l] += (x).v[l] * (w); } while (0)
    #define ADD(sum, x) do { for (int l = 0; l < WIDTH(x); l++) (sum).v[l] += (x).v[l]; } while (0)
    #define INLINE static inline
    #endif
    VECTOR(four, 4);
    VECTOR(eight, 8);
    VECTOR(sixteen, 16);

    typedef struct {
        const float *weights;    /* (padded, padded), zeros beyond n, as everything below */
        float *multipliers;      /* (padded, padded) or NULL */
        const float *vectors;    /* (padded, rank) */
        const float *tiles;      /* the same, transposed tile by tile: (padded / COLUMNS, rank, COLUMNS) */
        const float *directions; /* (padded, rank) */
        ptrdiff_t padded, rank;
        int constrained;         /* move the multipliers, and let them and the penalty push */
        int bend;                /* measure how the penalty bends along `directions` */
        int whole;               /* the block's own columns too */
        float bound;             /* v_i . v_j >= -bound */
        float sigma, step;       /* of the penalty, of the multipliers */
    } relaxation;

    /* c (ROWS, n) = or += a (ROWS, inner) b (inner, n), n a multiple of LANES. A tile of `tall` rows and two vectors
       stays in registers; each number is summed along `inner` in order, whatever the tile. */
    typedef void (*product)(const float *, ptrdiff_t, const float *, ptrdiff_t, float *, ptrdiff_t, ptrdiff_t,
                            ptrdiff_t, int);
    #define PRODUCT(name, vector, tall) \\
        INLINE void name##_tile(const float *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb, float *c, \\
                                ptrdiff_t ldc, ptrdiff_t inner, int add, const int wide) \\
        { \\
            const ptrdiff_t step = sizeof(vector) / sizeof(float); \\
            vector sums[tall][2], line[2]; \\
            memset(sums, 0, sizeof sums); \\
            for (ptrdiff_t p = 0; p < inner; p++) { \\
                for (int q = 0; q < wide; q++) \\
                    line[q] = *(const vector *) (b + p * ldb + q * step); \\
                for (int r = 0; r < tall; r++) \\
                    for (int q = 0; q < wide; q++) \\
                        ADD_SCALED(sums[r][q], line[q], a[r * lda + p]); \\
            } \\
            for (int r = 0; r < tall; r++) \\
                for (int q = 0; q < wide; q++) { \\
                    vector *place = (vector *) (c + r * ldc + q * step); \\
                    if (add) \\
                        ADD(sums[r][q], *place); \\
                    *place = sums[r][q]; \\
                } \\
        } \\
        INLINE void name(const float *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb, float *c, ptrdiff_t ldc, \\
                         ptrdiff_t n, ptrdiff_t inner, int add) \\
        { \\
            const ptrdiff_t step = 2 * sizeof(vector) / sizeof(float); \\
            ptrdiff_t j = 0; \\
            for (; j + step <= n; j += step) \\
                for (ptrdiff_t i = 0; i < ROWS; i += tall) \\
                    name##_tile(a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, inner, add, 2); \\
            for (; j < n; j += step / 2) \\
                for (ptrdiff_t i = 0; i < ROWS; i += tall) \\
                    name##_tile(a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, inner, add, 1); \\
        }
    PRODUCT(product_four, four, 4)
    PRODUCT(product_eight, eight, 4)
    PRODUCT(product_sixteen, sixteen, 8)

    /* x: inner products of one row with LANES others in, what acts between them out; multipliers z move. Where nothing
       pushes and nothing pushed, which is nearly everywhere in many graphs, nothing is written to memory. */
    INLINE void constrain(const relaxation *p, const float *w, float *z, float *x, const float *along, float *count,
                          float *bend, float *touched)
    {
        float dual[LANES], push[LANES];
        int any = 0;
        for (int l = 0; l < LANES; l++) {
            const float room = x[l] + p->bound;
            dual[l] = z[l] - p->step * room;
            dual[l] = dual[l] > 0 ? dual[l] : 0;
            push[l] = dual[l] - p->sigma * room;
            push[l] = push[l] > 0 ? push[l] : 0;
        }
        for (int l = 0; l < LANES; l++)
            any |= (dual[l] > 0) | (push[l] > 0) | (z[l] > 0);
        if (any)
            for (int l = 0; l < LANES; l++) {
                touched[l] += dual[l] + z[l];
                z[l] = dual[l];
                count[l] += push[l] > 0 ? 1.0f : 0.0f;
                bend[l] += push[l] > 0 ? along[l] * along[l] : 0.0f;
                x[l] = w[l] - push[l];
            }
        else
            memcpy(x, w, LANES * sizeof(float));
    }

    /* What the columns of one chunk give to the gradients of rows first, ..., first + ROWS - 1. */
    INLINE void chunk_rows(const relaxation *p, ptrdiff_t first, ptrdiff_t chunk, float *gradient, float *acting,
                           float *along, float *count, float *bend, const product multiply)
    {
        const ptrdiff_t end = (chunk + 1) * CHUNK < p->padded ? (chunk + 1) * CHUNK : p->padded;
        memset(gradient, 0, ROWS * p->rank * sizeof(float));
        memset(count, 0, ROWS * LANES * sizeof(float));
        memset(bend, 0, ROWS * LANES * sizeof(float));
        for (ptrdiff_t start = chunk * CHUNK; start < end; start += COLUMNS) {
            const ptrdiff_t width = end - start < COLUMNS ? end - start : COLUMNS, own = first - start;
            const float *tile = p->tiles + start * p->rank;
            float touched[COLUMNS] = {0};
            if (p->constrained) {
                multiply(p->vectors + first * p->rank, p->rank, tile, COLUMNS, acting, COLUMNS, width, p->rank, 0);
                if (p->bend)
                    multiply(p->directions + first * p->rank, p->rank, tile, COLUMNS, along, COLUMNS, width, p->rank,
                             0);
            }
            for (ptrdiff_t r = 0; r < ROWS; r++) {
                const ptrdiff_t place = (first + r) * p->padded + start;
                const float *w = p->weights + place;
                float *x = acting + r * COLUMNS;
                if (p->constrained) {
                    for (ptrdiff_t j = 0; j < width; j += LANES)
                        if (j < own || j >= own + ROWS)
                            constrain(p, w + j, p->multipliers + place + j, x + j, along + r * COLUMNS + j,
                                      count + r * LANES, bend + r * LANES, touched + j);
                } else if (p->multipliers == NULL)
                    memcpy(x, w, width * sizeof(float));
                else
                    for (ptrdiff_t j = 0; j < width; j++)
                        x[j] = w[j] - p->multipliers[place + j];
                if (!p->whole && own >= 0 && own < width)
                    memset(x + own, 0, ROWS * sizeof(float));
            }
            for (ptrdiff_t j = 0; j < width; j++)  /* a pair has one multiplier */
                if (touched[j] > 0)
                    for (ptrdiff_t r = 0; r < ROWS; r++)
                        p->multipliers[(start + j) * p->padded + first + r] =
                            p->multipliers[(first + r) * p->padded + start + j];
            multiply(acting, COLUMNS, p->vectors + start * p->rank, p->rank, gradient, p->rank, p->rank, width, 1);
        }
    }

    #define CHUNK_ROWS(name, multiply) \\
        static void name(const relaxation *p, ptrdiff_t first, ptrdiff_t chunk, float *gradient, float *acting, \\
                         float *along, float *count, float *bend) \\
        { chunk_rows(p, first, chunk, gradient, acting, along, count, bend, multiply); }
    typedef void (*chunk_function)(const relaxation *, ptrdiff_t, ptrdiff_t, float *, float *, float *, float *,
                                   float *);

    CHUNK_ROWS(chunk_rows_plain, product_four)
    #if defined(__GNUC__) && defined(__x86_64__)
    __attribute__((target("avx2"))) CHUNK_ROWS(chunk_rows_avx2, product_eight)
    __attribute__((target("avx512f,avx512dq"))) CHUNK_ROWS(chunk_rows_avx512, product_sixteen)
    #endif

    /* The same bits from each: 0 the plain one, 1 at most AVX2, 2 the widest that the processor has. */
    static chunk_function choose_chunk(int widest)
    {
    #if defined(__GNUC__) && defined(__x86_64__)
        __builtin_cpu_init();
        if (widest >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
            return chunk_rows_avx512;
        if (widest >= 1 && __builtin_cpu_supports("avx2"))
            return chunk_rows_avx2;
    #endif
        return chunk_rows_plain;
    }

    #if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
    #define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
    #else
    #define CLONES
    #endif

    CLONES static float dot(const float *a, const float *b, ptrdiff_t rank)
    {
        float parts[LANES] = {0}, sum = 0;
        for (ptrdiff_t t = 0; t < rank; t += LANES)
            for (int l = 0; l < LANES; l++)
                parts[l] += a[t + l] * b[t + l];
        for (int l = 0; l < LANES; l++)
            sum += parts[l];
        return sum;
    }

    CLONES static void add_scaled(float *sum, const float *x, float w, ptrdiff_t rank)
    {
        for (ptrdiff_t t = 0; t < rank; t++)
            sum[t] += x[t] * w;
    }

    #define CLASS_ROW(name, real) \\
        CLONES static double name(const real *w, const double *h, ptrdiff_t n) \\
        { \\
            double parts[LANES] = {0}, sum = 0; \\
            ptrdiff_t j = 0; \\
            for (; j + LANES <= n; j += LANES) \\
                for (int l = 0; l < LANES; l++) \\
                    parts[l] += (double) w[j + l] * h[j + l]; \\
            for (; j < n; j++) \\
                sum += (double) w[j] * h[j]; \\
            for (int l = 0; l < LANES; l++) \\
                sum += parts[l]; \\
            return sum; \\
        }
    CLASS_ROW(class_row_float, float)
    CLASS_ROW(class_row_double, double)

    #define MOVE(name, real) \\
        CLONES static void name(const real *restrict w, double *restrict from, double *restrict to, ptrdiff_t n) \\
        { \\
            for (ptrdiff_t j = 0; j < n; j++) { \\
                from[j] -= (double) w[j]; \\
                to[j] += (double) w[j]; \\
            } \\
        }
    MOVE(move_float, float)
    MOVE(move_double, double)
    """
    enum:
        LANES
        ROWS
        COLUMNS
        CHUNK
    ctypedef struct relaxation:
        const float* weights
        float* multipliers
        const float* vectors
        const float* tiles
        const float* directions
        Py_ssize_t padded
        Py_ssize_t rank
        int constrained
        int bend
        int whole
        float bound
        float sigma
        float step
    ctypedef void (*chunk_function)(const relaxation*, Py_ssize_t, Py_ssize_t, float*, float*, float*, float*,
                                    float*) noexcept nogil
    chunk_function choose_chunk(int widest) noexcept nogil
    float dot(const float* a, const float* b, Py_ssize_t rank) noexcept nogil
    void add_scaled(float* sum, const float* x, float w, Py_ssize_t rank) noexcept nogil
    double class_row_float(const float* w, const double* h, Py_ssize_t n) noexcept nogil
    double class_row_double(const double* w, const double* h, Py_ssize_t n) noexcept nogil
    void move_float(const float* w, double* origin, double* target, Py_ssize_t n) noexcept nogil
    void move_double(const double* w, double* origin, double* target, Py_ssize_t n) noexcept nogil

SIZE_STEP = ROWS  # sizes are padded to a multiple of it
RANK_STEP = LANES  # and ranks to one of this
TILE = COLUMNS


cdef class _Scratch:
    """What each chunk of columns has to itself."""

    cdef float[:, :, ::1] gradient, acting, along, count, bend
    cdef Py_ssize_t n_chunks

    def __cinit__(self, Py_ssize_t padded, Py_ssize_t rank):
        self.n_chunks = (padded + CHUNK - 1) // CHUNK
        self.gradient = np.empty((self.n_chunks, ROWS, rank), np.float32)
        self.acting = np.empty((self.n_chunks, ROWS, COLUMNS), np.float32)
        self.along = np.zeros((self.n_chunks, ROWS, COLUMNS), np.float32)
        self.count = np.empty((self.n_chunks, ROWS, LANES), np.float32)
        self.bend = np.empty((self.n_chunks, ROWS, LANES), np.float32)

    cdef void block(self, chunk_function work, const relaxation* p, Py_ssize_t first, int n_threads) noexcept nogil:
        """Gradients of a block of rows, summed into those of chunk 0."""
        cdef Py_ssize_t chunk, i
        for chunk in prange(self.n_chunks, num_threads=n_threads, schedule="static",
                            use_threads_if=n_threads > 1 and self.n_chunks > 3):
            work(p, first, chunk, &self.gradient[chunk, 0, 0], &self.acting[chunk, 0, 0], &self.along[chunk, 0, 0],
                 &self.count[chunk, 0, 0], &self.bend[chunk, 0, 0])
        for chunk in range(1, self.n_chunks):
            add_scaled(&self.gradient[0, 0, 0], &self.gradient[chunk, 0, 0], 1, ROWS * p.rank)
            for i in range(ROWS * LANES):
                (&self.count[0, 0, 0])[i] += (&self.count[chunk, 0, 0])[i]
                (&self.bend[0, 0, 0])[i] += (&self.bend[chunk, 0, 0])[i]


cdef void _own_block(const relaxation* p, Py_ssize_t first, Py_ssize_t r, Py_ssize_t n_rows, float* gradient,
                     float* count, float* bend) noexcept nogil:
    """What row first + r gets from the others of its block, where they stand by now."""
    cdef Py_ssize_t i = first + r, j
    cdef const float* v = p.vectors + i * p.rank
    cdef const float* u
    cdef float acts, room, dual, push, along
    for j in range(first, first + n_rows):
        if j == i:
            continue
        u = p.vectors + j * p.rank
        acts = p.weights[i * p.padded + j]
        if p.constrained:
            room = dot(v, u, p.rank) + p.bound
            dual = p.multipliers[i * p.padded + j] - p.step * room
            if not dual > 0:
                dual = 0
            p.multipliers[i * p.padded + j] = dual
            p.multipliers[j * p.padded + i] = dual
            push = dual - p.sigma * room
            if push > 0:
                acts -= push
                count[0] += 1
                if p.bend:
                    along = dot(p.directions + i * p.rank, u, p.rank)
                    bend[0] += along * along
        elif p.multipliers != NULL:
            acts -= p.multipliers[i * p.padded + j]
        add_scaled(gradient, u, acts, p.rank)


def sweep(const float[:, ::1] weights, float[:, ::1] multipliers, float[:, ::1] vectors, float[:, :, ::1] tiles,
          Py_ssize_t n, double[::1] norms, double[::1] moved, double overshoot, int n_threads, int widest=2,
          float[:, ::1] directions=None, float[::1] bends=None, int[::1] active=None, double bound=1, double sigma=0,
          double step=0, bint measure=False, double decay=0, double margin=1):
    """One pass over all rows; each v_i goes to where sum_j (W - Z)_ij v_i . v_j is least, the others staying.

    weights (W) and multipliers (Z, or None): (padded, padded), zeros beyond n; vectors: (padded, rank); tiles: the
    same, transposed in tiles, (ceil(padded / TILE), rank, TILE). norms: lengths of the gradients; moved: how much each
    move gained. `overshoot` lengthens moves, 0 to 1: any of them still gains.

    With `directions` (padded, rank), v_i . v_j >= -bound is kept up: Z_ij becomes max(0, Z_ij - step (v_i . v_j +
    bound)), and the penalty (max(0, Z_ij - sigma (v_i . v_j + bound)))^2 / (2 sigma) takes part. Since it is no linear
    function of v_i, v_i makes a shorter move: the penalty is taken to bend as `margin` times bends[i] active others
    would, at most as all active[i]. With `measure`, bends[i] follows how it bends along the last move of v_i, or falls
    by `decay`.
    """
    cdef relaxation p
    cdef Py_ssize_t rank = vectors.shape[1], padded = weights.shape[0]
    cdef Py_ssize_t block, first, r, i, t, lane, n_rows
    cdef bint constrained = directions is not None
    if not (padded == weights.shape[1] == vectors.shape[0] and padded % ROWS == 0 and rank % LANES == 0
            and 0 < n <= padded and tiles.shape[0] == (padded + COLUMNS - 1) // COLUMNS and tiles.shape[1] == rank
            and tiles.shape[2] == COLUMNS and norms.shape[0] == moved.shape[0] == n):
        raise ValueError("sweep: shapes differ")
    if multipliers is not None and not multipliers.shape[0] == multipliers.shape[1] == padded:
        raise ValueError("sweep: shapes differ")
    if constrained and not (multipliers is not None and directions.shape[0] == padded and directions.shape[1] == rank
                            and bends.shape[0] == active.shape[0] == n and sigma > 0):
        raise ValueError("sweep: shapes differ")
    cdef _Scratch scratch = _Scratch(padded, rank)
    cdef chunk_function work = choose_chunk(widest)
    cdef float* g
    cdef float* v
    cdef float* e
    cdef float* place
    cdef float count, bend, mu, length, scale = <float> (1 + overshoot)
    p.weights = &weights[0, 0]
    p.multipliers = &multipliers[0, 0] if multipliers is not None else NULL
    p.vectors = &vectors[0, 0]
    p.tiles = &tiles[0, 0, 0]
    p.directions = &directions[0, 0] if constrained else NULL
    p.padded = padded
    p.rank = rank
    p.constrained = constrained
    p.bend = measure
    p.whole = False
    p.bound = <float> bound
    p.sigma = <float> sigma
    p.step = <float> step
    with nogil:
        for block in range((n + ROWS - 1) // ROWS):
            first = block * ROWS
            scratch.block(work, &p, first, n_threads)
            n_rows = n - first if n - first < ROWS else ROWS
            for r in range(n_rows):
                i = first + r
                g = &scratch.gradient[0, r, 0]
                v = &vectors[i, 0]
                count = 0
                bend = 0
                for lane in range(LANES):
                    count += scratch.count[0, r, lane]
                    bend += scratch.bend[0, r, lane]
                _own_block(&p, first, r, n_rows, g, &count, &bend)
                mu = 0
                if constrained:
                    active[i] = <int> count
                    if measure:
                        bends[i] = bend if bend > decay * bends[i] else <float> (decay * bends[i])
                    mu = <float> (margin * bends[i])
                    mu = p.sigma * (mu if mu < count else count)
                for t in range(rank):
                    g[t] = mu * v[t] - g[t]
                length = sqrt(dot(g, g, rank))
                norms[i] = length
                moved[i] = 0
                if length == 0:
                    continue
                for t in range(rank):
                    g[t] = g[t] / length - v[t]
                moved[i] = length * dot(g, g, rank)
                add_scaled(v, g, scale, rank)
                if overshoot > 0:
                    length = sqrt(dot(v, v, rank))
                    for t in range(rank):
                        v[t] /= length
                place = &tiles[i // COLUMNS, 0, i % COLUMNS]
                for t in range(rank):
                    place[t * COLUMNS] = v[t]
                if constrained:
                    e = &directions[i, 0]
                    length = sqrt(dot(g, g, rank))
                    for t in range(rank):
                        e[t] = g[t] / length if length > 0 else 0


def slack_product(const float[:, ::1] weights, float[:, ::1] multipliers, const float[:, ::1] vectors,
                  float[:, ::1] out, int n_threads, int widest=2):
    """out = (W - Z) V, shapes as in `sweep`; Z may be None."""
    cdef relaxation p
    cdef Py_ssize_t padded = weights.shape[0], rank = vectors.shape[1], block, first
    if not (padded == weights.shape[1] == vectors.shape[0] == out.shape[0] and padded % ROWS == 0
            and rank == out.shape[1] and rank % LANES == 0
            and (multipliers is None or multipliers.shape[0] == multipliers.shape[1] == padded)):
        raise ValueError("slack_product: shapes differ")
    cdef _Scratch scratch = _Scratch(padded, rank)
    cdef chunk_function work = choose_chunk(widest)
    memset(&p, 0, sizeof(p))
    p.weights = &weights[0, 0]
    p.multipliers = &multipliers[0, 0] if multipliers is not None else NULL
    p.vectors = &vectors[0, 0]
    p.padded = padded
    p.rank = rank
    p.whole = True
    with nogil:
        for block in range(padded // ROWS):
            first = block * ROWS
            scratch.block(work, &p, first, n_threads)
            memcpy(&out[first, 0], &scratch.gradient[0, 0, 0], ROWS * rank * sizeof(float))


def class_weights(const floating[:, ::1] W, const double[:, ::1] members, double[:, ::1] out, int n_threads):
    """out[k, i] = sum_j W[i, j] members[k, j], in double precision."""
    cdef Py_ssize_t n = W.shape[0], n_classes = members.shape[0], i, k
    if not (n == W.shape[1] == members.shape[1] == out.shape[1] and n_classes == out.shape[0]):
        raise ValueError("class_weights: shapes differ")
    for i in prange(n, num_threads=n_threads, schedule="static", nogil=True, use_threads_if=n_threads > 1 and n > 500):
        for k in range(n_classes):
            if floating is float:
                out[k, i] = class_row_float(&W[i, 0], &members[k, 0], n)
            else:
                out[k, i] = class_row_double(&W[i, 0], &members[k, 0], n)


def flip(const floating[:, ::1] W, int[::1] labels, double[:, ::1] attached, double least):
    """One pass of the flip algorithm: each vertex moves to the class it is least attached to, if that gains.

    attached[k, i]: sum of W[i, j] over class k, kept in step with labels; `least`: a smaller gain does not count.
    Returns the number of moves.
    """
    cdef Py_ssize_t n = W.shape[0], n_classes = attached.shape[0], i, k, best, old, moves = 0
    if not (n == W.shape[1] == labels.shape[0] == attached.shape[1]):
        raise ValueError("flip: shapes differ")
    with nogil:
        for i in range(n):
            old = labels[i]
            best = old
            for k in range(n_classes):
                if attached[k, i] < attached[best, i]:
                    best = k
            if attached[old, i] - attached[best, i] > least:
                labels[i] = <int> best
                moves += 1
                if floating is float:
                    move_float(&W[i, 0], &attached[old, 0], &attached[best, 0], n)
                else:
                    move_double(&W[i, 0], &attached[old, 0], &attached[best, 0], n)
    return moves
