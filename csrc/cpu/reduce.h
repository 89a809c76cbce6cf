// Sums over the rows of [rows, length], the same bit for bit for any number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {

// Entries of a row that are summed at once: few enough that the lanes of a vector stay accurate, and enough to be worth
// half a thread.
inline constexpr int64_t kChunk = 1024;

// Neumaier's sum in double, rounded once at its end: many parts cost no accuracy.
class ExactSum {
 public:
  void add(double x) {
    const double next = total_ + x;
    lost_ += std::abs(total_) >= std::abs(x) ? (total_ - next) + x : (x - next) + total_;
    total_ = next;
  }
  // Infinite or NaN terms make the rounding errors meaningless.
  double value() const { return std::isfinite(lost_) ? total_ + lost_ : total_; }

 private:
  double total_ = 0, lost_ = 0;
};

// sums[i] += v[i]
inline void add_to(double* sums, Vec<double> v) { store(sums, load(sums) + v); }

inline void add_to(double* sums, Vec<float> v) {
  using Half = float __attribute__((vector_size(PNF_VECTOR_BYTES / 2)));
  Half halves[2];
  std::memcpy(halves, &v, sizeof(v));
  add_to(sums, __builtin_convertvector(halves[0], Vec<double>));
  add_to(sums + kLanes<double>, __builtin_convertvector(halves[1], Vec<double>));
}

// A sum in double of sums of four vectors each: float alone loses accuracy over many entries.
template <typename C>
class LaneSum {
 public:
  void add(Vec<C> v) { add_to(lanes_, v); }
  // term(i, lanes) for the vectors of entries [first, last).
  template <typename Term>
  void add(int64_t first, int64_t last, const Term& term) {
    constexpr int64_t k = kLanes<C>;
    const Whole<C> all;
    int64_t i = first;
    for (; i + 4 * k <= last; i += 4 * k) {
      add((term(i, all) + term(i + k, all)) + (term(i + 2 * k, all) + term(i + 3 * k, all)));
    }
    for_vectors<C>(i, last, [&](int64_t at, auto lanes) { add(term(at, lanes)); });
  }
  void add(const C* values, int64_t n) {
    constexpr int64_t k = kLanes<C>;
    int64_t i = 0;
    for (; i + 4 * k <= n; i += 4 * k) {
      const C* v = values + i;
      add((load(v) + load(v + k)) + (load(v + 2 * k) + load(v + 3 * k)));
    }
    for (; i + k <= n; i += k) add(load(values + i));
    if (i < n) add_rest(values + i, n - i);
  }
  double total() const {
    Vec<double> v = load(lanes_);
    if constexpr (kLanes<C> > kLanes<double>) v += load(lanes_ + kLanes<double>);
    return sum<double>(v);
  }

 private:
  // Not inlined, since it takes long to compile.
  [[gnu::noinline]] void add_rest(const C* values, int64_t n) { add(load_part(values, n)); }

  double lanes_[kLanes<C>] = {};
};

// The sum of term(i, lanes) over the vectors of entries [first, last).
template <typename C, typename Term>
double sum_terms(int64_t first, int64_t last, const Term& term) {
  LaneSum<C> sum;
  sum.add(first, last, term);
  return sum.total();
}

// Calls finish(row, total), total in double, for each row: the sum of part(row, first, last) over its chunks, in order.
template <typename Part, typename Finish>
void sum_rows(int64_t rows, int64_t length, int threads, const Part& part, const Finish& finish) {
  const int64_t chunks = std::max<int64_t>((length + kChunk - 1) / kChunk, 1);
  std::vector<double> parts(static_cast<size_t>(chunks == 1 ? 0 : rows * chunks));
  for_chunks(rows, length, kChunk, threads, [&](int64_t row, int64_t first, int64_t last) {
    const double total = static_cast<double>(part(row, first, last));
    if (chunks == 1) {
      finish(row, total);
    } else {
      parts[static_cast<size_t>(row * chunks + first / kChunk)] = total;
    }
  });
  if (chunks == 1) return;
  for (int64_t row = 0; row < rows; ++row) {
    ExactSum total;
    for (int64_t i = 0; i < chunks; ++i) total.add(parts[static_cast<size_t>(row * chunks + i)]);
    finish(row, total.value());
  }
}

}  // namespace pnf::cpu::PNF_ISA
