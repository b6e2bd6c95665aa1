/* What the processor can do. */
#include "bnn.h"

static int highest = BNN_AVX512_POPCOUNT_KERNELS;

int bnn_has_avx2(void) {
#if BNN_X86_64
    /* What has AVX2 has F16C too; not every compiler can ask. */
    return highest >= BNN_AVX2_KERNELS && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
#else
    return 0;
#endif
}

int bnn_has_avx512(void) {
#if BNN_X86_64
    return highest >= BNN_AVX512_KERNELS && bnn_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}

int bnn_has_avx512_popcount(void) {
#if BNN_X86_64
    return highest >= BNN_AVX512_POPCOUNT_KERNELS && bnn_has_avx512() &&
           __builtin_cpu_supports("avx512vpopcntdq");
#else
    return 0;
#endif
}

void bnn_limit_kernels(int kernels) { highest = kernels; }
