/* Common lines of pairs of images: one source, compiled once for each instruction set. */
#ifndef COMMON_LINES_KERNELS_H
#define COMMON_LINES_KERNELS_H

enum { CL_LANES = 16, CL_LINES = 8, CL_MOST_WINDOW = 8 };

/* n_lines lines on half of the circle (a multiple of CL_LINES), padded to n_padded (of CL_LANES); n_fine times as many
   for the last refinement; n_coordinates (a multiple of 4) of the even and of the
   odd part each; slopes: whether the lines' derivatives
   count too; peak: the best line is that of the largest score, not of the largest sum over a window of `window` lines
   either way; where the variance in the window is below `narrow` the largest score among fine lines is taken */
typedef struct {
    int n_lines, n_padded, n_fine, n_coordinates, slopes, peak, window, n_candidates;
    float narrow;
} cl_plan;

/* of n images: fine (n, n_lines * n_fine, 2 n_coordinates), even and odd, and fine_penalty; columns (n, 4 n_coordinates,
   n_padded), even, odd, slopes' even and odd of every n_fine-th line; penalty (n, n_padded), with what the slopes take
   off, huge beyond n_lines; weights (n, n_padded), of the slopes, 0 there */
typedef struct {
    const float *fine, *fine_penalty, *columns, *penalty, *weights;
} cl_lines;

/* log_best, log_all: of the sum of likelihood ratios over the window and over all lines; angles in lines */
typedef struct {
    float *row_angle, *column_angle, *log_best, *log_all;
} cl_found;

/* image i of rows with images first..last of columns; work: n_lines (2 n_padded + n_padded / CL_LANES + 4 n_coordinates)
   floats */
typedef void (*cl_detect)(const cl_plan *, const cl_lines *rows, long i, const cl_lines *columns, long first, long last,
                          const cl_found *, float *work);

#endif
