/* Bytes as floats, each channel with a factor and a shift; rounded after each of the two. */
#include "bnn_normalize.h"

typedef struct {
    const uint8_t *x;
    const float *factor, *shift;
    float *y;
    i64 channels, plane;
} normalization;

/* Planes begin .. end - 1. */
BNN_INLINE void normalize(void *context, i64 begin, i64 end) {
    const normalization *p = context;
    for (i64 i = begin; i < end; i++) {
        const i64 c = i % p->channels;
        bnn_normalize(p->x + i * p->plane, p->plane, 1, p->factor[c], p->shift[c],
                      p->y + i * p->plane);
    }
}
BNN_BOTH(normalize)

/* The same of planes of one element: rows begin .. end - 1. */
BNN_INLINE void normalize_rows(void *context, i64 begin, i64 end) {
    const normalization *p = context;
    for (i64 i = begin; i < end; i++)
        bnn_normalize_row(p->x + i * p->channels, p->channels, p->factor, p->shift,
                          p->y + i * p->channels);
}
BNN_BOTH(normalize_rows)

/* y (n, channels, plane) = x * factor + shift, these (channels,). */
BNN_EXPORT void bnn_normalize_u8f32(const uint8_t *x, const float *factor, const float *shift,
                                    float *y, i64 n, i64 channels, i64 plane) {
    normalization p = {x, factor, shift, y, channels, plane};
    if (plane == 1)
        bnn_parallel(n, bnn_grain_of(channels), BNN_PICK(normalize_rows), &p);
    else
        bnn_parallel(n * channels, bnn_grain_of(plane), BNN_PICK(normalize), &p);
}
