/* Inner loops of the binary products for any machine; with NEON's table lookup on aarch64. */
#include "bnn_products.h"

#define CORES bnn_cores_portable
#define BYTES 16

typedef uint8_t lanes16 __attribute__((vector_size(16)));

#if BNN_AARCH64
#include <arm_neon.h>

static inline __attribute__((always_inline)) lanes16 lookup(uint8_t index, lanes16 lanes) {
    return (lanes16)vqtbl1q_u8(vld1q_u8(bnn_differing + index), (uint8x16_t)lanes);
}
#else
typedef int8_t signed16 __attribute__((vector_size(16)));

/* Without a table instruction: the bits are counted. */
static inline __attribute__((always_inline)) lanes16 lookup(uint8_t index, lanes16 lanes) {
    lanes16 bits = lanes ^ (uint8_t)(index >> 4);
    bits -= bits >> 1 & 0x55;
    bits = (bits & 0x33) + (bits >> 2 & 0x33);
    return bits & (lanes16)((signed16)lanes >= 0); /* OUTSIDE is negative */
}
#endif
#include "bnn_products_cores.inc"
