/* exp, log, erf, tanh and what is made of them, of one float: without branches, for loops that vectorise.

   Nothing is taken from a C library and nothing is contracted: bits are the same on all machines. NaN
   stays. Polynomials are minimax ones of the function that is named; errors are relative, measured
   over all floats against float64. */
#ifndef BNN_MATH_H
#define BNN_MATH_H

#include <math.h>

#include "bnn_variants.h"

/* 2^n for -126 <= n <= 127. */
BNN_INLINE float bnn_power_of_two(int32_t n) {
    const uint32_t bits = ((uint32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* exp(x + low), `low` a small part of the argument that x has no bits for; 1e-7.

   x = n log(2) + r, |r| <= log(2) / 2; exp(r) = 1 + r + r^2 q(r). */
BNN_INLINE float bnn_exp_of_sum(float x, float low) {
    const float whole = 12582912.0f; /* 1.5 * 2^23: a float of that size has no fraction */
    const float bound = x > 89.0f ? 89.0f : x < -104.0f ? -104.0f : x; /* beyond are inf and 0 */
    const float shifted = bound * 1.44269504f + whole, n = shifted - whole;
    const float r = ((bound - n * 0.693359375f) - n * -2.12194440e-4f) + low;
    float q = 1.39517172e-3f;
    q = q * r + 8.36959841e-3f;
    q = q * r + 4.16661873e-2f;
    q = q * r + 1.66665129e-1f;
    q = q * r + 5.00000010e-1f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    const int32_t power = (int32_t)((uint32_t)bits - 0x4B400000u), half = power >> 1;
    /* in two factors, so that the result may be subnormal, or infinite */
    return ((1.0f + (r + r * r * q)) * bnn_power_of_two(half)) * bnn_power_of_two(power - half);
}

BNN_INLINE float bnn_exp(float x) { return bnn_exp_of_sum(x, 0.0f); }

/* exp(-z^2), and 1 - erf(z) = exp(-z^2) t g(t), t = 1 / (1 + z / 2), for z >= 0; 5e-7.

   z^2 is taken in two parts, the first without rounding. */
struct bnn_bell {
    float height, rest;
};

BNN_INLINE struct bnn_bell bnn_bell_of_positive(float z) {
    const float bound = z > 11.0f ? 11.0f : z; /* 0 from 10.06 on */
    const float t = 1.0f / (1.0f + 0.5f * bound);
    float g = -5.91243722e-2f;
    g = g * t + 2.84845944e-1f;
    g = g * t + -4.87762411e-1f;
    g = g * t + 2.78712475e-1f;
    g = g * t + -2.70715556e-2f;
    g = g * t + 2.02876152e-1f;
    g = g * t + 2.43055751e-1f;
    g = g * t + 2.82381934e-1f;
    g = g * t + 2.82086039e-1f;
    uint32_t bits;
    memcpy(&bits, &bound, sizeof bits);
    bits &= 0xfffff000u;
    float high; /* 12 bits of z */
    memcpy(&high, &bits, sizeof high);
    const float height = bnn_exp_of_sum(-high * high, (high - bound) * (high + bound));
    return (struct bnn_bell){height, t * g * height};
}

BNN_INLINE float bnn_erfc_of_positive(float z) { return bnn_bell_of_positive(z).rest; }

/* x p(x^2) for |x| < 0.75. */
BNN_INLINE float bnn_erf_of_small(float x) {
    const float s = x * x;
    float p = -6.76109568e-4f;
    p = p * s + 5.11598169e-3f;
    p = p * s + -2.68354346e-2f;
    p = p * s + 1.12833930e-1f;
    p = p * s + -3.76126199e-1f;
    p = p * s + 1.28379166e-1f; /* and 1 */
    return x + x * p;
}

BNN_INLINE float bnn_erf(float x) {
    const float small = bnn_erf_of_small(x), large = 1.0f - bnn_erfc_of_positive(fabsf(x));
    return fabsf(x) < 0.75f ? small : copysignf(large, x);
}

/* 1 - erf(x), which keeps its digits where it is small. */
BNN_INLINE float bnn_erfc(float x) {
    const float rest = bnn_erfc_of_positive(fabsf(x));
    return x < 0 ? 2.0f - rest : rest;
}

/* x + x s q(s), s = x^2, for |x| < 0.625, else by exp. */
BNN_INLINE float bnn_tanh(float x) {
    const float s = x * x;
    float q = -5.71703656e-3f;
    q = q * s + 2.06505790e-2f;
    q = q * s + -5.37434953e-2f;
    q = q * s + 1.33314912e-1f;
    q = q * s + -3.33332839e-1f;
    const float small = x + x * (s * q), large = 1.0f - 2.0f / (bnn_exp(2.0f * fabsf(x)) + 1.0f);
    return fabsf(x) < 0.625f ? small : copysignf(large, x);
}

/* log(x), -inf of 0, NaN below; 1e-7.

   x = 2^n m, 1 / sqrt(2) <= m < sqrt(2), z = m - 1; log(m) = z - z^2 / 2 + z^3 p(z). Source: Cephes, logf. */
BNN_INLINE float bnn_log(float x) {
    const int is_small = x < 1.17549435e-38f; /* subnormal: 2^23 x is not */
    const float normal = is_small ? x * 8388608.0f : x;
    uint32_t bits;
    memcpy(&bits, &normal, sizeof bits);
    const uint32_t above = bits - 0x3f3504f3u; /* 1 / sqrt(2) */
    const float n = (float)((int32_t)above >> 23) - (is_small ? 23.0f : 0.0f);
    const uint32_t mantissa = (above & 0x007fffffu) + 0x3f3504f3u;
    float m;
    memcpy(&m, &mantissa, sizeof m);
    const float z = m - 1.0f, square = z * z;
    float p = 7.0376836292e-2f;
    p = p * z + -1.1514610310e-1f;
    p = p * z + 1.1676998740e-1f;
    p = p * z + -1.2420140846e-1f;
    p = p * z + 1.4249322787e-1f;
    p = p * z + -1.6668057665e-1f;
    p = p * z + 2.0000714765e-1f;
    p = p * z + -2.4999993993e-1f;
    p = p * z + 3.3333331174e-1f;
    const float low = z * square * p + n * -2.12194440e-4f - 0.5f * square;
    const float found = (z + low) + n * 0.693359375f;
    return x > 0 && x < INFINITY ? found : x == 0 ? -INFINITY : x > 0 ? x : NAN;
}

/* log(1 + e) for 0 <= e <= 1: what 1 + e rounds away is made good. */
BNN_INLINE float bnn_log_of_more(float e) {
    const float sum = 1.0f + e;
    return sum == 1.0f ? e : bnn_log(sum) * (e / (sum - 1.0f));
}

BNN_INLINE float bnn_softplus(float x) {
    return (x < 0 ? 0.0f : x) + bnn_log_of_more(bnn_exp(-fabsf(x)));
}

BNN_INLINE float bnn_sigmoid(float x) {
    const float e = bnn_exp(-fabsf(x)); /* at most 1: nothing overflows */
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

/* x Phi(x), by erfc: 1 + erf would lose its digits where x is below 0. */
BNN_INLINE float bnn_gelu(float x) { return 0.5f * x * bnn_erfc(-0.70710678118654752f * x); }

/* Its derivative, Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi). */
BNN_INLINE float bnn_gelu_slope(float x) {
    const struct bnn_bell bell = bnn_bell_of_positive(0.70710678118654752f * fabsf(x));
    const float tail = 0.5f * bell.rest;
    const float along = x * (0.39894228040143268f * bell.height);
    return (x < 0 ? tail : 1.0f - tail) + (bell.height > 0 ? along : 0.0f); /* x may be infinite */
}

/* Near it, by tanh. */
BNN_INLINE float bnn_gelu_tanh(float x) {
    return 0.5f * x * (1.0f + bnn_tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

BNN_INLINE float bnn_gelu_tanh_slope(float x) {
    const float cubic = 0.044715f * x * x, a = 0.79788456080286536f;
    const float t = bnn_tanh(a * (x + cubic * x));
    const float rest = 1.0f - t * t, along = 0.5f * x * rest * (a * (1.0f + 3.0f * cubic));
    return 0.5f * (1.0f + t) + (rest > 0 ? along : 0.0f);
}

#endif
