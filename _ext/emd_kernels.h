/* Kernels of the wavelet earth mover's distance. One source (emd_kernels.c) is compiled once for each instruction set;
   all variants do the same operations in the same order, so they return the same bits. */
#ifndef SKCRYO_EMD_KERNELS_H
#define SKCRYO_EMD_KERNELS_H

#define EMD_LANES 16       /* images that go through rotation and wavelet transform side by side */
#define EMD_ROW 64         /* rows are padded to a multiple of this many coefficients at every level */
#define EMD_MAX_LEVELS 12
#define EMD_MAX_ANGLES 4096

typedef struct {
    int size;              /* images are size x size */
    int n_levels;
    int n_taps;            /* length of the wavelet's filters, even */
    const float *lowpass;  /* decomposition filters */
    const float *highpass;
    const float *weights;  /* n_levels, of the distance, finest level first */
    const int *keep;       /* row_length: index into the level's bands, or -1 for padding; coarsest level first */
    const int *offsets;    /* n_levels + 1: where each level starts in a row; coarsest first */
    const int *extent;     /* 2 * size: first and one past the last pixel inside the mask, for each image row */
} emd_plan;

typedef struct {
    int n_levels, n_angles, n_coarse;  /* n_coarse: coarsest levels read at every stride-th angle */
    int stride;
    int n, first;              /* these centres are the classes first, first + 1, ... */
    long row_length;
    const int *offsets;
    const float *rows;         /* n x n_angles x row_length: the rotated copies */
    const float *norms;        /* n x n_levels x n_angles: their l1 norms by level */
    const float *below;        /* n x n_angles: distance, coarse levels, to the bracketing copy before */
    const float *above;        /* n x n_angles: ... and after */
    const float *bias;         /* n: added to the distance where classes compete */
} emd_centres;

typedef struct {
    long n;
    const float *rows;         /* n x row_length */
    const float *norms;        /* n x n_levels */
    int shift;                 /* index of the shift these rows were made with */
    float *best;               /* n: smallest distance + bias so far, in and out */
    int *labels, *angles, *shifts;  /* n each, in and out */
    float *all;                /* NULL, or n x n_all: smallest distance to every class so far, in and out */
    long n_all;
} emd_images;

typedef struct {
    /* rows of images (n, size, size) turned by angles (cosines and sines; NULL: not turned; images then are pixels,
       else cubic B-spline coefficients with a margin of 2 on each side); source[i] is the image that row i is made of */
    void (*transform)(const emd_plan *, const float *images, const int *source, const double *cosines,
                      const double *sines, long n, float *rows, int n_threads);
    /* rows of all turned copies: splines (n_blocks, size + 4, size + 4, EMD_LANES); rows (n_blocks * EMD_LANES, n_angles) */
    void (*transform_rotations)(const emd_plan *, const float *splines, long n_blocks, const double *cosines,
                                const double *sines, long n_angles, float *rows, int n_threads);
    /* l1 norms by level of n rows */
    void (*norms)(int n_levels, const int *offsets, const float *rows, long n, float *norms, int n_threads);
    /* distance of row x[i] to row y[i], level by level in order */
    void (*paired)(int n_levels, const int *offsets, const float *x, const float *y, long n, float *out, int n_threads);
    /* l1 distance, first n_levels levels, of every row x to every row y; rows start every row_length coefficients */
    void (*all_pairs)(int n_levels, const int *offsets, long row_length, const float *x, long nx, const float *y, long ny,
                      float *out, int n_threads);
    /* fills norms, below and above from rows */
    void (*tables)(const emd_centres *, float *norms, float *below, float *above, int n_threads);
    /* exact search over all angles of some centres; returns the number of coefficients read past the coarse levels */
    double (*search)(const emd_images *, const emd_centres *, int n_threads);
} emd_kernels;

const emd_kernels *emd_kernels_for(int isa);  /* 0 baseline, 1 avx2, 2 avx512; NULL where the processor lacks it */

int emd_max_threads(void);  /* what OpenMP would use: cores, affinity, OMP_NUM_THREADS; 1 without it */

#endif
