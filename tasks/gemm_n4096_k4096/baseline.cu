/* Tiles of C by mma.sync: tiles of A and B come by cp.async into a ring of stages in shared memory, sums are in float. The
 * tile follows M: 16 rows at least, whose missing ones are zeros. */
#include "task.h"
#include <cuda_fp16.h>

enum { N = KM_AXIS_N, K = KM_AXIS_K };

__device__ static unsigned shared_address(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes to shared memory; zeros if not `valid`. */
__device__ static void copy_async(void *to, const void *from, bool valid)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ static void copy_commit()
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until no more than PENDING groups are under way. */
template <int PENDING> __device__ static void copy_wait()
{
	asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* Four, or two, matrices of 8 x 8 halves; lane i gives the address of row i % 8 of matrix i / 8. */
__device__ static void load_matrix4(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

__device__ static void load_matrix2(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
		     : "=r"(to[0]), "=r"(to[1]) : "r"(shared_address(row)) : "memory");
}

/* 16 x 8 sums += 16 x 16 times 16 x 8 halves. */
__device__ static void multiply_add(float *sum, const unsigned *a, const unsigned *b)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* A tile of ROWS rows and BK halves each, in chunks of 16 bytes, exchanged within a row so that eight rows of one chunk
 * column lie in different banks. */
template <int ROWS, int BK> struct tile {
	uint4 chunks[ROWS * BK / 8];

	__device__ uint4 *at(int row, int chunk)
	{
		int turn = BK == 32 ? row >> 1 & 3 : row & 7;

		return &chunks[row * (BK / 8) + (chunk ^ turn)];
	}
};

template <int BM, int BN, int BK, int WARPS_M, int WARPS_N, int STAGES> struct gemm {
	static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
	static constexpr int ROWS = BM / WARPS_M / 16, COLUMNS = BN / WARPS_N / 8; /* 16 x 8 pieces of a warp */

	struct stage {
		tile<BM, BK> a;
		tile<BN, BK> b;
	};

	__device__ static void load(stage *s, const __half *A, const __half *B, int64_t M, int64_t m0, int n0, int k0)
	{
		for (int i = threadIdx.x; i < BM * BK / 8; i += THREADS) {
			int row = i / (BK / 8), chunk = i % (BK / 8);
			bool valid = m0 + row < M;

			copy_async(s->a.at(row, chunk), A + (valid ? m0 + row : 0) * K + k0 + chunk * 8, valid);
		}
		for (int i = threadIdx.x; i < BN * BK / 8; i += THREADS) {
			int row = i / (BK / 8), chunk = i % (BK / 8);

			copy_async(s->b.at(row, chunk), B + (int64_t)(n0 + row) * K + k0 + chunk * 8, true);
		}
	}

	__device__ static void multiply(stage *s, int wm, int wn, float (*sum)[COLUMNS][4])
	{
		int lane = threadIdx.x % 32;

		for (int k = 0; k < BK / 16; k++) {
			unsigned a[ROWS][4], b[COLUMNS][2];

			for (int i = 0; i < ROWS; i++)
				load_matrix4(a[i], s->a.at(wm + 16 * i + lane % 16, 2 * k + lane / 16));
			for (int j = 0; j < COLUMNS; j++)
				load_matrix2(b[j], s->b.at(wn + 8 * j + lane % 8, 2 * k + lane / 8 % 2));
			for (int i = 0; i < ROWS; i++)
				for (int j = 0; j < COLUMNS; j++)
					multiply_add(sum[i][j], a[i], b[j]);
		}
	}

	__device__ static void store(const float (*sum)[COLUMNS][4], __half *C, int64_t M, int64_t m, int n)
	{
		int lane = threadIdx.x % 32;

		for (int i = 0; i < ROWS; i++)
			for (int j = 0; j < COLUMNS; j++)
				for (int half = 0; half < 2; half++) {
					int64_t row = m + 16 * i + 8 * half + lane / 4;

					if (row < M)
						*(__half2 *)(C + row * N + n + 8 * j + lane % 4 * 2) =
							__floats2half2_rn(sum[i][j][2 * half], sum[i][j][2 * half + 1]);
				}
	}

	__device__ static void run(stage *stages, const __half *A, const __half *B, __half *C, int64_t M)
	{
		int64_t m0 = blockIdx.y * (int64_t)BM;
		int n0 = blockIdx.x * BN, warp = threadIdx.x / 32;
		int wm = warp / WARPS_N * (BM / WARPS_M), wn = warp % WARPS_N * (BN / WARPS_N);
		float sum[ROWS][COLUMNS][4] = {};

		for (int s = 0; s < STAGES - 1; s++) {
			load(&stages[s], A, B, M, m0, n0, s * BK);
			copy_commit();
		}
		for (int step = 0; step < K / BK; step++) {
			int next = step + STAGES - 1;

			copy_wait<STAGES - 2>();
			__syncthreads();
			if (next < K / BK)
				load(&stages[next % STAGES], A, B, M, m0, n0, next * BK);
			copy_commit();
			multiply(&stages[step % STAGES], wm, wn, sum);
		}
		store(sum, C, M, m0 + wm, n0 + wn);
	}
};

template <class G> __global__ void __launch_bounds__(G::THREADS) kernel(const __half *A, const __half *B, __half *C, int64_t M)
{
	__shared__ __align__(128) unsigned char stages[sizeof(typename G::stage[G::STAGE_COUNT])];

	G::run((typename G::stage *)stages, A, B, C, M);
}

template <int BM, int BN, int BK, int WARPS_M, int WARPS_N, int STAGES> struct shape : gemm<BM, BN, BK, WARPS_M, WARPS_N, STAGES> {
	static constexpr int STAGE_COUNT = STAGES;

	static void launch(const struct km_args *a)
	{
		dim3 grid(N / BN, (unsigned)((a->M + BM - 1) / BM));

		kernel<shape><<<grid, shape::THREADS, 0, (cudaStream_t)a->stream>>>((const __half *)a->A, (const __half *)a->B, (__half *)a->C, a->M);
	}
};

int km_run(const struct km_args *a)
{
	if (a->M <= 16)
		shape<16, 32, 64, 1, 4, 6>::launch(a);
	else if (a->M <= 64)
		shape<64, 32, 64, 2, 2, 4>::launch(a);
	else if (a->M <= 512)
		shape<64, 64, 64, 2, 2, 3>::launch(a);
	else
		shape<128, 128, 32, 2, 4, 3>::launch(a);
	return (int)cudaGetLastError();
}
