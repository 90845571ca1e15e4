#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE,
	RANKS = 2, OWN = CKV / RANKS, OWN_PE = KPE / RANKS, /* columns of ckv and of kpe of one CTA of a cluster */
	WIDTH = OWN + OWN_PE, PIECES = WIDTH / 8,           /* a row in shared memory, in elements and in 16 bytes */
	STEPS = WIDTH / 16,           /* 18 k-steps */
	PAIRS = STEPS / 2, AHEAD = 3, /* two k-steps a load; loads under way */
	STRIDE = WIDTH + 8,           /* 592 bytes = 37 * 16: 8 rows in different banks */
	TOKENS = 64,
	STAGES = 4, BUFFERS = 4,
	CONSUMERS = 8, PRODUCERS = 4, ROWS = TOKENS / PRODUCERS, THREADS = 32 * (CONSUMERS + PRODUCERS),
	COLUMNS = OWN / CONSUMERS,    /* of the output, of a warp */
	MOST = 66, LEAST = 48,        /* clusters; tokens of a cluster */
	MOST_FEW = 64,                /* clusters if there are few sequences: the join takes 64 parts at once */
};

struct shared {
	uint16_t kv[STAGES][TOKENS][STRIDE]; /* OWN columns of ckv, OWN_PE columns of kpe */
	float4 recv[BUFFERS][RANKS][CONSUMERS * 32];
	__nv_bfloat16 p[2][HEADS][TOKENS + 8];
	uint16_t q[HEADS][STRIDE];
	float old[2][HEADS];
	uint64_t full[STAGES], empty[STAGES], got[BUFFERS];
};

static_assert(sizeof(struct shared) <= 220000, "too much shared memory");
static_assert(STEPS % 2 == 0 && ROWS == 16 && TOKENS == ROWS * PRODUCERS && TOKENS == 8 * CONSUMERS && COLUMNS == 32, "shapes");
static_assert(OWN == 256 && OWN_PE == 32, "a lane copies one piece of a row of ckv, four lanes a row of kpe");

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

/* At most 152 registers: 3 warps of attend on a quarter of the multiprocessor leave 1792 registers, a warp of finish with 56,
 * so that the blocks of finish are there before attend ends. */
#ifdef __maxnreg__
#define ATTEND_LIMIT __maxnreg__(152)
#else
#define ATTEND_LIMIT __launch_bounds__(THREADS, 1)
#endif

/* 16 bytes to shared memory; zeros if not `valid`. The other half of a line of kpe is for the other CTA of the cluster. */
__device__ static __forceinline__ void copy_async(void *to, const void *from, bool valid)
{
	asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
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

/* This CTA's columns of q_nope and q_pe of sequence b to s->q; by the consumers. */
__device__ static __forceinline__ void load_q(struct shared *s, const uint16_t *q_nope, const uint16_t *q_pe, int b, int rank)
{
#pragma unroll
	for (int k = 0; k < (HEADS * PIECES + CONSUMERS * 32 - 1) / (CONSUMERS * 32); k++) {
		const int i = (int)threadIdx.x + k * CONSUMERS * 32;

		if (i < HEADS * PIECES) {
			const int head = i / PIECES, c = i % PIECES;
			const int64_t row = (int64_t)b * HEADS + head;
			const uint16_t *from = c < OWN / 8 ? q_nope + row * CKV + OWN * rank + c * 8
							   : q_pe + row * KPE + OWN_PE * rank + (c - OWN / 8) * 8;

			copy_async(&s->q[head][c * 8], from, true);
		}
	}
}

static __global__ void __cluster_dims__(RANKS, 1, 1) ATTEND_LIMIT
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
	const int pw = warp - CONSUMERS; /* producer warp: rows ROWS pw .. ROWS pw + ROWS - 1 of a tile */
	const int64_t mine = (int64_t)lo + ROWS * pw + lane % ROWS;
	unsigned rank_;
	int page[STAGES];

	asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank_));

	const int rank = (int)rank_;

#pragma unroll
	for (int j = 0; j < STAGES; j++)
		page[j] = 0;
	if (warp >= CONSUMERS) {
#pragma unroll
		for (int j = 0; j < STAGES; j++)
			if (mine + j * TOKENS < hi)
				page[j] = __ldg(indices + mine + j * TOKENS);
	}
	if (threadIdx.x == 0) {
		for (int i = 0; i < STAGES; i++) {
			barrier_init(&s->full[i], PRODUCERS * 32);
			barrier_init(&s->empty[i], CONSUMERS);
		}
		for (int i = 0; i < BUFFERS; i++)
			barrier_init(&s->got[i], 1 + CONSUMERS);
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		for (int i = 0; i < BUFFERS; i++)
			barrier_expect(&s->got[i], (RANKS - 1) * CONSUMERS * 32 * 16);
	}
	__syncthreads();
	cluster_arrive();
	cudaTriggerProgrammaticLaunchCompletion();

	if (warp >= CONSUMERS) {
		const uint16_t *ckv_at = ckv + OWN * rank + lane * 8;
		const uint16_t *kpe_at = kpe + OWN_PE * rank + lane % 4 * 8;

		for (int base = 0; base < tiles; base += STAGES) {
#pragma unroll
			for (int j = 0; j < STAGES; j++) {
				const int t = base + j;

				if (t < tiles) {
					const int left = hi - (lo + t * TOKENS + ROWS * pw); /* rows of this warp that are tokens */
					int from[ROWS], from_pe[ROWS / 8];

					/* All shuffles first, so that no copy waits for one. */
#pragma unroll
					for (int r = 0; r < ROWS; r++)
						from[r] = __shfl_sync(0xffffffffu, page[j], r);
#pragma unroll
					for (int i = 0; i < ROWS / 8; i++)
						from_pe[i] = __shfl_sync(0xffffffffu, page[j], 8 * i + lane / 4);
					if (base > 0)
						barrier_wait(&s->empty[j], (base / STAGES - 1) & 1);
					__syncwarp();
#pragma unroll
					for (int r = 0; r < ROWS; r++)
						copy_async(&s->kv[j][ROWS * pw + r][lane * 8], ckv_at + (int64_t)from[r] * CKV, r < left);
#pragma unroll
					for (int i = 0; i < ROWS / 8; i++) {
						const int r = 8 * i + lane / 4;

						copy_async(&s->kv[j][ROWS * pw + r][OWN + lane % 4 * 8], kpe_at + (int64_t)from_pe[i] * KPE, r < left);
					}
					__syncwarp();
					copy_arrive(&s->full[j]);
				}
				{
					/* of the tile one round on */
					const int64_t token = mine + (int64_t)(t + STAGES) * TOKENS;

					page[j] = token < hi ? __ldg(indices + token) : 0;
				}
			}
		}
		asm volatile("cp.async.wait_all;" ::: "memory");
		__syncwarp();
		cluster_wait();
	} else {
		float acc[4][4];
		float max0 = -INFINITY, max1 = -INFINITY, sum0 = 0, sum1 = 0; /* heads warp and warp + 8 */
		unsigned q[STEPS][4];
		int nb = 0; /* sequence of the next step */

#pragma unroll
		for (int n = 0; n < 4; n++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				acc[n][i] = 0;
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
		load_q(s, q_nope, q_pe, nb, rank);

		int ne = __ldg(indptr + nb + 1); /* its end */
		int fb = nb, fe = ne;            /* the sequence after it that is not empty, if one begins here, and its end */
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
					asm volatile("cp.async.wait_all;" ::: "memory");
					__syncwarp();
					consumers_sync();
#pragma unroll
					for (int k = 0; k < STEPS; k++)
						load_matrix4(q[k], &s->q[lane % 16][16 * k + lane / 16 * 8]);
					if (ne < hi) {
						fb = nb;
						do {
							fb++;
							fe = __ldg(indptr + fb + 1);
						} while (fe <= ne);
						__syncwarp();
						consumers_sync(); /* s->q may be written again */
						load_q(s, q_nope, q_pe, fb, rank);
					}
					__syncwarp();
				}
				barrier_wait(&s->full[stage], (t / STAGES) & 1);
				__syncwarp();
				{
					float d[3][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}};
					const uint16_t *row = &s->kv[stage][8 * warp + lane % 8][lane / 8 * 8];
					unsigned k4[PAIRS][4];

#pragma unroll
					for (int i = 0; i < AHEAD; i++)
						load_matrix4(k4[i], row + 32 * i);
#pragma unroll
					for (int i = 0; i < PAIRS; i++) {
						multiply_add(d[2 * i % 3], q[2 * i], &k4[i][0]);
						multiply_add(d[(2 * i + 1) % 3], q[2 * i + 1], &k4[i][2]);
						if (i + AHEAD < PAIRS)
							load_matrix4(k4[i + AHEAD], row + 32 * (i + AHEAD));
					}
#pragma unroll
					for (int i = 0; i < 4; i++)
						d[0][i] += d[1][i] + d[2][i];

					float4 *local = &s->recv[buffer][rank][warp * 32 + (lane ^ (warp & 1) * 4)];
					const unsigned to = shared_address(local), bar = shared_address(&s->got[buffer]);

					__syncwarp();
#pragma unroll
					for (int i = 1; i < RANKS; i++)
						send_async(remote_address(to, (unsigned)(rank ^ i)), remote_address(bar, (unsigned)(rank ^ i)),
							   d[0][0], d[0][1], d[0][2], d[0][3]);
					*local = make_float4(d[0][0], d[0][1], d[0][2], d[0][3]);
					__syncwarp();
					if (lane == 0)
						barrier_arrive(&s->got[buffer]);
					__syncwarp();
				}
			}
			if (step >= 0) {
				const int t = (c0 - lo) / TOKENS, stage = t % STAGES, buffer = step % BUFFERS, turn = step & 1;
				const int tile = lo + t * TOKENS;

				barrier_wait(&s->got[buffer], (step / BUFFERS) & 1);
				if (threadIdx.x == 0)
					barrier_expect(&s->got[buffer], (RANKS - 1) * CONSUMERS * 32 * 16);
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
					for (int n = 0; n < 4; n++) {
						acc[n][0] *= old0;
						acc[n][1] *= old0;
						acc[n][2] *= old1;
						acc[n][3] *= old1;
					}
#pragma unroll
					for (int k = 0; k < TOKENS / 16; k++) {
						const uint16_t *row = &s->kv[stage][16 * k + lane % 16][COLUMNS * warp + lane / 16 * 8];
						unsigned a[4], v[2][4];

						load_matrix4(a, &s->p[turn][lane % 16][16 * k + lane / 16 * 8]);
						load_matrix4_turned(v[0], row);
						load_matrix4_turned(v[1], row + 16);
						multiply_add(acc[0], a, &v[0][0]);
						multiply_add(acc[1], a, &v[0][2]);
						multiply_add(acc[2], a, &v[1][0]);
						multiply_add(acc[3], a, &v[1][2]);
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
					float *v = part_v + (slot * HEADS + lane / 4) * CKV + OWN * rank + COLUMNS * warp + lane % 4 * 2;

#pragma unroll
					for (int n = 0; n < 4; n++) {
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
					nb = fb;
					ne = fe;
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

/* Joins the parts of one head of one sequence, at most MOST = 66. A warp has G groups of lanes, each for every G-th part;
 * a block has 4 warps and 512 / G columns, so small that it waits beside a block of attend before that ends. */
template <int G>
static __global__ void __launch_bounds__(128)
finish(const float *part_v, const float2 *part_ms, const int32_t *indptr, int chunk, uint16_t *output, float *lse)
{
	constexpr int U = G == 1 ? 4 : 8, LANES = 32 / G;
	__shared__ float weights[4][128]; /* of each warp, zero from count on */
	const int b = blockIdx.x / HEADS, head = blockIdx.x % HEADS;
	const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const int column = ((blockIdx.y * 4 + warp) * LANES + lane % LANES) * 4, group = lane / LANES;
	const int from = __ldg(indptr + b), to = __ldg(indptr + b + 1);
	const int first = from / chunk, count = to > from ? (to - 1) / chunk - first + 1 : 0;
	const int64_t slot = (int64_t)first + b;
	const float *v = part_v + (slot * HEADS + head) * CKV + column;
	const float2 *ms = part_ms + slot * HEADS + head;
	float4 x[U], sum = make_float4(0, 0, 0, 0);
	float2 mine[3];

	static_assert(MOST <= 96 && (MOST + U * G - 1) / (U * G) * (U * G) <= 128, "parts of a sequence");
	cudaGridDependencySynchronize();
#pragma unroll
	for (int k = 0; k < 3; k++) {
		mine[k] = make_float2(-INFINITY, 0);
		if (lane + 32 * k < count)
			mine[k] = __ldcg(ms + (lane + 32 * k) * HEADS);
	}
#pragma unroll
	for (int i = 0; i < U; i++) {
		int p = i * G + group;

		x[i] = make_float4(0, 0, 0, 0);
		if (p < count)
			x[i] = __ldcg((const float4 *)(v + (int64_t)p * HEADS * CKV));
	}

	const float max = warp_max(fmaxf(fmaxf(mine[0].x, mine[1].x), mine[2].x));
	float weight[3], all = 0;

#pragma unroll
	for (int k = 0; k < 3; k++) {
		weight[k] = lane + 32 * k < count ? power2(mine[k].x - max) : 0;
		all += weight[k] * mine[k].y;
	}
	all = warp_sum(all);

	const float factor = all > 0 ? 1 / all : 0;

#pragma unroll
	for (int k = 0; k < 4; k++)
		weights[warp][lane + 32 * k] = k < 3 ? weight[k < 3 ? k : 0] * factor : 0;
	__syncwarp();
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
			float w = weights[warp][base + i * G + group];

			sum.x += w * x[i].x;
			sum.y += w * x[i].y;
			sum.z += w * x[i].z;
			sum.w += w * x[i].w;
		}
	}
	__syncwarp();
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
	if (blockIdx.y == 0 && threadIdx.x == 0)
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
		int64_t most = clusters();

		if (batch <= 4 && most > MOST_FEW)
			most = MOST_FEW;

		const int64_t share = (total + most - 1) / most;

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
	config.dynamicSmemBytes = 0;
	config.stream = stream;
	config.attrs = attribute;
	config.numAttrs = total > 0 ? 1 : 0;
	config.blockDim = dim3(128);
	if (batch <= 4) {
		config.gridDim = dim3((unsigned)(batch * HEADS), 8);
		error = cudaLaunchKernelEx(&config, finish<8>, (const float *)part_v, (const float2 *)part_ms, a->kv_indptr, chunk, a->output, a->lse);
	} else if (batch <= 32) {
		config.gridDim = dim3((unsigned)(batch * HEADS), 2);
		error = cudaLaunchKernelEx(&config, finish<2>, (const float *)part_v, (const float2 *)part_ms, a->kv_indptr, chunk, a->output, a->lse);
	} else {
		config.gridDim = dim3((unsigned)(batch * HEADS));
		error = cudaLaunchKernelEx(&config, finish<1>, (const float *)part_v, (const float2 *)part_ms, a->kv_indptr, chunk, a->output, a->lse);
	}
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
