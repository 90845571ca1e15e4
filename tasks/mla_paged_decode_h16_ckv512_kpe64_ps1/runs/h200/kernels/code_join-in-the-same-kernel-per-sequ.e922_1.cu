#include "task.h"
#include <cuda_runtime.h>
#include <cuda_bf16.h>

enum {
	HEADS = KM_AXIS_NUM_QO_HEADS, CKV = KM_AXIS_HEAD_DIM_CKV, KPE = KM_AXIS_HEAD_DIM_KPE, WIDTH = CKV + KPE,
	STRIDE = WIDTH + 8, /* 73 * 16 bytes: eight rows lie in different banks */
	TILE = 32, STAGES = 5, WARPS = 8, CONSUMERS = 32 * WARPS, THREADS = CONSUMERS + 32,
	KGROUPS = 4, STEPS = WIDTH / 16 / KGROUPS, /* 9 steps of 16 for each warp */
	OWN = CKV / WARPS, COLUMN_TILES = OWN / 8,
	CHUNKS = 132, LEAST = 16, SLOTS = 2 * CHUNKS,
	RED_STRIDE = 40, P_STRIDE = 40, ROW_BYTES = 2 * WIDTH,
	PART = HEADS * CKV, UNITS = PART / 8, HEAD_UNITS = CKV / 8, /* units of 8 bf16 */
	AHEAD = 8, /* parts a thread joins: at most 7 if 4 <= sharers <= CHUNKS; two units of at most 3 parts otherwise */
	META = (CHUNKS + 31) / 32,
};

struct shared {
	uint16_t kv[STAGES][TILE][STRIDE];
	float red[KGROUPS][HEADS][RED_STRIDE];
	uint16_t p[HEADS][P_STRIDE];
	float4 joined[2 * CONSUMERS];
	float weight[HEADS][CHUNKS];
	float old[HEADS], inverse[HEADS];
	uint64_t full[STAGES], empty[STAGES];
};

static int chunk_tokens(const struct km_args *a)
{
	int64_t c = (a->num_kv_indices + CHUNKS - 1) / CHUNKS;

	return c < LEAST ? (int)LEAST : (int)c;
}

__device__ static __forceinline__ unsigned shared_address(const void *p)
{
	return (unsigned)__cvta_generic_to_shared(p);
}

__device__ static __forceinline__ void barrier_init(unsigned bar, unsigned count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ static __forceinline__ void barrier_wait(unsigned bar, unsigned parity)
{
	unsigned done;

	do {
		asm volatile("{\n\t.reg .pred p;\n\t"
			     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
			     "selp.u32 %0, 1, 0, p;\n\t}"
			     : "=r"(done) : "r"(bar), "r"(parity) : "memory");
	} while (!done);
}

__device__ static __forceinline__ void barrier_arrive(unsigned bar)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ static __forceinline__ void barrier_expect(unsigned bar, unsigned bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

__device__ static __forceinline__ void bulk_copy(unsigned to, const void *from, unsigned bytes, unsigned bar)
{
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
		     ::"r"(to), "l"(from), "r"(bytes), "r"(bar) : "memory");
}

/* Of the consumer warps. */
__device__ static __forceinline__ void consumers_sync()
{
	asm volatile("bar.sync 1, 256;" ::: "memory");
}

__device__ static __forceinline__ void load_matrix4(unsigned *to, unsigned row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

__device__ static __forceinline__ void load_matrix4_turned(unsigned *to, unsigned row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}

__device__ static __forceinline__ void multiply_add(float *sum, const unsigned *a, unsigned b0, unsigned b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static __forceinline__ float power2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

__device__ static __forceinline__ float minus_infinity()
{
	return __int_as_float((int)0xff800000u);
}

/* By way of integers in the same order. */
__device__ static __forceinline__ float warp_max(float x)
{
	int i = __float_as_int(x);

	i ^= (i >> 31) & 0x7fffffff;
	i = __reduce_max_sync(0xffffffffu, i);
	i ^= (i >> 31) & 0x7fffffff;
	return __int_as_float(i);
}

__device__ static __forceinline__ float warp_sum(float x)
{
#pragma unroll
	for (int d = 16; d > 0; d /= 2)
		x += __shfl_xor_sync(0xffffffffu, x, d);
	return x;
}

__device__ static __forceinline__ unsigned pack(float low, float high)
{
	__nv_bfloat162 x = __floats2bfloat162_rn(low, high);

	return *reinterpret_cast<unsigned *>(&x);
}

__device__ static __forceinline__ void add_weighted(float *sum, float w, unsigned two)
{
	sum[0] += w * __uint_as_float(two << 16);
	sum[1] += w * __uint_as_float(two & 0xffff0000u);
}

__device__ static __forceinline__ unsigned load_acquire(const unsigned *p)
{
	unsigned x;

	asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
	return x;
}

__device__ static __forceinline__ unsigned add_relaxed(unsigned *p)
{
	unsigned x;

	asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(x) : "l"(p) : "memory");
	return x;
}

/* Part p of a sequence that begins in chunk `first`. */
__device__ static __forceinline__ int slot_of(int first, int p)
{
	return 2 * (first + p) + (p == 0 ? 1 : 0);
}

/* Block i has the flat tokens from i * chunk on, whatever their sequences. Then it joins its slices of the sequences that it
 * shares with other blocks; all blocks are resident. counters: arrived, left of each sequence, zero at entry and at exit. */
static __global__ void __launch_bounds__(THREADS, 1)
attend(const struct km_args a, int chunk, unsigned *counters, float2 *meta, uint16_t *parts)
{
	extern __shared__ __align__(128) unsigned char memory[];
	struct shared *s = reinterpret_cast<struct shared *>(memory);
	const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	const int c0 = (int)blockIdx.x * chunk;
	const int n = min(chunk, (int)a.num_kv_indices - c0);
	const int tiles = (n + TILE - 1) / TILE;
	const int batch = (int)a.batch_size;
	const unsigned full = shared_address(s->full), empty = shared_address(s->empty);
	const unsigned kv = shared_address(s->kv);

	if (warp == WARPS) {
		int index[STAGES];

#pragma unroll
		for (int i = 0; i < STAGES; i++) {
			int at = i * TILE + lane;

			index[i] = at < n ? __ldg(a.kv_indices + c0 + at) : 0;
		}
		if (lane == 0) {
			for (int i = 0; i < STAGES; i++) {
				barrier_init(full + 8 * i, 1);
				barrier_init(empty + 8 * i, WARPS);
			}
			asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
			asm volatile("fence.proxy.async;" ::: "memory");
		}
		__syncthreads();
		for (int base = 0, round = 0; base < tiles; base += STAGES, round++) {
#pragma unroll
			for (int i = 0; i < STAGES; i++) {
				int tile = base + i;

				if (tile < tiles) {
					int valid = min((int)TILE, n - tile * TILE);

					if (round > 0)
						barrier_wait(empty + 8 * i, (unsigned)(round - 1) & 1);
					if (lane == 0)
						barrier_expect(full + 8 * i, (unsigned)(valid * ROW_BYTES));
					__syncwarp();
					if (lane < valid) {
						unsigned to = kv + (unsigned)((i * TILE + lane) * STRIDE * 2);
						int64_t page = index[i];

						bulk_copy(to, a.ckv_cache + page * CKV, CKV * 2, full + 8 * i);
						bulk_copy(to + CKV * 2, a.kpe_cache + page * KPE, KPE * 2, full + 8 * i);
					}
					__syncwarp();
					int at = (tile + STAGES) * TILE + lane;

					index[i] = at < n ? __ldg(a.kv_indices + c0 + at) : 0;
				}
			}
		}
		/* Empty sequences. */
		for (int e = (int)blockIdx.x; e < batch; e += (int)gridDim.x) {
			if (__ldg(a.kv_indptr + e) < __ldg(a.kv_indptr + e + 1))
				continue;

			uint4 *to = reinterpret_cast<uint4 *>(a.output + (int64_t)e * PART);

			for (int i = lane; i < UNITS; i += 32)
				to[i] = make_uint4(0, 0, 0, 0);
			if (lane < HEADS)
				a.lse[(int64_t)e * HEADS + lane] = minus_infinity();
		}
		return;
	}

	/* Consumers. */
	int end0 = lane < batch ? __ldg(a.kv_indptr + lane + 1) : 0x7fffffff;
	int end1 = lane + 32 < batch ? __ldg(a.kv_indptr + lane + 33) : 0x7fffffff;

	if (tiles <= STAGES) { /* rows that no copy ever fills: values that are weighted with 0 must not be NaN */
		int valid = n - (tiles - 1) * TILE;

		for (int i = threadIdx.x; i < (TILE - valid) * (CKV / 8); i += CONSUMERS)
			*reinterpret_cast<uint4 *>(&s->kv[tiles - 1][valid + i / (CKV / 8)][i % (CKV / 8) * 8]) = make_uint4(0, 0, 0, 0);
	}
	__syncthreads();
	if (n <= 0)
		return; /* no tokens at all */

	int before = (end0 <= c0) + (end1 <= c0);

	for (int i = lane + 64; i < batch; i += 32)
		before += __ldg(a.kv_indptr + i + 1) <= c0;

	int b = __reduce_add_sync(0xffffffffu, before);
	int begin = __ldg(a.kv_indptr + b), end = __ldg(a.kv_indptr + b + 1);

	const int kgroup = warp % KGROUPS, half = warp / KGROUPS, g = lane / 4, t4 = lane % 4;
	const int head = 2 * warp; /* this one and the next in the softmax */
	const float scale = a.sm_scale * 1.44269504088896341f;
	const unsigned k_at = kv + (unsigned)(((half * 16 + lane / 16 * 8 + lane % 8) * STRIDE + kgroup * (STEPS * 16) + lane / 8 % 2 * 8) * 2);
	const unsigned v_at = kv + (unsigned)(((lane / 8 % 2 * 8 + lane % 8) * STRIDE + warp * OWN + lane / 16 * 8) * 2);
	const unsigned p_at = shared_address(s->p) + (unsigned)(((lane / 8 % 2 * 8 + lane % 8) * P_STRIDE + lane / 16 * 8) * 2);

	/* The sequence shared with earlier blocks (and perhaps later ones), and the one shared with later blocks only. */
	int b0 = -1, begin0 = 0, stop0 = 0, b1 = -1, begin1 = 0, stop1 = 0;

	for (;;) {
		const int lo = max(begin - c0, 0), hi = min(end - c0, n);
		const bool whole = begin >= c0 && end <= c0 + n;
		unsigned q[STEPS][4];
		float acc[COLUMN_TILES][4];
		float max0 = minus_infinity(), max1 = minus_infinity(), sum0 = 0, sum1 = 0;

#pragma unroll
		for (int k = 0; k < STEPS; k++) {
			int step = kgroup * STEPS + k;
			bool left = step < CKV / 16;
			const uint16_t *row = left ? a.q_nope + ((int64_t)b * HEADS + g) * CKV + step * 16 + t4 * 2
						   : a.q_pe + ((int64_t)b * HEADS + g) * KPE + (step - CKV / 16) * 16 + t4 * 2;
			int below = left ? 8 * CKV : 8 * KPE;

			q[k][0] = __ldg(reinterpret_cast<const unsigned *>(row));
			q[k][1] = __ldg(reinterpret_cast<const unsigned *>(row + below));
			q[k][2] = __ldg(reinterpret_cast<const unsigned *>(row + 8));
			q[k][3] = __ldg(reinterpret_cast<const unsigned *>(row + below + 8));
		}
		if (!whole) {
			if (begin < c0) {
				b0 = b;
				begin0 = begin;
				stop0 = end;
			} else {
				b1 = b;
				begin1 = begin;
				stop1 = end;
			}
			if (threadIdx.x == 0) /* the counters are cold */
				asm volatile("prefetch.global.L2 [%0];" ::"l"(counters + 2 * (int64_t)b));
		}
#pragma unroll
		for (int j = 0; j < COLUMN_TILES; j++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				acc[j][i] = 0;

		const int last = (hi - 1) / TILE;

		for (int t = lo / TILE; t <= last; t++) {
			const int stage = t % STAGES;
			const unsigned stage_at = (unsigned)(stage * TILE * STRIDE * 2);

			barrier_wait(full + 8 * stage, (unsigned)(t / STAGES) & 1);
			{
				float x[2][2][4]; /* even and odd steps, 8 tokens each */

#pragma unroll
				for (int i = 0; i < 16; i++)
					x[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll
				for (int k = 0; k < STEPS; k++) {
					unsigned r[4];

					load_matrix4(r, k_at + stage_at + k * 32);
					multiply_add(x[k % 2][0], q[k], r[0], r[1]);
					multiply_add(x[k % 2][1], q[k], r[2], r[3]);
				}
#pragma unroll
				for (int j = 0; j < 2; j++) {
					int token = half * 16 + j * 8 + t4 * 2;

					*reinterpret_cast<float2 *>(&s->red[kgroup][g][token]) =
						make_float2(x[0][j][0] + x[1][j][0], x[0][j][1] + x[1][j][1]);
					*reinterpret_cast<float2 *>(&s->red[kgroup][g + 8][token]) =
						make_float2(x[0][j][2] + x[1][j][2], x[0][j][3] + x[1][j][3]);
				}
			}
			consumers_sync();
			{
				const int token = t * TILE + lane;
				const bool inside = token >= lo && token < hi;
				float x0 = (s->red[0][head][lane] + s->red[1][head][lane]) + (s->red[2][head][lane] + s->red[3][head][lane]);
				float x1 = (s->red[0][head + 1][lane] + s->red[1][head + 1][lane])
					   + (s->red[2][head + 1][lane] + s->red[3][head + 1][lane]);

				x0 = inside ? x0 * scale : minus_infinity();
				x1 = inside ? x1 * scale : minus_infinity();

				/* finite: each tile here has a token of the sequence */
				float new0 = fmaxf(max0, warp_max(x0)), new1 = fmaxf(max1, warp_max(x1));
				float p0 = power2(x0 - new0), p1 = power2(x1 - new1);
				float old0 = power2(max0 - new0), old1 = power2(max1 - new1);

				s->p[head][lane] = __bfloat16_as_ushort(__float2bfloat16(p0));
				s->p[head + 1][lane] = __bfloat16_as_ushort(__float2bfloat16(p1));
				if (lane == 0) {
					s->old[head] = old0;
					s->old[head + 1] = old1;
				}
				sum0 = sum0 * old0 + p0;
				sum1 = sum1 * old1 + p1;
				max0 = new0;
				max1 = new1;
			}
			consumers_sync();
			{
				unsigned p[2][4];
				const float upper = s->old[g], lower = s->old[g + 8];

				load_matrix4(p[0], p_at);
				load_matrix4(p[1], p_at + 32);
#pragma unroll
				for (int j = 0; j < COLUMN_TILES; j++) {
					acc[j][0] *= upper;
					acc[j][1] *= upper;
					acc[j][2] *= lower;
					acc[j][3] *= lower;
				}
#pragma unroll
				for (int k = 0; k < 2; k++)
#pragma unroll
					for (int j = 0; j < COLUMN_TILES; j += 2) {
						unsigned r[4];

						load_matrix4_turned(r, v_at + stage_at + k * (16 * STRIDE * 2) + j * 16);
						multiply_add(acc[j], p[k], r[0], r[1]);
						multiply_add(acc[j + 1], p[k], r[2], r[3]);
					}
			}
			if (hi >= min((t + 1) * (int)TILE, n)) { /* no later sequence needs this tile */
				__syncwarp();
				if (lane == 0)
					barrier_arrive(empty + 8 * stage);
			}
		}

		sum0 = warp_sum(sum0);
		sum1 = warp_sum(sum1);

		const int slot = 2 * (int)blockIdx.x + (begin >= c0 ? 1 : 0);

		if (lane == 0) {
			s->inverse[head] = 1.0f / sum0;
			s->inverse[head + 1] = 1.0f / sum1;
			if (whole) {
				a.lse[(int64_t)b * HEADS + head] = max0 + log2f(sum0);
				a.lse[(int64_t)b * HEADS + head + 1] = max1 + log2f(sum1);
			} else {
				*reinterpret_cast<float4 *>(meta + slot * HEADS + head) = make_float4(max0, sum0, max1, sum1);
			}
		}
		consumers_sync();
		{
			const float upper = s->inverse[g], lower = s->inverse[g + 8];
			const bool odd = t4 % 2 != 0;
			uint16_t *to = (whole ? a.output + (int64_t)b * PART : parts + (int64_t)slot * PART)
				       + g * CKV + warp * OWN + (odd ? 8 + 2 * (t4 - 1) : 2 * t4);

			/* neighbours exchange, so that four lanes write 32 bytes in a row */
#pragma unroll
			for (int j = 0; j < COLUMN_TILES; j += 2) {
				unsigned x = pack(acc[j][0] * upper, acc[j][1] * upper);
				unsigned y = pack(acc[j + 1][0] * upper, acc[j + 1][1] * upper);
				unsigned z = __shfl_xor_sync(0xffffffffu, odd ? x : y, 1);

				*reinterpret_cast<uint2 *>(to + 8 * j) = odd ? make_uint2(z, y) : make_uint2(x, z);
				x = pack(acc[j][2] * lower, acc[j][3] * lower);
				y = pack(acc[j + 1][2] * lower, acc[j + 1][3] * lower);
				z = __shfl_xor_sync(0xffffffffu, odd ? x : y, 1);
				*reinterpret_cast<uint2 *>(to + 8 * CKV + 8 * j) = odd ? make_uint2(z, y) : make_uint2(x, z);
			}
		}
		if (hi >= n)
			break;
		do {
			b++;
			begin = end;
			end = __ldg(a.kv_indptr + b + 1);
		} while (end <= begin);
	}
	if (b0 < 0 && b1 < 0)
		return;

	/* All arrivals come before any waiting. */
	consumers_sync();
	if (threadIdx.x == 0) {
		asm volatile("fence.acq_rel.gpu;" ::: "memory");
		if (b0 >= 0)
			asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counters + 2 * (int64_t)b0) : "memory");
		if (b1 >= 0)
			asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counters + 2 * (int64_t)b1) : "memory");
	}

	const int tid = (int)threadIdx.x;

#pragma unroll 1
	for (int which = 0; which < 2; which++) {
		const int sequence = which == 0 ? b0 : b1;

		if (sequence < 0)
			continue;

		const int first = (which == 0 ? begin0 : begin1) / chunk;
		const int count = ((which == 0 ? stop0 : stop1) - 1) / chunk - first + 1; /* 2 or more */
		const int rank = (int)blockIdx.x - first;
		const int u0 = UNITS * rank / count, u1 = UNITS * (rank + 1) / count, units = u1 - u0;
		const bool few = count <= 3; /* then up to 512 units: two a thread, and no groups */
		const int groups = few ? 1 : CONSUMERS / units;
		const int group = few ? 0 : tid / units;
		const int unit = u0 + tid - group * units;
		const int limit = group < groups ? u1 : 0;
		const uint4 *from = reinterpret_cast<const uint4 *>(parts);
		unsigned *counter = counters + 2 * (int64_t)sequence;
		unsigned left = 0;
		uint4 v[AHEAD];

		if (tid == 0) {
			while (load_acquire(counter) < (unsigned)count)
				;
			left = add_relaxed(counter + 1); /* needed at the end */
		}
		consumers_sync();
#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			int u = unit + (few ? k / 4 * CONSUMERS : 0);
			int p = few ? k % 4 : group + k * groups;

			v[k] = make_uint4(0, 0, 0, 0);
			if (u < limit && p < count)
				v[k] = __ldcg(from + (int64_t)slot_of(first, p) * UNITS + u);
		}
		for (int h = u0 / HEAD_UNITS + warp; h <= (u1 - 1) / HEAD_UNITS; h += WARPS) {
			float2 m[META];
			float most = minus_infinity(), total = 0;

#pragma unroll
			for (int k = 0; k < META; k++) {
				int p = lane + 32 * k;

				m[k] = make_float2(minus_infinity(), 0);
				if (p < count)
					m[k] = __ldcg(meta + slot_of(first, p) * HEADS + h);
			}
#pragma unroll
			for (int k = 0; k < META; k++)
				most = fmaxf(most, m[k].x);
			most = warp_max(most);
#pragma unroll
			for (int k = 0; k < META; k++) {
				m[k].x = power2(m[k].x - most) * m[k].y;
				total += m[k].x;
			}
			total = warp_sum(total);

			const float inverse = 1.0f / total;

#pragma unroll
			for (int k = 0; k < META; k++)
				if (lane + 32 * k < count)
					s->weight[h][lane + 32 * k] = m[k].x * inverse;
			if (lane == 0 && h * HEAD_UNITS >= u0) /* the head begins in this slice */
				a.lse[(int64_t)sequence * HEADS + h] = most + log2f(total);
		}
		consumers_sync();

		uint16_t *out = a.output + (int64_t)sequence * PART;
		float sum[8];

#pragma unroll
		for (int i = 0; i < 8; i++)
			sum[i] = 0;
#pragma unroll
		for (int k = 0; k < AHEAD; k++) {
			int u = unit + (few ? k / 4 * CONSUMERS : 0);
			int p = few ? k % 4 : group + k * groups;

			if (u < limit && p < count) {
				float w = s->weight[u / HEAD_UNITS][p];

				add_weighted(sum, w, v[k].x);
				add_weighted(sum + 2, w, v[k].y);
				add_weighted(sum + 4, w, v[k].z);
				add_weighted(sum + 6, w, v[k].w);
			}
			if (k == 3 && few) {
				if (u < limit)
					*reinterpret_cast<uint4 *>(out + u * 8) = make_uint4(pack(sum[0], sum[1]), pack(sum[2], sum[3]),
											     pack(sum[4], sum[5]), pack(sum[6], sum[7]));
#pragma unroll
				for (int i = 0; i < 8; i++)
					sum[i] = 0;
			}
		}
		if (groups == 1) {
			int u = unit + (few ? (int)CONSUMERS : 0);

			if (u < limit)
				*reinterpret_cast<uint4 *>(out + u * 8) = make_uint4(pack(sum[0], sum[1]), pack(sum[2], sum[3]),
										     pack(sum[4], sum[5]), pack(sum[6], sum[7]));
		} else {
			s->joined[2 * tid] = make_float4(sum[0], sum[1], sum[2], sum[3]);
			s->joined[2 * tid + 1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
			consumers_sync();

			const float2 *pairs = reinterpret_cast<const float2 *>(s->joined);

			for (int o = tid; o < units * 4; o += CONSUMERS) {
				float x = 0, y = 0;

#pragma unroll 8
				for (int i = 0; i < groups; i++) {
					float2 two = pairs[i * units * 4 + o];

					x += two.x;
					y += two.y;
				}
				*reinterpret_cast<unsigned *>(out + u0 * 8 + o * 2) = pack(x, y);
			}
		}
		if (tid == 0 && left == (unsigned)count - 1) { /* all sharers have seen all arrivals */
			counter[0] = 0;
			counter[1] = 0;
		}
	}
}

static size_t counter_bytes(const struct km_args *a)
{
	return ((size_t)a->batch_size * 2 * sizeof(unsigned) + 255) / 256 * 256;
}

size_t km_workspace(const struct km_args *a)
{
	return counter_bytes(a) + (size_t)SLOTS * HEADS * (CKV * sizeof(uint16_t) + sizeof(float2));
}

int km_init(const struct km_args *)
{
	return (int)cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(struct shared));
}

int km_run(const struct km_args *a)
{
	struct km_args copy = *a;
	int chunk = chunk_tokens(a);
	unsigned blocks = (unsigned)((a->num_kv_indices + chunk - 1) / chunk);
	unsigned *counters = (unsigned *)a->workspace;
	float2 *meta = (float2 *)((unsigned char *)a->workspace + counter_bytes(a));
	uint16_t *parts = (uint16_t *)(meta + (size_t)SLOTS * HEADS);
	void *args[] = {&copy, &chunk, &counters, &meta, &parts};
	cudaError_t error;

	if (a->batch_size <= 0)
		return 0;
	if (blocks == 0)
		blocks = 1; /* every sequence is empty */
	error = cudaLaunchCooperativeKernel((const void *)attend, dim3(blocks), dim3(THREADS), args, sizeof(struct shared),
					    (cudaStream_t)a->stream);
	if (error != cudaSuccess)
		return (int)error;
	return (int)cudaGetLastError();
}
