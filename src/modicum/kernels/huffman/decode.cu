// Decode DFloat11: one thread per chunk of 8 bytes, 512 per block of the stream, in three passes over shared memory.
//
//   1. Every thread reads the codes that begin in its chunk and counts them; a prefix sum gives their places.
//   2. It reads them again and puts the symbols, one byte each, where the whole block collects them.
//   3. All threads together join symbols with raw bytes, eight weights at a time, and write them in order.
//
// A look-up of 11 bits gives up to six symbols at once; longer codes walk the published tables. Bytes beyond the end
// of the stream read as zero, symbols beyond the end of a block are dropped, every step moves on: a damaged stream
// gives wrong weights, never a wrong access.
//
// Arrays: stream, raw, gaps, luts uint8; firsts int32 [blocks + 1]; windows uint64 and first int16 [2048]; out 16 bits.
// Shared memory: windows, first, 16 sums, then `room` bytes for the symbols of a block and 8 more.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define LANES 512
#define WINDOW 11
#define ENTRIES (1 << WINDOW)

// 96 bits of the stream, most significant first; any 32 of them that begin in the first 64 are one shift away.
struct Bits {
  u32 word[3];

  __device__ u32 at(u32 bit) const {
    u32 high = bit < 32 ? word[0] : word[1], low = bit < 32 ? word[1] : word[2];
    return __funnelshift_l(low, high, bit & 31);
  }
};

__device__ Bits load(const u8* stream, u64 at, u64 size) {
  Bits bits;
  if (at + 12 <= size) {
    uint2 head = *(const uint2*)(stream + at);
    u32 tail = *(const u32*)(stream + at + 8);
    bits.word[0] = __byte_perm(head.x, 0, 0x0123);
    bits.word[1] = __byte_perm(head.y, 0, 0x0123);
    bits.word[2] = __byte_perm(tail, 0, 0x0123);
  } else {
    for (int i = 0; i < 3; ++i) {
      bits.word[i] = 0;
      for (int j = 0; j < 4; ++j) {
        u64 place = at + 4 * i + j;
        bits.word[i] = bits.word[i] << 8 | (place < size ? stream[place] : 0);
      }
    }
  }
  return bits;
}

// The bit at which the first code of a chunk begins: 5 bits, in one byte or across two.
__device__ u32 gap_of(const u8* gaps, u64 chunk, u64 size) {
  u64 bit = chunk * 5, byte = bit >> 3;
  u32 high = byte < size ? gaps[byte] : 0, low = byte + 1 < size ? gaps[byte + 1] : 0;
  return ((high << 8 | low) >> (11 - (bit & 7))) & 31;
}

// Length << 8 | symbol of a code longer than a window.
__device__ u32 walk(const u8* luts, int rows, u32 ahead) {
  u32 symbol = luts[ahead >> 24];
  for (int shift = 16; shift >= 0 && symbol >= 240; shift -= 8)
    symbol = luts[256 * (256 - symbol) + (ahead >> shift & 255)];
  u32 length = luts[256 * rows + symbol];
  return (length ? length : 1) << 8 | symbol;
}

// Reads the codes that begin in a chunk; `take(symbols, count)` gets them, up to six in the low bytes.
template <class Take>
__device__ void read(const Bits& bits, u32 bit, const u64* windows, const short* first, const u8* luts, int rows,
                     Take take) {
  while (bit <= 64 - WINDOW) {
    u32 ahead = bits.at(bit);
    u64 entry = windows[ahead >> (32 - WINDOW)];
    if (entry) {
      take(entry, (u32)(entry >> 48) & 255);
      bit += (u32)(entry >> 56);
    } else {
      u32 code = walk(luts, rows, ahead);
      take(code & 255, 1);
      bit += code >> 8;
    }
  }
  while (bit < 64) {
    u32 ahead = bits.at(bit), code = (u16)first[ahead >> (32 - WINDOW)];
    if (!code) code = walk(luts, rows, ahead);
    take(code & 255, 1);
    bit += code >> 8;
  }
}

// The sum of `count` over all threads before this one.
__device__ u32 sum_before(u32 count, u32* sums) {
  u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, sum = count;
  for (int step = 1; step < 32; step *= 2) {
    u32 other = __shfl_up_sync(0xffffffff, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  u32 before = sum - count;
  for (u32 i = 0; i < warp; ++i) before += sums[i];
  return before;
}

// Two weights out of two raw bytes and two symbols, each in a half of its argument.
__device__ u32 join(u32 raw, u32 symbols) { return (raw & 0x00800080) << 8 | symbols << 7 | (raw & 0x007f007f); }

__device__ uint4 join_eight(uint2 raw, uint2 symbols) {
  uint4 weights;
  weights.x = join(__byte_perm(raw.x, 0, 0x4140), __byte_perm(symbols.x, 0, 0x4140));
  weights.y = join(__byte_perm(raw.x, 0, 0x4342), __byte_perm(symbols.x, 0, 0x4342));
  weights.z = join(__byte_perm(raw.y, 0, 0x4140), __byte_perm(symbols.y, 0, 0x4140));
  weights.w = join(__byte_perm(raw.y, 0, 0x4342), __byte_perm(symbols.y, 0, 0x4342));
  return weights;
}

extern "C" __global__ void __launch_bounds__(LANES)
    decode(const u8* stream, const u8* raw, const u8* gaps, const int* firsts, const u64* windows_in,
           const short* first_in, const u8* luts, u16* out, int stream_bytes, int gap_bytes, int rows, int blocks,
           int room) {
  extern __shared__ u64 shared[];
  u64* windows = shared;
  short* first = (short*)(windows + ENTRIES);
  u32* sums = (u32*)(first + ENTRIES);
  u8* symbols = (u8*)(sums + LANES / 32);
  for (int i = threadIdx.x; i < ENTRIES; i += LANES) {
    windows[i] = windows_in[i];
    first[i] = first_in[i];
  }
  for (int block = blockIdx.x; block < blocks; block += gridDim.x) {
    __syncthreads();  // the tables are there, and the symbols of the block before are read
    u64 chunk = (u64)block * LANES + threadIdx.x;
    Bits bits = load(stream, chunk * 8, stream_bytes);
    u32 gap = gap_of(gaps, chunk, gap_bytes), count = 0;
    read(bits, gap, windows, first, luts, rows, [&](u64, u32 number) { count += number; });

    u32 begin = firsts[block], shift = begin & 7;  // so that eight weights lie where sixteen bytes can be written
    u32 end = shift + min(firsts[block + 1] - begin, (u32)room), place = shift + sum_before(count, sums);
    read(bits, gap, windows, first, luts, rows, [&](u64 some, u32 number) {
#pragma unroll
      for (u32 i = 0; i < 6; ++i)
        if (i < number && place + i < end) symbols[place + i] = (u8)(some >> (8 * i));
      place += number;
    });
    __syncthreads();

    for (u32 at = 8 * threadIdx.x; at < end; at += 8 * LANES) {
      u64 target = (u64)begin - shift + at;
      if (at >= shift && at + 8 <= end) {
        *(uint4*)(out + target) = join_eight(*(const uint2*)(raw + target), *(const uint2*)(symbols + at));
      } else {
        for (u32 i = max(at, shift); i < min(at + 8, end); ++i)
          out[target + i - at] = (u16)join(raw[target + i - at], symbols[i]);
      }
    }
  }
}
