/* {{model}} at -{{level}}, batches of {{batch}}, {{optimizer}}, {{loss_name}}; made by bnnopt emit.

   Every call below is one of the planned step: its operands lie at fixed places of the arena, of the
   state, or in constants. */
#include "bnn_model.h"

#include <math.h>
#include <string.h>

#include "bnn_kernels.h"

#define ARENA(offset) ((void *)(bnn_arena + (offset)))
#define STATE(offset) ((void *)(bnn_state + (offset)))
#define CONSTANT(name, offset) ((const void *)((const char *)(name) + (offset)))

unsigned char bnn_arena[BNN_ARENA_BYTES] BNN_ALIGNED;
unsigned char bnn_state[BNN_STATE_BYTES] BNN_ALIGNED;
const size_t bnn_arena_bytes = BNN_ARENA_BYTES, bnn_state_bytes = BNN_STATE_BYTES;
const char *bnn_error;
{{output_places}}
static int diverged; /* set by steps of weights that are not finite */

{{constants}}

{{spill}}{{objects}}

{{initial}}

void bnn_reset(void) {
    memset(bnn_state, 0, BNN_STATE_BYTES);
{{reset}}
}

static int failed(const char *node) {
    bnn_error = node;
    return 0;
}

/* Whoever has put it there already has nothing copied. */
static void feed(void *to, const void *from, size_t n) {
    if (to != from) memcpy(to, from, n);
}

#if BNN_UNDO
static unsigned char before[BNN_STATE_BYTES];
static void keep(void) { memcpy(before, bnn_state, BNN_STATE_BYTES); }
static void undo(void) { memcpy(bnn_state, before, BNN_STATE_BYTES); }
#else
static void keep(void) {}
static void undo(void) {}
#endif

static int are_finite(const void *at, i64 n) {
    const float *x = at;
    for (i64 i = 0; i < n; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

static int train(void) {
{{training}}
{{finite}}
    return 1;
}

float bnn_train_step({{train_parameters}}float lr) {
    int64_t step;
    memcpy(&step, bnn_state, sizeof step);
    step++;
    (void)lr;
{{feed_training}}
    bnn_error = NULL;
    diverged = 0;
    keep();
    if (!train()) {
        undo();
        return NAN;
    }
    memcpy(bnn_state, &step, sizeof step);
    return *(const float *){{loss}};
}

static int predict(void) {
{{evaluation}}
    return 1;
}

const {{output_type}} *bnn_predict({{predict_parameters}}) {
{{feed_evaluation}}
    bnn_error = NULL;
    return predict() ? {{prediction}} : NULL;
}
