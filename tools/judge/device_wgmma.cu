/* device_wgmma.cu - device_wgmma.cuh, for compute capability 9.0 with its own instructions (sm_90a).
 *
 * One block of two warpgroups on each processor; a warpgroup adds products of 64 x K and K x 256 elements in shared
 * memory to the same 64 x 256 sums, K being 32 bytes. Tiles are of 8 x 16 byte pieces one behind the other, not swizzled.
 */
#include "device_core.cuh"
#include "device_wgmma.cuh"

enum {
	THREADS = 256,
	SLICES = 4,                             /* products of one group */
	LEFT_BYTES = 64 * 32, RIGHT_BYTES = 256 * 32, /* of one slice */
	PIECE = 128, PIECE_PAIR = 256,          /* to the next piece along K, and along rows or columns */
};

#define EIGHT(d, i) \
	"+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SIXTY_FOUR(d, i) \
	EIGHT(d, i), EIGHT(d, i + 8), EIGHT(d, i + 16), EIGHT(d, i + 24), EIGHT(d, i + 32), EIGHT(d, i + 40), EIGHT(d, i + 48), EIGHT(d, i + 56)
#define SUMS \
	"{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
	" %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
	" %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
	" %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63," \
	" %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79," \
	" %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95," \
	" %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111," \
	" %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"

/* The predicate says that the sums are kept; the numbers behind it are signs and, for 16-bit types, "not transposed". */
#define MULTIPLY(shape, end) \
	asm volatile("{ .reg .pred keep; setp.ne.b32 keep, 1, 0; wgmma.mma_async.sync.aligned." shape " " SUMS ", %128, %129, keep, " end "; }" \
		     : SIXTY_FOUR(d, 0), SIXTY_FOUR(d, 64) \
		     : "l"(left), "l"(right))

template <enum device_matrix TYPE> __device__ static void multiply(float d[128], uint64_t left, uint64_t right)
{
	if (TYPE == DEVICE_TF32)
		MULTIPLY("m64n256k8.f32.tf32.tf32", "1, 1");
	if (TYPE == DEVICE_BF16)
		MULTIPLY("m64n256k16.f32.bf16.bf16", "1, 1, 0, 0");
	if (TYPE == DEVICE_FP16)
		MULTIPLY("m64n256k16.f32.f16.f16", "1, 1, 0, 0");
	if (TYPE == DEVICE_FP8)
		MULTIPLY("m64n256k32.f32.e4m3.e4m3", "1, 1");
}

/* What tells the tensor cores where a tile is: address, and the two distances, in units of 16 bytes. */
__device__ static uint64_t descriptor(const void *tile)
{
	uint64_t address = (uint64_t)__cvta_generic_to_shared(tile);

	return (address & 0x3ffff) >> 4 | (uint64_t)(PIECE >> 4) << 16 | (uint64_t)(PIECE_PAIR >> 4) << 32;
}

template <enum device_matrix TYPE> __global__ static void __launch_bounds__(THREADS, 1) wgmma_kernel(unsigned passes, float *never)
{
	__shared__ __align__(1024) unsigned tiles[SLICES * (LEFT_BYTES + RIGHT_BYTES) / 4];
	const unsigned char *bytes = (const unsigned char *)tiles;
	uint64_t left = descriptor(bytes), right = descriptor(bytes + SLICES * LEFT_BYTES);
	float d[128], total = 0;

	for (unsigned i = threadIdx.x; i < sizeof(tiles) / 4; i += THREADS)
		tiles[i] = device_matrix_bits(TYPE, i);
#pragma unroll
	for (int i = 0; i < 128; i++)
		d[i] = 0;
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
	__syncthreads();
	for (unsigned pass = 0; pass < passes; pass++) {
		asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
		for (int s = 0; s < SLICES; s++)
			multiply<TYPE>(d, left + (unsigned)(s * LEFT_BYTES >> 4), right + (unsigned)(s * RIGHT_BYTES >> 4));
		asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
		asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
	}
#pragma unroll
	for (int i = 0; i < 128; i++)
		total += d[i];
	if (total == 12345.678f)
		*never = total;
}

int device_wgmma(struct device *d, enum device_matrix type, unsigned passes, float *never, double *operations, struct error *err)
{
	void (*kernel)(unsigned, float *) = type == DEVICE_TF32	  ? wgmma_kernel<DEVICE_TF32>
					    : type == DEVICE_BF16 ? wgmma_kernel<DEVICE_BF16>
					    : type == DEVICE_FP16 ? wgmma_kernel<DEVICE_FP16>
								  : wgmma_kernel<DEVICE_FP8>;
	int depth = type == DEVICE_TF32 ? 8 : type == DEVICE_FP8 ? 32 : 16;

	*operations = 2.0 * 64 * 256 * depth * SLICES * (THREADS / 128) * d->identity.processors * passes;
	return device_launch(d, "probe: matrices", err, kernel, (unsigned)d->identity.processors, THREADS, passes, never);
}
