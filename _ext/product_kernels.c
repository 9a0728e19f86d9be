#include "product_kernels.h"

#include <string.h>

/* vectors as wide as the instruction set's; a tile of ROWS rows and two vectors of columns stays in registers */
#if defined(__AVX512F__)
enum { WIDTH = 16, ROWS = 12 };
#elif defined(__AVX__)
enum { WIDTH = 8, ROWS = 6 };
#else
enum { WIDTH = 4, ROWS = 6 };
#endif
enum { COLUMNS = 2 * WIDTH, DEPTH = 192 };
typedef float vf __attribute__((vector_size(4 * WIDTH)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 12")
#define PASTE(a, b) a##b
#define NAME(isa) PASTE(product_rows_, isa)

INLINE vf load(const float *x) { vf v; memcpy(&v, x, sizeof v); return v; }
INLINE void store(float *x, vf v) { memcpy(x, &v, sizeof v); }
INLINE vf splat(float x) { return (vf){0} + x; }

/* rows of a tile, one after another k: never two partial sums, so that neither place nor neighbours change a bit */
INLINE void tile(const int rows, long depth, const float *a, long a_stride, const float *panel, float *c, long c_stride)
{
    vf sum[ROWS][2];
    UNROLL for (int i = 0; i < rows; i++) {
        sum[i][0] = load(c + i * c_stride);
        sum[i][1] = load(c + i * c_stride + WIDTH);
    }
    for (long k = 0; k < depth; k++) {
        const vf left = load(panel + k * COLUMNS), right = load(panel + k * COLUMNS + WIDTH);
        UNROLL for (int i = 0; i < rows; i++) {
            const vf x = splat(a[i * a_stride + k]);
            sum[i][0] += x * left;
            sum[i][1] += x * right;
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        store(c + i * c_stride, sum[i][0]);
        store(c + i * c_stride + WIDTH, sum[i][1]);
    }
}

static void stripe(long n, long depth, const float *a, long a_stride, const float *panel, float *c, long c_stride)
{
#define TILE(rows) case rows: tile(rows, depth, a, a_stride, panel, c, c_stride); break;
    for (; n >= ROWS; n -= ROWS, a += ROWS * a_stride, c += ROWS * c_stride)
        tile(ROWS, depth, a, a_stride, panel, c, c_stride);
    switch (n) {
        TILE(1) TILE(2) TILE(3) TILE(4) TILE(5)
#if defined(__AVX512F__)
        TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11)
#endif
    }
}

/* the last columns, fewer than a tile has, in a room of their own */
static void narrow(long n, long depth, const float *a, long a_stride, const float *panel, float *c, long c_stride,
                   long width)
{
    float room[ROWS * COLUMNS];
    for (long i = 0; i < n; i += ROWS) {
        const long rows = n - i < ROWS ? n - i : ROWS;
        memset(room, 0, sizeof room);
        for (long r = 0; r < rows; r++) memcpy(room + r * COLUMNS, c + (i + r) * c_stride, width * sizeof *c);
        stripe(rows, depth, a + i * a_stride, a_stride, panel, room, COLUMNS);
        for (long r = 0; r < rows; r++) memcpy(c + (i + r) * c_stride, room + r * COLUMNS, width * sizeof *c);
    }
}

void NAME(PRODUCT_ISA)(long n, long depth, long columns, const float *a, long a_stride, const float *b, long b_stride,
                       float *c, long c_stride)
{
    float panel[DEPTH * COLUMNS] __attribute__((aligned(64)));
    for (long first = 0; first < columns; first += COLUMNS) {
        const long width = columns - first < COLUMNS ? columns - first : COLUMNS;
        if (width < COLUMNS) memset(panel, 0, sizeof panel);
        for (long k = 0; k < depth; k += DEPTH) {
            const long some = depth - k < DEPTH ? depth - k : DEPTH;
            for (long l = 0; l < some; l++)
                memcpy(panel + l * COLUMNS, b + (k + l) * b_stride + first, width * sizeof *b);
            if (width == COLUMNS)
                stripe(n, some, a + k, a_stride, panel, c + first, c_stride);
            else
                narrow(n, some, a + k, a_stride, panel, c + first, c_stride, width);
        }
    }
}
