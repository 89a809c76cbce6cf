// Which sites a checkerboard keeps, as masks that lie in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#include "cpu/simd.h"
#include "masking.h"

namespace pnf::cpu::PNF_ISA {

// A plane repeats itself after two rows, or after two sites where sites alternate across the end of a row too. So a
// short table serves planes of any size.
class Checkerboard {
 public:
  // A checkerboard whose masks are never read.
  Checkerboard() = default;

  // Every step-th site has `bytes` bytes: all ones if the site is kept, and zero if not.
  Checkerboard(const Sites<int64_t>& sites, int64_t bytes, int64_t step = 1) {
    const int64_t rows = sites.width < sites.count ? 2 : 1, row = (rows == 2 ? sites.width : 2) / step;
    char* const to = resize(rows * row * bytes);
    const bool keep = sites.kept(0);
    for (int64_t i = 0; i < rows; ++i) fill_row(to + i * row * bytes, keep == (i == 0), step == 1, row, bytes);
    repeat(to, rows * row * bytes, size_);
  }

  // Masks that keep every site.
  static Checkerboard everything() {
    Checkerboard all;
    char* const to = all.resize(1);
    std::memset(to, 0xff, static_cast<size_t>(all.size_));
    return all;
  }

  // Reads the masks of consecutive entries, vector by vector. A mask has the size of a C.
  template <typename C>
  class Cursor {
   public:
    Cursor(const Checkerboard& board, int64_t entry)
        : masks_(board.masks_.get()), period_(board.period_), at_(board.place(entry * kSize)) {}

    IntVec<C> next() {
      const IntVec<C> kept = read<IntVec<C>>(masks_ + at_);
      at_ += PNF_VECTOR_BYTES;
      if (at_ >= period_) at_ -= period_;
      return kept;
    }

    // Goes back by fewer entries than a vector has.
    void back(int64_t entries) {
      at_ -= entries * kSize;
      if (at_ < 0) at_ += period_;
    }

   private:
    static constexpr int64_t kSize = sizeof(C);

    const char* masks_;
    int64_t period_, at_;
  };

  template <typename C>
  Cursor<C> from(int64_t entry) const {
    return {*this, entry};
  }

  // Calls body(begin, end, masks) on the parts of [begin, end), bytes of a plane, whose masks lie in one piece.
  template <typename Body>
  void each(int64_t begin, int64_t end, const Body& body) const {
    while (begin < end) {
      const int64_t at = place(begin), next = std::min(end, begin + period_ - at);
      body(begin, next, masks_.get() + at);
      begin = next;
    }
  }

  // Writes the masks of the entries [first, last) of a plane; they have the size of a T.
  template <typename T>
  void write(T* to, int64_t first, int64_t last) const {
    char* out = reinterpret_cast<char*>(to);
    each(first * static_cast<int64_t>(sizeof(T)), last * static_cast<int64_t>(sizeof(T)),
         [&](int64_t begin, int64_t end, const char* masks) {
           std::memcpy(out, masks, static_cast<size_t>(end - begin));
           out += end - begin;
         });
  }

 private:
  // Short periods are repeated, for long loops.
  static constexpr int64_t kLeast = 1 << 11;

  int64_t place(int64_t byte) const { return byte < period_ ? byte : byte % period_; }

  // Alternating masks, or equal ones.
  static void fill_row(char* to, bool keep, bool alternate, int64_t count, int64_t bytes) {
    std::memset(to, keep ? 0xff : 0, static_cast<size_t>(bytes));
    if (count == 1) return;
    std::memset(to + bytes, keep != alternate ? 0xff : 0, static_cast<size_t>(bytes));
    repeat(to, 2 * bytes, count * bytes);
  }

  // Fills [n, all) with the first n bytes over and over.
  static void repeat(char* to, int64_t n, int64_t all) {
    for (; n < all; n *= 2) std::memcpy(to + n, to, static_cast<size_t>(std::min(n, all - n)));
  }

  // A vector may be loaded from any place of a period.
  char* resize(int64_t bytes) {
    period_ = bytes * std::max<int64_t>(1, kLeast / bytes);
    size_ = period_ + PNF_VECTOR_BYTES;
    masks_.reset(new char[static_cast<size_t>(size_)]);
    return masks_.get();
  }

  int64_t period_ = 1, size_ = 0;
  std::unique_ptr<char[]> masks_;
};

}  // namespace pnf::cpu::PNF_ISA
