/* The random bits of the RandomBits operator, and rounding to half precision by them. */
#ifndef BNN_ROUNDING_H
#define BNN_ROUNDING_H

#include "bnn_half.h"

#include <math.h>

/* lowbias32. */
BNN_INLINE uint32_t random32(uint32_t i) {
    i ^= i >> 16;
    i *= 0x7feb352du;
    i ^= i >> 15;
    i *= 0x846ca68bu;
    return i ^ i >> 16;
}

/* Where the counter of a step's random stream begins. */
BNN_INLINE uint32_t stream_start(i64 step, i64 seed) {
    return (uint32_t)step * 0x9E3779B1u + (uint32_t)seed;
}

enum { BYTE_BITS = 0x42fe0000 }; /* of 127 */
enum { HALF_GAP = 10 << 23, LEAST_GAP = (127 - 24) << 23, HIGHEST_BITS = 0x477fe000 };
static const float HIGHEST = 65504.0f;
/* Of a state in half precision: it holds so many times the momentum. */
static const float STATE_SCALE = 1024.0f;

/* x as a float that is a half: up or down by chance, as RoundToHalf says. In integers where a choice
   between floats would keep the loop from being vectorised. */
BNN_INLINE float chance_half(float x, uint32_t drawn) {
    const int32_t all = (int32_t)(bnn_bits_of_float(x) & 0x7fffffff);
    const int32_t fitting = all < HIGHEST_BITS ? all : HIGHEST_BITS;
    const int32_t exponent = (fitting & 0x7f800000) - HALF_GAP;
    const int32_t gap_bits = exponent > LEAST_GAP ? exponent : LEAST_GAP;
    const float magnitude = bnn_float_of_bits((uint32_t)fitting);
    const float gap = bnn_float_of_bits((uint32_t)gap_bits);
    const float place = magnitude * bnn_float_of_bits((254u << 23) - (uint32_t)gap_bits);
    const int32_t below = (int32_t)place;
    const int32_t rest = (int32_t)((place - (float)below) * 8192.0f);
    const float rounded = (float)(below + ((rest + (int32_t)drawn) >> 13)) * gap;
    const uint32_t sign = bnn_bits_of_float(x) & 0x80000000;
    const uint32_t quiet_nan = all > 0x7f800000 ? 0x7fc00000 : 0;
    return bnn_float_of_bits(bnn_bits_of_float(rounded) | sign | quiet_nan);
}

/* m[i] / unit, up or down by chance, as RoundToByte says; 0 if the unit is 0. Whole numbers in
   floats: their narrowing is a loop of its own. In integers as in chance_half. */
BNN_INLINE void round_to_bytes(float *m, float unit, uint32_t counter, i64 n) {
    const float inverse = unit > 0 ? 1 / unit : 0;
    for (i64 i = 0; i < n; i++) {
        const uint32_t place = bnn_bits_of_float(m[i] * inverse);
        const int32_t all = (int32_t)(place & 0x7fffffff);
        const float size = bnn_float_of_bits((uint32_t)(all < BYTE_BITS ? all : BYTE_BITS));
        const int32_t below = (int32_t)size, rest = (int32_t)((size - (float)below) * 0x1p19f);
        const int32_t drawn = (int32_t)(random32(counter + (uint32_t)i) & 0x7ffff);
        const float rounded = (float)(below + ((rest + drawn) >> 19));
        const uint32_t sign = all > 0x7f800000 ? 0 : place & 0x80000000; /* none of NaN */
        m[i] = bnn_float_of_bits(bnn_bits_of_float(rounded) | sign);
    }
}

BNN_INLINE void store_bytes(float *m, int8_t *q, float unit, uint32_t counter, i64 n) {
    round_to_bytes(m, unit, counter, n);
    for (i64 i = 0; i < n; i++) q[i] = (int8_t)(int32_t)m[i];
}

/* x[i] / unit - 1/2, up or down by chance, as RoundToLatents says. */
BNN_INLINE void store_latents(float *x, int8_t *q, float unit, uint32_t counter, i64 n) {
    const float inverse = 1 / unit;
    for (i64 i = 0; i < n; i++) {
        const float drawn = (float)(int32_t)(random32(counter + (uint32_t)i) >> 19);
        const float below = floorf(x[i] * inverse + (drawn * 0x1p-13f - 0.5f));
        const float under = below < 127.0f ? below : 127.0f; /* of NaN 127 */
        x[i] = under > -128.0f ? under : -128.0f;
    }
    for (i64 i = 0; i < n; i++) q[i] = (int8_t)(int32_t)x[i];
}

BNN_INLINE void load_latents(const int8_t *q, float *x, float unit, i64 n) {
    for (i64 i = 0; i < n; i++) x[i] = ((float)q[i] + 0.5f) * unit;
}

BNN_INLINE void store_nearest(float *x, void *y, i64 n) {
    for (i64 i = 0; i < n; i++) {
        float low = x[i] < -HIGHEST ? -HIGHEST : x[i];
        x[i] = low > HIGHEST ? HIGHEST : low;
    }
    bnn_encode_halves(x, y, n);
}

BNN_INLINE void store_by_chance(float *x, void *y, uint32_t counter, i64 n) {
    for (i64 i = 0; i < n; i++) x[i] = chance_half(x[i], random32(counter + (uint32_t)i) >> 19);
    bnn_encode_halves(x, y, n);
}

#endif
