/* device_wgmma.cuh - products of matrices as fast as tensor cores make them, for the probe. */
#ifndef KM_DEVICE_WGMMA_CUH
#define KM_DEVICE_WGMMA_CUH

#include "device.h"

#include <cuda_runtime.h>

enum device_matrix { DEVICE_TF32, DEVICE_BF16, DEVICE_FP16, DEVICE_FP8 };

/* 32 bits that hold random numbers of this type, of either sign and a size in [1, 2): on zeros tensor cores are faster. */
__device__ static inline unsigned device_matrix_bits(enum device_matrix type, unsigned index)
{
	unsigned u = (index + 1) * 0x9e3779b9u;

	u = (u ^ (u >> 16)) * 0x85ebca6bu;
	u ^= u >> 13;
	switch (type) {
	case DEVICE_TF32: return 0x3f800000 | (u & 0x807fffff);
	case DEVICE_BF16: return 0x3f803f80 | (u & 0x807f807f);
	case DEVICE_FP16: return 0x3c003c00 | (u & 0x83ff83ff);
	default: return 0x38383838 | (u & 0x87878787);
	}
}

/* Start `passes` passes on a device of compute capability 9.0; how many operations that is to *operations. Nothing is
 * ever written to `never`. */
int device_wgmma(struct device *d, enum device_matrix type, unsigned passes, float *never, double *operations, struct error *err);

#endif
