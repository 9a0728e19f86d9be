#include "emd_kernels.h"
#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#endif

extern const emd_kernels emd_kernels_baseline;
#ifdef EMD_X86
extern const emd_kernels emd_kernels_avx2, emd_kernels_avx512;
#endif

const emd_kernels *emd_kernels_for(int isa)
{
    if (isa == 0) return &emd_kernels_baseline;
#ifdef EMD_X86
    __builtin_cpu_init();
    if (isa == 1 && __builtin_cpu_supports("avx2")) return &emd_kernels_avx2;
    if (isa == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return &emd_kernels_avx512;
#endif
    return NULL;
}

int emd_max_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
