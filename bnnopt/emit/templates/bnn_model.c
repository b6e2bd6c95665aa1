/* {{model}} at -{{level}}, batches of {{batch}}, {{optimizer}}, {{loss_name}}; made by bnnopt emit.

   Every call below is one of the planned step: its operands lie at fixed places of the arena, of the
   state, or in constants. */
#include "bnn_model.h"

#include <math.h>
#include <string.h>

#include "bnn_kernels.h"

unsigned char bnn_arena[BNN_ARENA_BYTES] BNN_ALIGNED;
unsigned char bnn_state[BNN_STATE_BYTES] BNN_ALIGNED;
const size_t bnn_arena_bytes = BNN_ARENA_BYTES, bnn_state_bytes = BNN_STATE_BYTES;
const char *bnn_error;

#define ARENA(offset) ((void *)(bnn_arena + (offset)))
#define STATE(offset) ((void *)(bnn_state + (offset)))
#define CONSTANT(name, offset) ((const void *)((const char *)(name) + (offset)))

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

static int train(void) {
{{training}}
    return 1;
}

float bnn_train_step({{train_parameters}}float lr) {
    int64_t step;
    memcpy(&step, bnn_state, sizeof step);
    step++;
    (void)lr;
{{feed_training}}
    diverged = 0;
    if (!train()) return NAN;
    memcpy(bnn_state, &step, sizeof step);
    return *(const float *){{loss}};
}

static int predict(void) {
{{evaluation}}
    return 1;
}

const {{output_type}} *bnn_predict({{predict_parameters}}) {
{{feed_evaluation}}
    return predict() ? {{prediction}} : NULL;
}
