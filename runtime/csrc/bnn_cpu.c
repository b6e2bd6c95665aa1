/* What the processor can do, asked once. */
#include "bnn.h"

static int forced_portable;

int bnn_has_avx2(void) {
#if defined(__x86_64__)
    /* What has AVX2 has F16C too; not every compiler can ask. */
    return !forced_portable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("popcnt");
#else
    return 0;
#endif
}

void bnn_force_portable(int on) { forced_portable = on; }
