// Sums over the rows of [rows, length] that are the same bit for bit whatever the number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {

// Entries of a row that are summed by one call: few enough that the lanes of a vector stay exact, and enough to be
// worth a thread.
inline constexpr int64_t kChunk = 1024;

// Calls body(row, first, last) for entries [first, last) of each row, in parallel; an empty row has one empty chunk.
template <typename Body>
void for_chunks(int64_t rows, int64_t length, int threads, const Body& body) {
  const int64_t chunks = std::max<int64_t>((length + kChunk - 1) / kChunk, 1);
  const int64_t grain = 2 * kChunk / std::clamp<int64_t>(length, 1, kChunk);
  parallel_for(rows * chunks, grain, threads, [&](int64_t begin, int64_t end) {
    int64_t row = begin / chunks, chunk = begin % chunks;
    for (int64_t i = begin; i < end; ++i) {
      body(row, chunk * kChunk, std::min((chunk + 1) * kChunk, length));
      if (++chunk == chunks) chunk = 0, ++row;
    }
  });
}

// A sum in double that is rounded at its end only (Neumaier's), so that many parts cost no accuracy.
class ExactSum {
 public:
  void add(double x) {
    const double next = total_ + x;
    lost_ += std::abs(total_) >= std::abs(x) ? (total_ - next) + x : (x - next) + total_;
    total_ = next;
  }
  // Past infinity, nothing is known of what was lost.
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

// A sum of entries that are added in double but for four of them at a time: in float alone many lose accuracy.
template <typename C>
class LaneSum {
 public:
  void add(Vec<C> v) { add_to(lanes_, v); }
  // term(i) for the whole vectors of entries [first, last), and rest(i, n) for the n entries that are left.
  template <typename Term, typename Rest>
  void add(int64_t first, int64_t last, const Term& term, const Rest& rest) {
    constexpr int k = kLanes<C>;
    int64_t i = first;
    for (; i + 4 * k <= last; i += 4 * k) add((term(i) + term(i + k)) + (term(i + 2 * k) + term(i + 3 * k)));
    for (; i + k <= last; i += k) add(term(i));
    if (i < last) add(rest(i, last - i));
  }
  void add(const C* values, int64_t n) {
    add(
        0, n, [&](int64_t i) { return load(values + i); },
        [&](int64_t i, int64_t left) { return load_part(values + i, left); });
  }
  double total() const {
    Vec<double> v = load(lanes_);
    if constexpr (kLanes<C> > kLanes<double>) v += load(lanes_ + kLanes<double>);
    return sum<double>(v);
  }

 private:
  double lanes_[kLanes<C>] = {};
};

// The sum of term(i) over the whole vectors of entries [first, last) and of rest(i, n) over the n entries that are
// left.
template <typename C, typename Term, typename Rest>
double sum_terms(int64_t first, int64_t last, const Term& term, const Rest& rest) {
  LaneSum<C> sum;
  sum.add(first, last, term, rest);
  return sum.total();
}

// Calls finish(row, total), total in double, for each row: the sum of part(row, first, last) over its chunks, in order.
template <typename Part, typename Finish>
void sum_rows(int64_t rows, int64_t length, int threads, const Part& part, const Finish& finish) {
  const int64_t chunks = std::max<int64_t>((length + kChunk - 1) / kChunk, 1);
  if (chunks == 1) {
    for_chunks(rows, length, threads, [&](int64_t row, int64_t first, int64_t last) {
      finish(row, static_cast<double>(part(row, first, last)));
    });
    return;
  }
  std::vector<double> parts(static_cast<size_t>(rows * chunks));
  for_chunks(rows, length, threads, [&](int64_t row, int64_t first, int64_t last) {
    parts[static_cast<size_t>(row * chunks + first / kChunk)] = static_cast<double>(part(row, first, last));
  });
  for (int64_t row = 0; row < rows; ++row) {
    ExactSum total;
    for (int64_t i = 0; i < chunks; ++i) total.add(parts[static_cast<size_t>(row * chunks + i)]);
    finish(row, total.value());
  }
}

// Calls whole(i) for each whole vector of entries [first, last), and rest(i, n) for the n entries that are left over.
template <typename C, typename Whole, typename Rest>
inline void for_vectors(int64_t first, int64_t last, const Whole& whole, const Rest& rest) {
  int64_t i = first;
  for (; i + kLanes<C> <= last; i += kLanes<C>) whole(i);
  if (i < last) rest(i, last - i);
}

}  // namespace pnf::cpu::PNF_ISA
