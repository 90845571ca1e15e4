/* Peer: cuBLAS, with float sums. Its handle is made in km_init, and its workspace is the caller's. */
#include "task.h"
#include <cublas_v2.h>

static cublasHandle_t handle;

size_t km_workspace(const struct km_args *)
{
	return 32 << 20;
}

int km_init(const struct km_args *)
{
	return handle ? 0 : (int)cublasCreate(&handle);
}

/* Column-major, C^T is B A^T: B is stored as K x N and taken transposed. */
int km_run(const struct km_args *a)
{
	const float one = 1, zero = 0;
	int result = (int)cublasSetStream(handle, (cudaStream_t)a->stream);

	if (result == 0)
		result = (int)cublasSetWorkspace(handle, a->workspace, a->workspace_bytes);
	if (result != 0)
		return result;
	return (int)cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, (int)a->N, (int)a->M, (int)a->K, &one, a->B, CUDA_R_16F, (int)a->K, a->A,
				 CUDA_R_16F, (int)a->K, &zero, a->C, CUDA_R_16F, (int)a->N, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}
