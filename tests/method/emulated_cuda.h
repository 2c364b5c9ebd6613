// What `cuda_instructions.h` offers, on a CPU: every lane is a coroutine, and lanes that have to meet wait for each other.
// Shared memory begins as NaN, and an address outside of it ends the process. What a GPU may do in any order is done in
// two, each warp as far as it gets alone: copies at once and the first warp first; or, `late`, copies when they are waited
// for and the last warp first.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

typedef unsigned int u32;
using std::min;

#define FUNCTION static inline
#define KERNEL(threads) static void

struct Index {
    u32 x = 0, y = 0, z = 0;
};
static Index threadIdx, blockIdx;

// ---- lanes

struct Copy {
    u32 to;
    const void* from;
};
struct Lane {
    std::vector<Copy> copies;  // on their way
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false, at_meeting_of_all = false;
    u32 meetings = 0;  // of its warp
};
struct Meeting {
    u32 here = 0, number = 0;
};
struct Warp {
    Meeting meeting;
    u32 words[2][32][8];
};
static std::vector<Lane> lanes;
static std::vector<Warp> warps;
static Meeting all;
static ucontext_t scheduler;
static bool late;
static std::vector<unsigned char> memory_of_block;

static void wait_at(Meeting& meeting, u32 size) {
    const u32 number = meeting.number;
    if (++meeting.here == size) {
        meeting.here = 0;
        meeting.number++;
    }
    while (meeting.number == number) {
        const u32 lane = threadIdx.x;
        lanes[lane].at_meeting_of_all = size > 32 || lanes.size() == 32;
        swapcontext(&lanes[lane].context, &scheduler);
        threadIdx.x = lane;
    }
}

FUNCTION void meet() { wait_at(all, lanes.size()); }

// The words of all lanes of the warp; what is written for the next meeting does not disturb those who still read.
FUNCTION u32 (*exchange(const u32* words, int count))[8] {
    Warp& warp = warps[threadIdx.x / 32];
    u32(*all_words)[8] = warp.words[lanes[threadIdx.x].meetings++ % 2];
    std::copy(words, words + count, all_words[threadIdx.x % 32]);
    wait_at(warp.meeting, 32);
    return all_words;
}

// ---- numbers

FUNCTION u32 bits(float x) {
    u32 word;
    std::memcpy(&word, &x, 4);
    return word;
}

FUNCTION float from_bits(u32 word) {
    float x;
    std::memcpy(&x, &word, 4);
    return x;
}

FUNCTION double float16(u32 half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    double x = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return half & 0x8000 ? -x : x;
}

FUNCTION u32 to_float16(double x) {
    const u32 sign = std::signbit(x) ? 0x8000 : 0;
    x = std::fabs(x);
    if (std::isnan(x)) return 0x7fff;
    if (x >= 65520) return sign | 0x7c00;
    const int exponent = std::max(-14, x > 0 ? std::ilogb(x) : -14);
    const u32 scaled = static_cast<u32>(std::nearbyint(std::ldexp(x, 10 - exponent)));  // a carry goes to the exponent
    return sign | (scaled + ((exponent + 14) << 10));
}

FUNCTION float bfloat16(u32 half) { return from_bits(half << 16); }

FUNCTION u32 to_bfloat16(float x) {
    const u32 word = bits(x);
    return std::isnan(x) ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

FUNCTION double of_type(u32 half) { return BFLOAT16 ? bfloat16(half & 0xffff) : float16(half & 0xffff); }
FUNCTION u32 float16_pair(float first, float second) { return to_float16(first) | to_float16(second) << 16; }
FUNCTION u32 pair_of_type(float first, float second) {
    return BFLOAT16 ? to_bfloat16(first) | to_bfloat16(second) << 16 : float16_pair(first, second);
}
FUNCTION void split_float16_pair(u32 pair, float& first, float& second) {
    first = float16(pair & 0xffff);
    second = float16(pair >> 16);
}
FUNCTION u32 fma_float16_pair(u32 a, u32 b, u32 c) {
    const auto half = [&](int shift) {
        return to_float16(float16(a >> shift & 0xffff) * float16(b >> shift & 0xffff) + float16(c >> shift & 0xffff));
    };
    return half(0) | half(16) << 16;
}
FUNCTION float exp2_of(float x) { return std::exp2(x); }
FUNCTION float log2_of(float x) { return std::log2(x); }
FUNCTION float of_lane_xor(float x, int mask) {
    const u32 word = bits(x);
    return from_bits(exchange(&word, 1)[threadIdx.x % 32 ^ mask][0]);
}

// ---- shared memory

FUNCTION u32 shared_memory() { return 0; }

FUNCTION unsigned char* place(u32 address, u32 size) {
    if (address % size || address + size > memory_of_block.size()) {
        std::fprintf(stderr, "address %u of %zu bytes of shared memory\n", address, memory_of_block.size());
        std::abort();
    }
    return memory_of_block.data() + address;
}

FUNCTION void load_4_words(u32* to, u32 from) { std::memcpy(to, place(from, 16), 16); }
FUNCTION void store_4_words(u32 to, const u32* words) { std::memcpy(place(to, 16), words, 16); }
FUNCTION void store_word(u32 to, u32 word) { std::memcpy(place(to, 4), &word, 4); }
FUNCTION u32 load_word(u32 from) {
    u32 word;
    std::memcpy(&word, place(from, 4), 4);
    return word;
}

FUNCTION void finish(const Copy& copy) {
    if (copy.from) std::memcpy(place(copy.to, 16), copy.from, 16);
    else std::memset(place(copy.to, 16), 0, 16);
}
FUNCTION void copy_16_bytes(u32 to, const void* from, bool read) {
    const Copy copy = {to, read ? from : nullptr};
    if (late) lanes[threadIdx.x].copies.push_back(copy);
    else finish(copy);
}
FUNCTION void wait_for_copies() {
    std::vector<Copy>& copies = lanes[threadIdx.x].copies;
    for (const Copy& copy : copies) finish(copy);
    copies.clear();
}

// ---- matrices

FUNCTION void load_matrices(u32* to, u32 row, int count, bool transposed) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const u32(*rows)[8] = exchange(&row, 1);
    for (int i = 0; i < count; i++) {
        const auto number = [&](int r, int c) -> u32 {
            std::uint16_t half;
            std::memcpy(&half, place(rows[8 * i + r][0], 16) + 2 * c, 2);
            return half;
        };
        to[i] = transposed ? number(2 * t, g) | number(2 * t + 1, g) << 16 : number(g, 2 * t) | number(g, 2 * t + 1) << 16;
    }
}

FUNCTION void load_matrices_4(u32* to, u32 row) { load_matrices(to, row, 4, false); }
FUNCTION void load_matrices_2(u32* to, u32 row) { load_matrices(to, row, 2, false); }
FUNCTION void load_transposed_4(u32* to, u32 row) { load_matrices(to, row, 4, true); }
FUNCTION void load_transposed_2(u32* to, u32 row) { load_matrices(to, row, 2, true); }

// As "Matrix Fragments" of the PTX manual has them: a [16, 8 parts], b [8 parts, 8], c [16, 8].
FUNCTION void multiply(float* c, const u32* a, const u32* b, int parts) {
    u32 words[6];
    std::copy(a, a + 2 * parts, words);
    std::copy(b, b + parts, words + 2 * parts);
    const u32(*all_words)[8] = exchange(words, 3 * parts);
    const int lane = threadIdx.x % 32;
    for (int e = 0; e < 4; e++) {
        const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
        double total = c[e];
        for (int k = 0; k < 8 * parts; k++) {
            const int t = k % 8 / 2, shift = k % 2 * 16;
            const u32 left = all_words[row % 8 * 4 + t][row / 8 + k / 8 * 2] >> shift;
            const u32 right = all_words[column * 4 + t][2 * parts + k / 8] >> shift;
            total += of_type(left) * of_type(right);
        }
        c[e] = total;
    }
}

FUNCTION void multiply_16(float* c, const u32* a, u32 b0, u32 b1) {
    const u32 b[2] = {b0, b1};
    multiply(c, a, b, 2);
}
FUNCTION void multiply_8(float* c, const u32* a, u32 b) { multiply(c, a, &b, 1); }

// ---- a launch, behind the kernel's source: `emulate(late, threads, shared memory, blocks x, y, z, arguments)`

static void run_block(u32 threads, u32 bytes, void (*run_lane)()) {
    memory_of_block.assign(bytes, 0xff);
    lanes.clear();
    lanes.resize(threads);
    warps.assign(threads / 32, Warp());
    all = Meeting();
    for (Lane& lane : lanes) {
        lane.stack.reset(new char[256 * 1024]);
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack.get();
        lane.context.uc_stack.ss_size = 256 * 1024;
        lane.context.uc_link = &scheduler;
        makecontext(&lane.context, run_lane, 0);
    }
    for (u32 left = threads; left;)
        for (u32 i = 0; i < threads / 32; i++) {
            const u32 first = 32 * (late ? threads / 32 - 1 - i : i);
            bool goes_on = true;
            while (goes_on) {
                goes_on = false;
                for (u32 lane = first; lane < first + 32; lane++) {
                    if (lanes[lane].done) continue;
                    threadIdx.x = lane;
                    lanes[lane].at_meeting_of_all = false;
                    swapcontext(&scheduler, &lanes[lane].context);
                    left -= lanes[lane].done;
                    goes_on |= !lanes[lane].done && !lanes[lane].at_meeting_of_all;
                }
            }
        }
}

#define EMULATE(kernel, Given)                                                                            \
    static const Given* given_to_all;                                                                     \
    static void run_lane() {                                                                              \
        const u32 lane = threadIdx.x;                                                                     \
        kernel(*given_to_all);                                                                            \
        lanes[lane].done = true;                                                                          \
    }                                                                                                     \
    extern "C" void emulate(u32 is_late, u32 threads, u32 bytes, u32 x, u32 y, u32 z, const Given* given) {   \
        late = is_late;                                                                                   \
        given_to_all = given;                                                                             \
        for (blockIdx.z = 0; blockIdx.z < z; blockIdx.z++)                                                \
            for (blockIdx.y = 0; blockIdx.y < y; blockIdx.y++)                                            \
                for (blockIdx.x = 0; blockIdx.x < x; blockIdx.x++) run_block(threads, bytes, run_lane);   \
    }
