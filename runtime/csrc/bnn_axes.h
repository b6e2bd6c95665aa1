/* Tensors of six axes, each with strides of its own. */
#ifndef BNN_AXES_H
#define BNN_AXES_H

#include "bnn_variants.h"

enum { BNN_AXES = 6 };

/* Elements up to the first one of a row, counted over all axes but the last. */
BNN_INLINE i64 bnn_offset_of(i64 row, const i64 *lengths, const i64 *strides) {
    i64 offset = 0;
    for (int axis = BNN_AXES - 2; axis >= 0; axis--) {
        offset += row % lengths[axis] * strides[axis];
        row /= lengths[axis];
    }
    return offset;
}

#endif
