/* The kernels that bnn_model.c calls; what they do is said where they are defined. */
#ifndef BNN_KERNELS_H
#define BNN_KERNELS_H

#include "kernels/bnn_half.h"
#include "kernels/bnn_products.h"
#include "kernels/bnn_update.h"

{{prototypes}}
#endif
