#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE,
	RANKS = 4, OWN = CKV / RANKS, OWN_PE = KPE / RANKS, /* columns of one CTA of a cluster */
	STEPS = (OWN + OWN_PE) / 16,                         /* 9 k-steps */
	PIECES = (OWN + OWN_PE) / 8,                         /* 18 pieces of 16 bytes a row */
	STRIDE = OWN + OWN_PE + 8,                           /* 304 bytes: 8 rows in different banks */
	TOKENS = 64, STAGES = 8, BUFFERS = 4,
	CONSUMERS = 8, PRODUCERS = 4, THREADS = 32 * (CONSUMERS + PRODUCERS),
	MOST = 32, LEAST = 32, /* clusters; tokens of a cluster */
};

struct shared {
	uint16_t kv[STAGES][TOKENS][STRIDE];
	float4 recv[BUFFERS][RANKS][CONSUMERS * 32];
	__nv_bfloat16 p[2][HEADS][TOKENS + 8];
	uint16_t q[HEADS][STRIDE];
	float old[2][HEADS];
	uint64_t full[STAGES], empty[STAGES], got[BUFFERS];
};

static_assert(sizeof(struct shared) <= 232448, "too much shared memory");

__device__ static __forceinline__ unsigned shared_address(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}

__device__ static __forceinline__ void barrier_init(uint64_t *b, unsigned count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}

__device__ static __forceinline__ void barrier_arrive(uint64_t *b)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

__device__ static __forceinline__ void barrier_expect(uint64_t *b, unsigned bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}

__device__ static __forceinline__ void barrier_wait(uint64_t *b, unsigned parity)
{
	unsigned done;

	do {
		asm volatile("{\n\t.reg .pred p;\n\t"
			     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
			     "selp.u32 %0, 1, 0, p;\n\t}"
			     : "=r"(done) : "r"(shared_address(b)), "r"(parity) : "memory");
	} while (!done);
}

/* 16 bytes to shared memory; zeros if not `valid`. */
__device__ static __forceinline__ void copy_async(void *to, const void *from, bool valid)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

/* Arrives once the copies of this thread so far are done. */
__device__ static __forceinline__ void copy_arrive(uint64_t *b)
{
	asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(b)) : "memory");
}

__device__ static __forceinline__ unsigned remote_address(unsigned address, unsigned rank)
{
	unsigned to;

	asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(address), "r"(rank));
	return to;
}

__device__ static __forceinline__ void send_async(unsigned to, unsigned barrier, float x, float y, float z, float w)
{
	asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
		     ::"r"(to), "r"(__float_as_uint(x)), "r"(__float_as_uint(y)), "r"(__float_as_uint(z)), "r"(__float_as_uint(w)), "r"(barrier)
		     : "memory");
}

__device__ static __forceinline__ void cluster_arrive()
{
	asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ static __forceinline__ void cluster_wait()
{
	asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Barrier of the consumer warps. */
__device__ static __forceinline__ void consumers_sync()
{
	asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS * 32) : "memory");
}

__device__ static __forceinline__ void load_matrix4(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

__device__ static __forceinline__ void load_matrix2(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
		     : "=r"(to[0]), "=r"(to[1]) : "r"(shared_address(row)) : "memory");
}

__device__ static __forceinline__ void load_matrix4_turned(unsigned *to, const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}

__device__ static __forceinline__ void multiply_add(float *sum, const unsigned *a, const unsigned *b)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ static __forceinline__ float power2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

__device__ static __forceinline__ float warp_max(float x)
{
#pragma unroll
	for (int i = 16; i; i /= 2)
		x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
	return x;
}

__device__ static __forceinline__ float warp_sum(float x)
{
#pragma unroll
	for (int i = 16; i; i /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, i);
	return x;
}

/* Piece `piece` (16 bytes) of this CTA's columns of Q of sequence b: row piece / PIECES. */
__device__ static __forceinline__ const uint16_t *q_piece(const uint16_t *q_nope, const uint16_t *q_pe, int b, int piece, unsigned rank)
{
	int row = piece / PIECES, at = piece % PIECES;
	int64_t from = (int64_t)b * HEADS + row;

	return at < OWN / 8 ? q_nope + from * CKV + OWN * rank + at * 8 : q_pe + from * KPE + OWN_PE * rank + (at - OWN / 8) * 8;
}

__device__ static __forceinline__ int token_page(const int32_t *indices, int token, int hi)
{
	return token < hi ? __ldg(indices + token) : 0;
}

static __global__ void __cluster_dims__(RANKS, 1, 1) __launch_bounds__(THREADS, 1)
attend(const uint16_t *__restrict__ q_nope, const uint16_t *__restrict__ q_pe, const uint16_t *__restrict__ ckv,
       const uint16_t *__restrict__ kpe, const int32_t *__restrict__ indptr, const int32_t *__restrict__ indices,
       float scale, int batch, int total, int chunk, float *__restrict__ part_v, float2 *__restrict__ part_ms)
{
	extern __shared__ __align__(128) unsigned char raw[];
	struct shared *s = (struct shared *)raw;
	const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const int cluster = blockIdx.x / RANKS;
	const int lo = cluster * chunk, hi = total - lo < chunk ? total : lo + chunk;
	const int tiles = (hi - lo + TOKENS - 1) / TOKENS;
	const int pw = warp - CONSUMERS; /* producer warp */
	const int mine = lo + lane / 16 * TOKENS + 16 * pw + lane % 16;
	unsigned rank;
	int page[4] = {0, 0, 0, 0};

	asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
	if (warp >= CONSUMERS) {
#pragma unroll
		for (int j = 0; j < 4; j++)
			page[j] = token_page(indices, mine + j * 2 * TOKENS, hi);
	}
	if (threadIdx.x == 0) {
		for (int i = 0; i < STAGES; i++) {
			barrier_init(&s->full[i], PRODUCERS * 32);
			barrier_init(&s->empty[i], CONSUMERS);
		}
		for (int i = 0; i < BUFFERS; i++)
			barrier_init(&s->got[i], 1);
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		for (int i = 0; i < BUFFERS; i++)
			barrier_expect(&s->got[i], RANKS * CONSUMERS * 32 * 16);
	}
	__syncthreads();
	cluster_arrive();
	cudaTriggerProgrammaticLaunchCompletion();

	if (warp >= CONSUMERS) {
		for (int base = 0; base < tiles; base += STAGES) {
#pragma unroll
			for (int j = 0; j < 4; j++) {
#pragma unroll
				for (int h = 0; h < 2; h++) {
					const int stage = 2 * j + h, t = base + stage;

					if (t < tiles) {
						const int first = lo + t * TOKENS + 16 * pw;

						if (base > 0)
							barrier_wait(&s->empty[stage], (base / STAGES - 1) & 1);
						__syncwarp();
#pragma unroll
						for (int i = 0; i < 8; i++) {
							const int r = 2 * i + lane / 16;
							const int64_t from = __shfl_sync(0xffffffffu, page[j], h * 16 + r);

							copy_async(&s->kv[stage][16 * pw + r][lane % 16 * 8],
								   ckv + from * CKV + OWN * rank + lane % 16 * 8, first + r < hi);
						}
						{
							const int r = lane / 2;
							const int64_t from = __shfl_sync(0xffffffffu, page[j], h * 16 + r);

							copy_async(&s->kv[stage][16 * pw + r][OWN + lane % 2 * 8],
								   kpe + from * KPE + OWN_PE * rank + lane % 2 * 8, first + r < hi);
						}
						copy_arrive(&s->full[stage]);
					}
				}
				{
					/* of the tiles one round on; 64 bits, so that it cannot overflow near the end */
					const int64_t token = (int64_t)mine + (int64_t)(base + STAGES + 2 * j) * TOKENS;

					page[j] = token < hi ? __ldg(indices + token) : 0;
				}
			}
		}
		asm volatile("cp.async.wait_all;" ::: "memory");
		__syncwarp();
		cluster_wait();
	} else {
		float acc[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
		float max0 = -INFINITY, max1 = -INFINITY, sum0 = 0, sum1 = 0; /* heads warp and warp + 8 */
		unsigned q[STEPS][4];
		int nb = 0; /* sequence of the next step */

#pragma unroll
		for (int k = 0; k < STEPS; k++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				q[k][i] = 0;
		/* nb is the number of ends that are not beyond lo. */
		for (int base = 1; base <= batch; base += 128) {
			int v[4], count = 0;

#pragma unroll
			for (int k = 0; k < 4; k++) {
				int at = base + 32 * k + lane;

				v[k] = at <= batch ? __ldg(indptr + at) : 0x7fffffff;
			}
#pragma unroll
			for (int k = 0; k < 4; k++)
				count += __popc(__ballot_sync(0xffffffffu, v[k] <= lo));
			nb += count;
			if (count < 128)
				break;
		}
		int ne = __ldg(indptr + nb + 1); /* its end */
		int n0 = lo, n1 = min(min(hi - lo, (int)TOKENS) + lo, ne); /* tokens of the next step */
		bool fresh = true, have = true;
		int c0 = 0, c1 = 0, cb = 0, ce = 0; /* the same of the current step */

		__syncwarp();
		cluster_wait();
		for (int step = -1;; step++) {
			if (have) {
				/* Partial logits of the next step, to all CTAs of the cluster. */
				const int t = (n0 - lo) / TOKENS, stage = t % STAGES, buffer = (step + 1) % BUFFERS;

				if (fresh) {
					for (int i = threadIdx.x; i < HEADS * PIECES; i += CONSUMERS * 32) {
						uint4 x = __ldg((const uint4 *)q_piece(q_nope, q_pe, nb, i, rank));

						*(uint4 *)&s->q[i / PIECES][i % PIECES * 8] = x;
					}
					__syncwarp();
					consumers_sync();
#pragma unroll
					for (int k = 0; k < STEPS; k++)
						load_matrix4(q[k], &s->q[lane % 16][16 * k + lane / 16 * 8]);
					if (ne < hi && nb + 1 < batch) {
						for (int i = threadIdx.x; i < HEADS * PIECES; i += CONSUMERS * 32)
							asm volatile("prefetch.global.L2 [%0];" ::"l"(q_piece(q_nope, q_pe, nb + 1, i, rank)));
					}
					__syncwarp();
				}
				barrier_wait(&s->full[stage], (t / STAGES) & 1);
				__syncwarp();
				{
					float d[3][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}};
					const uint16_t *row = &s->kv[stage][8 * warp + lane % 8][lane / 8 * 8];
					unsigned k4[4][4], k2[2];

#pragma unroll
					for (int i = 0; i < 4; i++)
						load_matrix4(k4[i], row + 32 * i);
					load_matrix2(k2, &s->kv[stage][8 * warp + lane % 8][OWN + (lane / 8 & 1) * 8]);
#pragma unroll
					for (int i = 0; i < 4; i++) {
						multiply_add(d[2 * i % 3], q[2 * i], &k4[i][0]);
						multiply_add(d[(2 * i + 1) % 3], q[2 * i + 1], &k4[i][2]);
					}
					multiply_add(d[2], q[8], k2);
#pragma unroll
					for (int i = 0; i < 4; i++)
						d[0][i] += d[1][i] + d[2][i];

					const unsigned to = shared_address(&s->recv[buffer][rank][warp * 32 + (lane ^ (warp & 1) * 4)]);
					const unsigned bar = shared_address(&s->got[buffer]);

#pragma unroll
					for (unsigned i = 0; i < RANKS; i++)
						send_async(remote_address(to, i), remote_address(bar, i), d[0][0], d[0][1], d[0][2], d[0][3]);
				}
			}
			if (step < 0) {
				consumers_sync(); /* s->q may be written again */
			} else {
				const int t = (c0 - lo) / TOKENS, stage = t % STAGES, buffer = step % BUFFERS, turn = step & 1;
				const int tile = lo + t * TOKENS;

				barrier_wait(&s->got[buffer], (step / BUFFERS) & 1);
				if (threadIdx.x == 0)
					barrier_expect(&s->got[buffer], RANKS * CONSUMERS * 32 * 16);
				__syncwarp();
				{
					const int w8 = lane / 4, at = w8 * 32 + ((warp * 4 + lane % 4) ^ (w8 & 1) * 4);
					float4 x = s->recv[buffer][0][at];

#pragma unroll
					for (int i = 1; i < RANKS; i++) {
						float4 y = s->recv[buffer][i][at];

						x.x += y.x;
						x.y += y.y;
						x.z += y.z;
						x.w += y.w;
					}

					const int token = 2 * lane; /* and the next, in the tile */
					const bool in0 = token >= c0 - tile && token < c1 - tile;
					const bool in1 = token + 1 >= c0 - tile && token + 1 < c1 - tile;

					x.x = in0 ? x.x * scale : -INFINITY;
					x.y = in1 ? x.y * scale : -INFINITY;
					x.z = in0 ? x.z * scale : -INFINITY;
					x.w = in1 ? x.w * scale : -INFINITY;

					const float new0 = fmaxf(max0, warp_max(fmaxf(x.x, x.y)));
					const float new1 = fmaxf(max1, warp_max(fmaxf(x.z, x.w)));
					const float old0 = power2(max0 - new0), old1 = power2(max1 - new1);

					x.x = power2(x.x - new0);
					x.y = power2(x.y - new0);
					x.z = power2(x.z - new1);
					x.w = power2(x.w - new1);
					max0 = new0;
					max1 = new1;
					sum0 = sum0 * old0 + (x.x + x.y);
					sum1 = sum1 * old1 + (x.z + x.w);
					*(__nv_bfloat162 *)&s->p[turn][warp][token] = __floats2bfloat162_rn(x.x, x.y);
					*(__nv_bfloat162 *)&s->p[turn][warp + 8][token] = __floats2bfloat162_rn(x.z, x.w);
					if (lane == 0) {
						s->old[turn][warp] = old0;
						s->old[turn][warp + 8] = old1;
					}
				}
				__syncwarp();
				consumers_sync();
				{
					const float old0 = s->old[turn][lane / 4], old1 = s->old[turn][lane / 4 + 8];

#pragma unroll
					for (int n = 0; n < 2; n++) {
						acc[n][0] *= old0;
						acc[n][1] *= old0;
						acc[n][2] *= old1;
						acc[n][3] *= old1;
					}
#pragma unroll
					for (int k = 0; k < TOKENS / 16; k++) {
						unsigned a[4], v[4];

						load_matrix4(a, &s->p[turn][lane % 16][16 * k + lane / 16 * 8]);
						load_matrix4_turned(v, &s->kv[stage][16 * k + lane % 16][16 * warp + lane / 16 * 8]);
						multiply_add(acc[0], a, &v[0]);
						multiply_add(acc[1], a, &v[2]);
					}
				}
				__syncwarp();
				if (c1 == hi || c1 == tile + TOKENS) {
					if (lane == 0)
						barrier_arrive(&s->empty[stage]);
					__syncwarp();
				}
				if (c1 == hi || c1 == ce) {
					const int64_t slot = (int64_t)cluster + cb;
					float *v = part_v + (slot * HEADS + lane / 4) * CKV + OWN * rank + 16 * warp + lane % 4 * 2;

#pragma unroll
					for (int n = 0; n < 2; n++) {
						*(float2 *)(v + 8 * n) = make_float2(acc[n][0], acc[n][1]);
						*(float2 *)(v + 8 * CKV + 8 * n) = make_float2(acc[n][2], acc[n][3]);
#pragma unroll
						for (int i = 0; i < 4; i++)
							acc[n][i] = 0;
					}
					if (rank == 0) {
						const float all0 = warp_sum(sum0), all1 = warp_sum(sum1);

						if (lane == 0) {
							part_ms[slot * HEADS + warp] = make_float2(max0, all0);
							part_ms[slot * HEADS + warp + 8] = make_float2(max1, all1);
						}
						__syncwarp();
					}
					max0 = max1 = -INFINITY;
					sum0 = sum1 = 0;
				}
				if (c1 == hi)
					break;
			}
			c0 = n0;
			c1 = n1;
			cb = nb;
			ce = ne;
			have = n1 < hi;
			if (have) {
				n0 = n1;
				fresh = n0 == ne;
				if (fresh) {
					do {
						nb++;
						ne = __ldg(indptr + nb + 1);
					} while (ne <= n0);
				}

				const int tile = lo + (n0 - lo) / TOKENS * TOKENS;

				n1 = min(tile + min(hi - tile, (int)TOKENS), ne);
			}
		}
		__syncwarp();
	}
	/* Nobody leaves before the others are done with its shared memory. */
	cluster_arrive();
	cluster_wait();
}

/* Joins the parts of one head of one sequence, at most MOST = 32. A warp has G groups of lanes, each for every G-th part. */
template <int G>
static __global__ void __launch_bounds__(128 * G)
finish(const float *part_v, const float2 *part_ms, const int32_t *indptr, int chunk, uint16_t *output, float *lse)
{
	constexpr int U = G == 1 ? 4 : 8, LANES = 32 / G;
	const int b = blockIdx.x / HEADS, head = blockIdx.x % HEADS;
	const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const int column = (warp * LANES + lane % LANES) * 4, group = lane / LANES;
	const int from = __ldg(indptr + b), to = __ldg(indptr + b + 1);
	const int first = from / chunk, count = to > from ? (to - 1) / chunk - first + 1 : 0;
	const int64_t slot = (int64_t)first + b;
	const float *v = part_v + (slot * HEADS + head) * CKV + column;
	const float2 *ms = part_ms + slot * HEADS + head;
	float4 x[U], sum = make_float4(0, 0, 0, 0);
	float2 mine = make_float2(-INFINITY, 0);

	cudaGridDependencySynchronize();
	if (lane < count)
		mine = __ldcg(ms + lane * HEADS);
#pragma unroll
	for (int i = 0; i < U; i++) {
		int p = i * G + group;

		x[i] = make_float4(0, 0, 0, 0);
		if (p < count)
			x[i] = __ldcg((const float4 *)(v + (int64_t)p * HEADS * CKV));
	}

	const float max = warp_max(mine.x);
	float weight = lane < count ? power2(mine.x - max) : 0;
	const float all = warp_sum(weight * mine.y);

	weight = all > 0 ? weight / all : 0;
	for (int base = 0; base < count; base += U * G) {
		if (base > 0) {
#pragma unroll
			for (int i = 0; i < U; i++) {
				int p = base + i * G + group;

				x[i] = make_float4(0, 0, 0, 0);
				if (p < count)
					x[i] = __ldcg((const float4 *)(v + (int64_t)p * HEADS * CKV));
			}
		}
#pragma unroll
		for (int i = 0; i < U; i++) {
			/* lanes from count on have weight 0; base + i * G + group < 32 */
			float w = __shfl_sync(0xffffffffu, weight, (base + i * G + group) & 31);

			sum.x += w * x[i].x;
			sum.y += w * x[i].y;
			sum.z += w * x[i].z;
			sum.w += w * x[i].w;
		}
	}
#pragma unroll
	for (int i = LANES; i < 32; i *= 2) {
		sum.x += __shfl_xor_sync(0xffffffffu, sum.x, i);
		sum.y += __shfl_xor_sync(0xffffffffu, sum.y, i);
		sum.z += __shfl_xor_sync(0xffffffffu, sum.z, i);
		sum.w += __shfl_xor_sync(0xffffffffu, sum.w, i);
	}
	if (group == 0) {
		__nv_bfloat162 *out = (__nv_bfloat162 *)(output + (int64_t)blockIdx.x * CKV + column);

		out[0] = __floats2bfloat162_rn(sum.x, sum.y);
		out[1] = __floats2bfloat162_rn(sum.z, sum.w);
	}
	if (threadIdx.x == 0)
		lse[blockIdx.x] = all > 0 ? max + log2f(all) : -INFINITY;
}

size_t km_workspace(const struct km_args *a)
{
	return (size_t)(a->batch_size + MOST) * HEADS * (CKV * sizeof(float) + sizeof(float2));
}

int km_init(const struct km_args *)
{
	return (int)cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));
}

/* As many clusters as are on the device at the same time, at most MOST. */
static int clusters()
{
	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1];
	int count = 0;

	attribute[0].id = cudaLaunchAttributeClusterDimension;
	attribute[0].val.clusterDim.x = RANKS;
	attribute[0].val.clusterDim.y = 1;
	attribute[0].val.clusterDim.z = 1;
	config.gridDim = dim3(RANKS * MOST);
	config.blockDim = dim3(THREADS);
	config.dynamicSmemBytes = sizeof(struct shared);
	config.attrs = attribute;
	config.numAttrs = 1;
	if (cudaOccupancyMaxActiveClusters(&count, attend, &config) != cudaSuccess) {
		(void)cudaGetLastError();
		count = MOST;
	}
	return count < 1 || count > MOST ? (int)MOST : count;
}

int km_run(const struct km_args *a)
{
	cudaStream_t stream = (cudaStream_t)a->stream;
	const int batch = (int)a->batch_size;
	const int64_t total = a->num_kv_indices;
	float *part_v = (float *)a->workspace;
	float2 *part_ms = (float2 *)(part_v + (a->batch_size + MOST) * HEADS * CKV);
	int chunk = LEAST;

	if (batch < 1)
		return 0;
	if (total > 0) {
		const int64_t most = clusters(), share = (total + most - 1) / most;

		if (share > chunk)
			chunk = (int)share;

		const unsigned count = (unsigned)((total + chunk - 1) / chunk);

		attend<<<count * RANKS, THREADS, sizeof(struct shared), stream>>>(
			a->q_nope, a->q_pe, a->ckv_cache, a->kpe_cache, a->kv_indptr, a->kv_indices, a->sm_scale * 1.4426950408889634f, batch,
			(int)total, chunk, part_v, part_ms);

		cudaError_t error = cudaGetLastError();

		if (error != cudaSuccess)
			return (int)error;
	}

	cudaLaunchConfig_t config = {};
	cudaLaunchAttribute attribute[1];
	cudaError_t error;

	attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attribute[0].val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = dim3((unsigned)(batch * HEADS));
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = total > 0 ? 1 : 0;
	if (batch <= 32) {
		config.blockDim = dim3(128 * 4);
		error = cudaLaunchKernelEx(&config, finish<4>, (const float *)part_v, (const float2 *)part_ms, a->kv_indptr, chunk, a->output, a->lse);
	} else {
		config.blockDim = dim3(128);
		error = cudaLaunchKernelEx(&config, finish<1>, (const float *)part_v, (const float2 *)part_ms, a->kv_indptr, chunk, a->output, a->lse);
	}
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
