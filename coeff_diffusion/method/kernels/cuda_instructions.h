// What `cuda_kernel.cu` asks of a GPU beyond arithmetic, from compute capability 8.0 on, one function each.
// Addresses of shared memory are 32-bit numbers. BFLOAT16: the type of what is multiplied, else float16.

typedef unsigned int u32;

#define FUNCTION __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

#if BFLOAT16
#define TYPE "bf16"
#else
#define TYPE "f16"
#endif

FUNCTION u32 shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return static_cast<u32>(__cvta_generic_to_shared(memory));
}

FUNCTION u32 bits(float x) { return __float_as_uint(x); }
FUNCTION float from_bits(u32 x) { return __uint_as_float(x); }

FUNCTION float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

FUNCTION float log2_of(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two numbers of 16 bits in a register, the first in the lower half.
FUNCTION u32 float16_pair(float first, float second) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

FUNCTION u32 pair_of_type(float first, float second) {
    u32 pair;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

FUNCTION void split_float16_pair(u32 pair, float& first, float& second) {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(first), "=f"(second) : "r"(pair));
}

// a * b + c, of each half
FUNCTION u32 fma_float16_pair(u32 a, u32 b, u32 c) {
    u32 result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

// Four (two) matrices of 8 x 8 numbers of 16 bits; lanes 8 i to 8 i + 7 name the rows of matrix i.
FUNCTION void load_matrices_4(u32* to, u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row));
}

FUNCTION void load_matrices_2(u32* to, u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(row));
}

FUNCTION void load_transposed_4(u32* to, u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row));
}

FUNCTION void load_transposed_2(u32* to, u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1]) : "r"(row));
}

// c [16, 8] += a [16, 16] b [16, 8], and with 8 instead of the inner 16
FUNCTION void multiply_16(float* c, const u32* a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32"
        " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

FUNCTION void multiply_8(float* c, const u32* a, u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32." TYPE "." TYPE ".f32"
        " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}

// 16 bytes to shared memory, in the background; zeros where none are read.
FUNCTION void copy_16_bytes(u32 to, const void* from, bool read) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(read ? 16 : 0));
}

FUNCTION void wait_for_copies() { asm volatile("cp.async.commit_group; cp.async.wait_group 0;" ::: "memory"); }

FUNCTION void meet() { __syncthreads(); }

FUNCTION float of_lane_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }

FUNCTION u32 load_word(u32 from) {
    u32 word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from));
    return word;
}

FUNCTION void load_4_words(u32* to, u32 from) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from));
}

FUNCTION void store_word(u32 to, u32 word) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(word) : "memory"); }

FUNCTION void store_4_words(u32 to, const u32* words) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}
