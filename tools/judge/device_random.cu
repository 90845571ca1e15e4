/* device_random.cu - device.h: the inputs. Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3,
 * 2011) with the number of a group of 8 elements as the counter, and a stream for each use of it. */
#include "device_core.cuh"

#include "reference_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum { GROUP = 8 }; /* elements of one thread's step */

/* Streams: elements take 0 and 1, Student's t one for each element from STREAM_T on. */
enum { STREAM_ROW = 2, STREAM_RUN, STREAM_T };

static constexpr float CUT_NORMAL = 5.2f, CUT_T3 = 264;

__device__ static uint4 philox(uint64_t counter, uint32_t stream, uint64_t seed)
{
	uint4 c = make_uint4((uint32_t)counter, (uint32_t)(counter >> 32), stream, 0);
	uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);

#pragma unroll
	for (int i = 0; i < 10; i++) {
		uint32_t high0 = __umulhi(0xd2511f53u, c.x), low0 = 0xd2511f53u * c.x;
		uint32_t high1 = __umulhi(0xcd9e8d57u, c.z), low1 = 0xcd9e8d57u * c.z;

		c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
		k0 += 0x9e3779b9u;
		k1 += 0xbb67ae85u;
	}
	return c;
}

/* Two normals of 64 random bits, by Box and Muller. The fast logarithm may be above 0 for arguments just below 1. */
__device__ static float2 normals(uint32_t a, uint32_t b)
{
	float logarithm = fminf(__logf((float)((a >> 8) + 1) * 0x1p-24f), 0.0f), sine, cosine;
	float radius = fminf(sqrtf(-2.0f * logarithm), CUT_NORMAL);

	__sincosf((float)(int32_t)b * 1.4629180792671596e-9f, &sine, &cosine); /* pi / 2^31 */
	return make_float2(radius * cosine, radius * sine);
}

__device__ static void normal_group(uint64_t group, uint64_t seed, float v[GROUP])
{
#pragma unroll
	for (int half = 0; half < 2; half++) {
		uint4 u = philox(group, (uint32_t)half, seed);
		float2 first = normals(u.x, u.y), second = normals(u.z, u.w);

		v[4 * half] = first.x;
		v[4 * half + 1] = first.y;
		v[4 * half + 2] = second.x;
		v[4 * half + 3] = second.y;
	}
}

/* A normal over the root of the mean square of three others. */
__device__ static float student_t3(uint64_t group, uint32_t element, uint64_t seed)
{
	uint4 u = philox(group, STREAM_T + element, seed);
	float2 a = normals(u.x, u.y), b = normals(u.z, u.w);
	float t = a.x * rsqrtf((a.y * a.y + b.x * b.x + b.y * b.y) * (1 / 3.0f));

	return fminf(fmaxf(t, -CUT_T3), CUT_T3);
}

/* Signs are constant along 32 neighbours; magnitudes have few bits, so that sums can cancel exactly. */
__device__ static float structured(uint32_t u, bool negative)
{
	int eighths = (int)(u & 7) + (negative ? -8 : 0);

	return (float)eighths * (((u >> 8) & 63) == 0 ? 1.0f : 0.125f);
}

__device__ static void structured_group(uint64_t group, uint64_t seed, float v[GROUP])
{
	bool negative = philox(group * GROUP >> 5, STREAM_RUN, seed).x & 1;

#pragma unroll
	for (int half = 0; half < 2; half++) {
		uint4 u = philox(group, (uint32_t)half, seed);

		v[4 * half] = structured(u.x, negative);
		v[4 * half + 1] = structured(u.y, negative);
		v[4 * half + 2] = structured(u.z, negative);
		v[4 * half + 3] = structured(u.w, negative);
	}
}

__device__ static float row_scale(uint64_t row, uint64_t seed)
{
	uint4 u = philox(row, STREAM_ROW, seed);

	return expf(0.7f * normals(u.x, u.y).x);
}

__device__ static void scale_group(uint64_t group, uint64_t columns, uint64_t seed, float v[GROUP])
{
	uint64_t row = group * GROUP / columns, left = columns - (group * GROUP - row * columns);
	float factor = row_scale(row, seed);

#pragma unroll
	for (int i = 0; i < GROUP; i++) {
		if (left == 0) {
			factor = row_scale(++row, seed);
			left = columns;
		}
		v[i] *= factor;
		left--;
	}
}

template <int SET> __device__ static void draw_group(uint64_t group, uint64_t columns, uint64_t seed, float v[GROUP])
{
	if (SET == REF_STUDENT_T3) {
#pragma unroll
		for (uint32_t i = 0; i < GROUP; i++)
			v[i] = student_t3(group, i, seed);
	} else if (SET == REF_STRUCTURED) {
		structured_group(group, seed, v);
	} else {
		normal_group(group, seed, v);
	}
	if (SET == REF_ROW_SCALED)
		scale_group(group, columns, seed, v);
#pragma unroll
	for (int i = 0; i < GROUP && SET == REF_SHIFTED; i++)
		v[i] += 2;
}

/* ---- storing ---------------------------------------------------------------------------------------------------- */

struct as_float32 {
	typedef float type;
	__device__ static float of(float x) { return x; }
};

struct as_float16 {
	typedef uint16_t type;
	__device__ static uint16_t of(float x) { return __half_as_ushort(__float2half_rn(x)); }
};

struct as_bfloat16 {
	typedef uint16_t type;
	__device__ static uint16_t of(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
};

template <typename AS, int SET>
__global__ static void __launch_bounds__(256) fill_kernel(typename AS::type *to, uint64_t count, uint64_t columns, uint64_t seed)
{
	uint64_t groups = (count + GROUP - 1) / GROUP, step = (uint64_t)gridDim.x * blockDim.x;

	for (uint64_t g = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; g < groups; g += step) {
		struct __align__(16) { typename AS::type e[GROUP]; } packed;
		float v[GROUP];

		draw_group<SET>(g, columns, seed, v);
#pragma unroll
		for (int i = 0; i < GROUP; i++)
			packed.e[i] = AS::of(v[i]);
		if ((g + 1) * GROUP <= count) {
#pragma unroll
			for (size_t i = 0; i < sizeof(packed) / sizeof(uint4); i++)
				((uint4 *)(to + g * GROUP))[i] = ((const uint4 *)&packed)[i];
		} else {
#pragma unroll
			for (int i = 0; i < GROUP; i++)
				if (g * GROUP + i < count)
					to[g * GROUP + i] = packed.e[i];
		}
	}
}

__global__ static void fill_bool_kernel(uint8_t *to, uint64_t count, uint64_t seed)
{
	uint64_t groups = (count + 15) / 16, step = (uint64_t)gridDim.x * blockDim.x;

	for (uint64_t g = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; g < groups; g += step) {
		uint4 u = philox(g, 0, seed);
		uint32_t words[4] = { u.x, u.y, u.z, u.w };

#pragma unroll
		for (int i = 0; i < 16; i++)
			if (g * 16 + i < count)
				to[g * 16 + i] = words[i / 4] >> (i % 4 * 8) & 1;
	}
}

template <typename AS>
static int fill_floats(struct device *d, void *to, size_t elements, size_t columns, int set, uint64_t seed, struct error *err)
{
	void (*kernel)(typename AS::type *, uint64_t, uint64_t, uint64_t) = fill_kernel<AS, REF_NORMAL>;

	if (set == REF_SHIFTED)
		kernel = fill_kernel<AS, REF_SHIFTED>;
	if (set == REF_ROW_SCALED)
		kernel = fill_kernel<AS, REF_ROW_SCALED>;
	if (set == REF_STUDENT_T3)
		kernel = fill_kernel<AS, REF_STUDENT_T3>;
	if (set == REF_STRUCTURED)
		kernel = fill_kernel<AS, REF_STRUCTURED>;
	return device_launch(d, "random inputs", err, kernel, device_blocks(d, elements, 256 * GROUP), 256, (typename AS::type *)to,
			     (uint64_t)elements, (uint64_t)columns, seed);
}

int device_fill(struct device *d, enum task_dtype dtype, void *to, size_t elements, size_t columns, int set, uint64_t seed,
		struct error *err)
{
	if (elements == 0)
		return 0;
	switch (dtype) {
	case DTYPE_FLOAT32:
		return fill_floats<as_float32>(d, to, elements, columns, set, seed, err);
	case DTYPE_FLOAT16:
		return fill_floats<as_float16>(d, to, elements, columns, set, seed, err);
	case DTYPE_BFLOAT16:
		return fill_floats<as_bfloat16>(d, to, elements, columns, set, seed, err);
	case DTYPE_BOOL:
		return device_launch(d, "random inputs", err, fill_bool_kernel, device_blocks(d, elements, 256 * 16), 256, (uint8_t *)to,
				     (uint64_t)elements, seed);
	default:
		return device_zero(d, to, (elements * dtype_bits(dtype) + 7) / 8, err);
	}
}
