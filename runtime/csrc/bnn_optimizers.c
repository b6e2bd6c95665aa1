/* Optimiser steps, with the numpy kernels' operations in their order: equal to the last bit.

   A step works on blocks of float32. The gradient of a block is there, or is made of its sign bits
   and the weights: dw = +-scale, 0 where |w| > limit. The outputs may be the buffers of w, m and v. */
#include "bnn_variants.h"

#include <math.h>

enum rule { SGD, MOMENTUM, ADAM, FIRST_MOMENT };
enum { BLOCK = 512 };

struct rates {
    float rate, keep1, take1, keep2, take2, correction2, epsilon, scale, limit;
};

struct step {
    enum rule rule;
    struct rates rates;
    const float *w, *dw, *m, *v;
    const uint8_t *bits; /* instead of dw: rows of row_bytes, as bnn_pack.c lays them out */
    float *next_w, *next_m, *next_v;
    i64 row, row_bytes, piece, pieces; /* elements and bytes a row, elements and number of pieces */
};

BNN_INLINE void sgd_step(const struct rates *rates, const float *w, const float *dw, float *next_w,
                         i64 n) {
    const float rate = rates->rate;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) next_w[i] = w[i] - dw[i] * rate;
}

BNN_INLINE void momentum_step(const struct rates *rates, const float *w, const float *dw,
                              const float *m, float *next_w, float *next_m, i64 n) {
    const float rate = rates->rate, keep = rates->keep1;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], moment = m[i] * keep + dw[i];
        next_m[i] = moment;
        next_w[i] = weight - moment * rate;
    }
}

BNN_INLINE void first_moment_step(const struct rates *rates, const float *w, const float *dw,
                                  const float *m, float *next_w, float *next_m, i64 n) {
    const float rate = rates->rate, keep = rates->keep1, take = rates->take1;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], moment = m[i] * keep + dw[i] * take;
        next_m[i] = moment;
        next_w[i] = weight - moment * rate;
    }
}

BNN_INLINE void adam_step(const struct rates *rates, const float *w, const float *dw,
                          const float *m, const float *v, float *next_w, float *next_m,
                          float *next_v, i64 n) {
    const struct rates r = *rates;
    BNN_SAME_OR_APART
    for (i64 i = 0; i < n; i++) {
        float weight = w[i], slope = dw[i];
        float first = m[i] * r.keep1 + slope * r.take1;
        float second = slope * slope * r.take2 + v[i] * r.keep2;
        float bottom = sqrtf(second / r.correction2) + r.epsilon;
        next_m[i] = first;
        next_v[i] = second;
        next_w[i] = weight - first * r.rate / bottom;
    }
}

/* dw of the weights w, from bit 0 of `bits` on. Times 0 or 1, as in the operator's body. */
BNN_INLINE void sign_grad(const struct rates *r, const uint8_t *bits, const float *w, float *dw,
                          i64 n) {
    const float scale = r->scale, limit = r->limit;
    i64 i = 0;
    for (; i + 8 <= n; i += 8)
        for (i64 j = 0; j < 8; j++) {
            float sign = (bits[i / 8] & (1 << j)) ? scale : -scale;
            dw[i + j] = sign * (float)(fabsf(w[i + j]) <= limit);
        }
    for (; i < n; i++) {
        float sign = (bits[i / 8] & (1 << i % 8)) ? scale : -scale;
        dw[i] = sign * (float)(fabsf(w[i]) <= limit);
    }
}

BNN_INLINE void block_step(const struct step *s, i64 at, const uint8_t *bits, i64 n) {
    float made[BLOCK];
    const float *w = s->w + at, *m = s->m + at, *dw = bits ? made : s->dw + at;
    float *next_w = s->next_w + at, *next_m = s->next_m + at;
    if (bits) sign_grad(&s->rates, bits, w, made, n);
    if (s->rule == SGD) sgd_step(&s->rates, w, dw, next_w, n);
    if (s->rule == MOMENTUM) momentum_step(&s->rates, w, dw, m, next_w, next_m, n);
    if (s->rule == FIRST_MOMENT) first_moment_step(&s->rates, w, dw, m, next_w, next_m, n);
    if (s->rule == ADAM)
        adam_step(&s->rates, w, dw, m, s->v + at, next_w, next_m, s->next_v + at, n);
}

BNN_INLINE void step_pieces(void *context, i64 begin, i64 end) {
    const struct step *s = context;
    for (i64 i = begin; i < end; i++) {
        i64 row = i / s->pieces, start = i % s->pieces * s->piece;
        i64 n = bnn_min(s->piece, s->row - start);
        for (i64 j = 0; j < n; j += BLOCK) {
            const uint8_t *bits = s->bits + row * s->row_bytes + (start + j) / 8;
            block_step(s, row * s->row + start + j, s->bits ? bits : NULL, bnn_min(BLOCK, n - j));
        }
    }
}

BNN_BOTH(step_pieces)

/* w, m, v and the outputs: rows x row floats; m and v may be NULL where the rule has none. Either
   dw, of the same shape, or bits: rows x ceil(row / 8) bytes. `numbers` are those of struct rates:
   rate, beta1, 1 - beta1, beta2, 1 - beta2, 1 - beta2^step, epsilon, scale, limit. The rate of Adam
   is lr / (1 - beta1^step); that of the first moment is that over (root + epsilon). */
BNN_EXPORT void bnn_optimizer_step_f32(i64 rule, const float *w, const float *dw,
                                       const uint8_t *bits, const float *m, const float *v,
                                       float *next_w, float *next_m, float *next_v, i64 rows,
                                       i64 row, const float *numbers) {
    struct step s = {.rule = (enum rule)rule, .w = w, .dw = dw, .m = m, .v = v, .bits = bits,
                     .next_w = next_w, .next_m = next_m, .next_v = next_v, .row = row};
    memcpy(&s.rates, numbers, sizeof s.rates);
    if (!bits || row % 8 == 0) { /* no spare bits: one long row */
        s.row *= rows;
        rows = rows > 0;
    }
    s.row_bytes = bnn_ceil_div(s.row, 8);
    s.piece = BNN_GRAIN;
    s.pieces = bnn_ceil_div(s.row, s.piece);
    bnn_parallel(rows * s.pieces, bnn_grain_of(bnn_min(s.row, s.piece)), BNN_PICK(step_pieces), &s);
}
