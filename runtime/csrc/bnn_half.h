/* IEEE 754 half precision (float16, binary16) to float32 and back, rounded to nearest even.

   The scalars below are branch-free and vectorise in any loop; the array functions take the
   machine's own instructions (F16C, NEON) where it has them. Both give the same bits as those
   instructions: subnormals are kept, too large is infinity, a NaN keeps its upper payload and is
   quiet. */
#ifndef BNN_HALF_H
#define BNN_HALF_H

#include "bnn_variants.h"

typedef uint16_t bnn_half;

BNN_INLINE float bnn_float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

BNN_INLINE uint32_t bnn_bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

BNN_INLINE float bnn_half_to_float(bnn_half x) {
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, magnitude = (uint32_t)(x & 0x7fff) << 13;
    const uint32_t special = (255 - 31) << 23, normal = (127 - 15) << 23;
    const uint32_t quiet = magnitude > 31u << 23 ? 1u << 22 : 0;
    /* A subnormal is put behind a leading one, which is then subtracted: exact. */
    const float lowest = bnn_float_of_bits(113 << 23);
    const uint32_t subnormal =
        bnn_bits_of_float(bnn_float_of_bits(magnitude + (113 << 23)) - lowest);
    uint32_t bits = magnitude + (magnitude >= 31u << 23 ? special : normal);
    bits = magnitude < 1u << 23 ? subnormal : bits;
    return bnn_float_of_bits(sign | bits | quiet);
}

BNN_INLINE bnn_half bnn_float_to_half(float x) {
    const uint32_t bits = bnn_bits_of_float(x), magnitude = bits & 0x7fffffff;
    const uint32_t infinity = 255u << 23, too_large = (127 + 16) << 23, normal = 113 << 23;
    /* Rounds the mantissa; a carry goes into the exponent, and at last to infinity. */
    const uint32_t rounded = (magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    /* 0.5 has the last bit of a subnormal half as its own: the addition rounds. */
    const float half = bnn_float_of_bits(126 << 23);
    const uint32_t subnormal =
        bnn_bits_of_float(bnn_float_of_bits(magnitude) + half) - (126 << 23);
    const uint32_t nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
    uint32_t result = magnitude < normal ? subnormal : rounded;
    result = magnitude >= too_large ? 0x7c00 : result;
    result = magnitude > infinity ? nan : result;
    return (bnn_half)(result | (bits >> 16 & 0x8000));
}

/* y[i] = x[i] for n elements, on the caller's thread. */
void bnn_decode_halves(const bnn_half *x, float *y, i64 n);
void bnn_encode_halves(const float *x, bnn_half *y, i64 n);

#endif
