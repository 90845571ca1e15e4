import triton
import triton.language as tl


@triton.jit
def norm(x, w, y):
    row = tl.program_id(0)
