/* device_guard.cu - device.h: guard zones, hashes of the inputs, poison of the outputs. */
#include "device_core.cuh"

#include "reference_cuda.h"

#include <string.h>

/* ---- guards ----------------------------------------------------------------------------------------------------- */

/* The word at address 8 w holds ref_random(seed, w); a zone may begin and end within one. One block a zone. */
__device__ static bool word_is(uint64_t w, uint64_t value, struct device_zone zone)
{
	uint64_t at = w * 8;

	if (at >= zone.low && at + 8 <= zone.high)
		return *(const uint64_t *)at == value;
	for (int i = 0; i < 8; i++)
		if (at + i >= zone.low && at + i < zone.high && *(const uint8_t *)(at + i) != (uint8_t)(value >> (8 * i)))
			return false;
	return true;
}

__device__ static void set_word(uint64_t w, uint64_t value, struct device_zone zone)
{
	uint64_t at = w * 8;

	if (at >= zone.low && at + 8 <= zone.high) {
		*(uint64_t *)at = value;
		return;
	}
	for (int i = 0; i < 8; i++)
		if (at + i >= zone.low && at + i < zone.high)
			*(uint8_t *)(at + i) = (uint8_t)(value >> (8 * i));
}

__global__ static void guard_kernel(const struct device_zone *zones, uint64_t seed)
{
	struct device_zone zone = zones[blockIdx.x];

	for (uint64_t w = zone.low / 8 + threadIdx.x; w * 8 < zone.high; w += blockDim.x)
		set_word(w, ref_random(seed, w), zone);
}

__global__ static void inspect_kernel(const struct device_zone *zones, uint64_t seed, unsigned long long *broken)
{
	struct device_zone zone = zones[blockIdx.x];
	bool whole = true;

	for (uint64_t w = zone.low / 8 + threadIdx.x; w * 8 < zone.high; w += blockDim.x)
		whole = word_is(w, ref_random(seed, w), zone) && whole;
	if (!whole)
		atomicMin(broken, (unsigned long long)blockIdx.x);
}

int device_guard(struct device *d, const struct device_zone *zones, size_t count, uint64_t seed, struct error *err)
{
	if (count > DEVICE_MAX_ZONES)
		return error_set(err, KM_EXIT_ENVIRONMENT, "%zu guard zones are too many", count);
	d->zone_count = count;
	d->guard_seed = seed;
	if (count == 0)
		return 0;
	memcpy(d->zones_pinned, zones, count * sizeof(*zones));
	if (device_failed(cudaMemcpyAsync(d->zones, d->zones_pinned, count * sizeof(*zones), cudaMemcpyHostToDevice, d->stream),
			  "cannot copy the list of guard zones", err) < 0)
		return -1;
	return device_launch(d, "guard zones", err, guard_kernel, (unsigned)count, 256, (const struct device_zone *)d->zones, seed);
}

/* ---- hashes ----------------------------------------------------------------------------------------------------- */

struct hash_key {
	uint64_t a, b;
};

__device__ static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
	x = (x ^ (x >> 32)) * 0xbf58476d1ce4e5b9u;
	return x ^ (x >> 29);
}

/* What 16 bytes at this place add to the sum. */
__device__ static uint64_t mix_pair(uint64_t low, uint64_t high, uint64_t place, struct hash_key key)
{
	return mix(low + (place * 0x9e3779b97f4a7c15u ^ key.a)) + mix(high ^ (place * 0xc2b2ae3d27d4eb4fu + key.b));
}

__device__ static uint64_t mix_vector(uint4 v, uint64_t place, struct hash_key key)
{
	return mix_pair(v.x | (uint64_t)v.y << 32, v.z | (uint64_t)v.w << 32, place, key);
}

/* The last bytes of a range, fewer than 16, with zeros behind them. */
__device__ static uint64_t mix_tail(const uint8_t *at, size_t bytes, uint64_t place, struct hash_key key)
{
	uint64_t words[2] = { 0, 0 };

	for (size_t i = 0; i < bytes; i++)
		words[i / 8] |= (uint64_t)at[i] << (i % 8 * 8);
	return mix_pair(words[0], words[1], place, key);
}

enum { HASH_THREADS = 512 };

__global__ static void __launch_bounds__(HASH_THREADS) hash_kernel(const uint8_t *at, size_t bytes, struct hash_key key, unsigned long long *sum)
{
	__shared__ uint64_t sums[HASH_THREADS];
	const uint4 *from = (const uint4 *)at;
	size_t count = bytes / 16, step = (size_t)gridDim.x * HASH_THREADS, i = blockIdx.x * (size_t)HASH_THREADS + threadIdx.x;
	uint64_t s = 0;

	if (i == 0 && bytes % 16)
		s = mix_tail(at + count * 16, bytes % 16, count, key);
	for (; i + 3 * step < count; i += 4 * step) {
		uint4 v[4];

#pragma unroll
		for (int j = 0; j < 4; j++)
			v[j] = __ldcs(from + i + j * step);
#pragma unroll
		for (int j = 0; j < 4; j++)
			s += mix_vector(v[j], i + j * step, key);
	}
	for (; i < count; i += step)
		s += mix_vector(__ldcs(from + i), i, key);
	sums[threadIdx.x] = s;
	for (unsigned half = HASH_THREADS / 2; half; half /= 2) {
		__syncthreads();
		if (threadIdx.x < half)
			sums[threadIdx.x] += sums[threadIdx.x + half];
	}
	if (threadIdx.x == 0)
		atomicAdd(sum, (unsigned long long)sums[0]);
}

static int start_hashes(struct device *d, const struct device_range *ranges, size_t count, struct hash_key key, struct error *err)
{
	for (size_t i = 0; i < count; i++)
		if (ranges[i].bytes &&
		    device_launch(d, "hash of the inputs", err, hash_kernel, device_blocks(d, ranges[i].bytes / 16, HASH_THREADS * 4), HASH_THREADS,
				  (const uint8_t *)ranges[i].at, ranges[i].bytes, key, &d->results->hashes[i]) < 0)
			return -1;
	return 0;
}

int device_inspect(struct device *d, const struct device_range *ranges, size_t count, const uint64_t key[2], uint64_t *hashes,
		   int64_t *broken, struct error *err)
{
	struct device_results *r = d->results_pinned;
	size_t bytes = offsetof(struct device_results, control);

	memset(r->hashes, 0, sizeof(r->hashes));
	r->broken = UINT64_MAX;
	if (device_failed(cudaMemcpyAsync(d->results, r, bytes, cudaMemcpyHostToDevice, d->stream), "cannot copy", err) < 0)
		return -1;
	if (d->zone_count && device_launch(d, "look at the guard zones", err, inspect_kernel, (unsigned)d->zone_count, 256,
					   (const struct device_zone *)d->zones, d->guard_seed, &d->results->broken) < 0)
		return -1;
	if (start_hashes(d, ranges, count, (struct hash_key){ key[0], key[1] }, err) < 0 || device_read(d, r, d->results, bytes, err) < 0)
		return -1;
	for (size_t i = 0; i < count; i++)
		hashes[i] = r->hashes[i];
	*broken = (int64_t)r->broken;
	return 0;
}

/* ---- poison ----------------------------------------------------------------------------------------------------- */

/* An element's bits are fixed but for those in `random`. */
struct pattern {
	uint64_t fixed, random;
};

static struct pattern pattern_of(enum task_dtype dtype, bool nan)
{
	switch (dtype) {
	case DTYPE_FLOAT32:
		return nan ? (struct pattern){ 0x7fc00000, 0x803fffff } : (struct pattern){ 0x7149f2ca, 0x80000000 }; /* 1e30 */
	case DTYPE_BFLOAT16:
		return nan ? (struct pattern){ 0x7fc0, 0x803f } : (struct pattern){ 0x714a, 0x8000 }; /* 1e30 */
	case DTYPE_FLOAT16:
		return nan ? (struct pattern){ 0x7e00, 0x81ff } : (struct pattern){ 0x7bff, 0x8000 }; /* 65504 */
	case DTYPE_FLOAT8_E4M3FN:
		return nan ? (struct pattern){ 0x7f, 0x80 } : (struct pattern){ 0x7e, 0x80 }; /* 448 */
	case DTYPE_FLOAT8_E5M2:
		return nan ? (struct pattern){ 0x7e, 0x81 } : (struct pattern){ 0x7b, 0x80 }; /* 57344 */
	default:
		return (struct pattern){ 0, UINT64_MAX }; /* no NaN: any bits will do */
	}
}

/* Repeat the low `bits` bits of a pattern over a word. */
static uint64_t repeat(uint64_t x, size_t bits)
{
	for (size_t have = bits; have < 64; have *= 2)
		x |= x << have;
	return x;
}

static struct pattern all_over(enum task_dtype dtype, bool nan)
{
	struct pattern q = pattern_of(dtype, nan);

	return (struct pattern){ repeat(q.fixed, dtype_bits(dtype)), repeat(q.random, dtype_bits(dtype)) };
}

struct poison {
	uint8_t *to;
	const uint8_t *earlier;
	size_t bytes, stride;
	int kind;
	uint64_t seed;
	struct pattern nan, huge;
};

__device__ static void poison_bytes(const struct poison &p, uint8_t *to, size_t from, int kind, uint64_t seed)
{
	for (size_t i = from; i < p.bytes; i++) {
		uint64_t u = ref_random(seed, i / 8);
		struct pattern q = kind == DEVICE_POISON_HUGE ? p.huge : p.nan;

		to[i] = kind == DEVICE_POISON_EARLIER ? p.earlier[i] : (uint8_t)((q.fixed | (u & q.random)) >> (i % 8 * 8));
	}
}

__global__ static void poison_kernel(struct poison p)
{
	size_t step = (size_t)gridDim.x * blockDim.x, first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, count = p.bytes / 16;
	uint64_t seed = ref_random(p.seed, blockIdx.y);
	uint8_t *to = p.to + blockIdx.y * p.stride;
	int kind = p.kind != DEVICE_POISON_MIXED ? p.kind : (int)ref_below(~p.seed, blockIdx.y, p.earlier ? 3 : 2);
	struct pattern q = kind == DEVICE_POISON_HUGE ? p.huge : p.nan;

	for (size_t i = first; i < count; i += step) {
		uint64_t a = q.fixed | (ref_random(seed, 2 * i) & q.random), b = q.fixed | (ref_random(seed, 2 * i + 1) & q.random);

		if (kind == DEVICE_POISON_EARLIER)
			((uint4 *)to)[i] = ((const uint4 *)p.earlier)[i];
		else
			((uint4 *)to)[i] = make_uint4((uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b, (uint32_t)(b >> 32));
	}
	if (first == 0)
		poison_bytes(p, to, count * 16, kind, seed);
}

int device_poison(struct device *d, enum task_dtype dtype, void *to, size_t bytes, size_t stride, size_t copies,
		  enum device_poison_kind kind, const void *earlier, uint64_t seed, struct error *err)
{
	struct poison p = { (uint8_t *)to, (const uint8_t *)earlier, bytes, stride, kind, seed, all_over(dtype, true), all_over(dtype, false) };
	unsigned blocks = device_blocks(d, bytes / 16, 256 * 4);

	if (bytes == 0 || copies == 0)
		return 0;
	if (kind == DEVICE_POISON_EARLIER && !earlier)
		p.kind = DEVICE_POISON_HUGE;
	return device_launch(d, "poison", err, poison_kernel, dim3(blocks, (unsigned)copies), 256, p);
}
