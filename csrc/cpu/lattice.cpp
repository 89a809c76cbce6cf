#include "cpu/lattice.h"

#include <algorithm>

#include "cpu/math.h"
#include "cpu/pairs.h"
#include "cpu/parallel.h"

namespace pnf::cpu::PNF_ISA {
namespace {

constexpr double kLeast = 0x1p-24;  // LEAST of pnf/reference/lattice.py
constexpr int64_t kGrain = 8192;    // pairs that are worth a thread

template <typename C>
Vec<C> clamped(Vec<C> x, C least, C most) {
  return at_most(at_least(x, splat(least)), splat(most));
}

// Calls body(start, n) in parallel for pairs [start, start + n), which are kPairs at most.
template <typename Body>
void for_tiles(int64_t pairs, int threads, const Body& body) {
  parallel_for(pairs, kGrain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t start = begin; start < end; start += kPairs) body(start, std::min(kPairs, end - start));
  });
}

}  // namespace

void lattice_split(void* coarser, void* pairs, const void* x, int64_t blocks, int64_t run, int64_t levels, DType dtype,
                   int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const C own = static_cast<C>(levels), last = static_cast<C>(levels - 1), coarse = static_cast<C>(2 * levels - 1);
    for_tiles(blocks * run, threads, [&](int64_t start, int64_t count) {
      Pairs<T> pair{};
      take_apart(pair, static_cast<const T*>(x), start, count, run);
      for (int64_t k = 0; k < count; k += kLanes<C>) {
        const Vec<C> first = own * load(pair.first + k), second = own * load(pair.second + k);
        const Vec<C> a = clamped<C>(floor(first), 0, last), b = clamped<C>(floor(second), 0, last);
        const Vec<C> p = first - a, q = second - b, gap = p - q, width = 1 - abs<C>(gap);
        const Vec<C> v = clamped<C>(at_most(p, q) / at_least(width, splat<C>(kLeast)), 0, 1), w = gap * (1 + width);
        store_some(static_cast<T*>(coarser) + start + k, (a + b + v) / coarse, count - k);
        store(pair.first + k, (a + (1 + w) / 2) / own);
        store(pair.second + k, (b + (1 - w) / 2) / own);
      }
      put_together(static_cast<T*>(pairs), pair, start, count, run);
    });
  });
}

void lattice_merge(void* x, const void* coarser, const void* pairs, int64_t blocks, int64_t run, int64_t levels,
                   DType dtype, int threads) {
  with_dtype(dtype, [&]<typename T>(T) {
    using C = Wide<T>;
    const C own = static_cast<C>(levels), last = static_cast<C>(levels - 1);
    const C coarse = static_cast<C>(2 * levels - 1), most = static_cast<C>(2 * levels - 2);
    for_tiles(blocks * run, threads, [&](int64_t start, int64_t count) {
      Pairs<T> pair{};
      take_apart(pair, static_cast<const T*>(pairs), start, count, run);
      for (int64_t k = 0; k < count; k += kLanes<C>) {
        const Vec<C> scaled = coarse * load_some(static_cast<const T*>(coarser) + start + k, count - k);
        const Vec<C> total = clamped<C>(floor(scaled), 0, most), v = clamped<C>(scaled - total, 0, 1), zero{};
        const Vec<C> first = own * load(pair.first + k);
        const Vec<C> a = at_least(at_most(clamped<C>(floor(first), 0, last), total), total - last);
        const Vec<C> w = clamped<C>(2 * (first - a) - 1, kLeast - 1, 1 - kLeast);
        const Vec<C> width = sqrt(1 - abs<C>(w)), least = v * width, gap = w / (1 + width);
        store(pair.first + k, clamped<C>((a + least + at_least(gap, zero)) / own, 0, 1));
        store(pair.second + k, clamped<C>((total - a + least + at_least(-gap, zero)) / own, 0, 1));
      }
      put_together(static_cast<T*>(x), pair, start, count, run);
    });
  });
}

}  // namespace pnf::cpu::PNF_ISA
