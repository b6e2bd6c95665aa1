/* Tensors of any of the types that maps have, read and written as floats, one tile at a time. */
#ifndef BNN_TILES_H
#define BNN_TILES_H

#include "bnn_half.h"

enum { BNN_TILE = 512 }; /* floats: a few of them stay in the first cache */

/* Element i. */
BNN_INLINE float bnn_float_at(const void *x, i64 i, enum bnn_type type) {
    if (type == BNN_I16) return ((const int16_t *)x)[i];
    if (type == BNN_I8) return ((const int8_t *)x)[i];
    if (type == BNN_F16) return bnn_half_to_float(((const bnn_half *)x)[i]);
    return ((const float *)x)[i];
}

/* Elements i .. i + n - 1 as floats: where they lie, or converted into `tile`. */
BNN_INLINE const float *bnn_floats(const void *x, i64 i, i64 n, enum bnn_type type, float *tile) {
    if (type == BNN_F32) return (const float *)x + i;
    if (type == BNN_F16) {
        bnn_decode_halves((const bnn_half *)x + i, tile, n);
        return tile;
    }
    if (type == BNN_I8) {
        const int8_t *bytes = (const int8_t *)x + i;
        for (i64 j = 0; j < n; j++) tile[j] = bytes[j];
        return tile;
    }
    const int16_t *integers = (const int16_t *)x + i;
    for (i64 j = 0; j < n; j++) tile[j] = integers[j];
    return tile;
}

/* Where to put what becomes elements i .. i + n - 1: in their place, or `tile`. */
BNN_INLINE float *bnn_room(void *y, i64 i, enum bnn_type type, float *tile) {
    return type == BNN_F32 ? (float *)y + i : tile;
}

/* Puts floats that are not there yet into their place; integers come from integers. */
BNN_INLINE void bnn_keep(const float *tile, void *y, i64 i, i64 n, enum bnn_type type) {
    if (type == BNN_F16) bnn_encode_halves(tile, (bnn_half *)y + i, n);
    int16_t *integers = (int16_t *)y + i;
    for (i64 j = 0; type == BNN_I16 && j < n; j++) integers[j] = (int16_t)tile[j];
    int8_t *bytes = (int8_t *)y + i;
    for (i64 j = 0; type == BNN_I8 && j < n; j++) bytes[j] = (int8_t)tile[j];
}

/* The bits of the largest magnitude of n elements; NaN is larger than infinity. */
int32_t bnn_largest_magnitude(const void *x, i64 n, enum bnn_type type);

#endif
