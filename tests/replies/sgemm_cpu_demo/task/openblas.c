/* Peer: OpenBLAS, limited to one thread. Build it with `km-compile --task tasks/sgemm_cpu --library openblas`. */
#include "task.h"
#include <cblas.h>

int km_run(const struct km_args *a)
{
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)a->M, (int)a->N, (int)a->K, 1.0f, a->A, (int)a->K,
		    a->B, (int)a->N, 0.0f, a->C, (int)a->N);
	return 0;
}
