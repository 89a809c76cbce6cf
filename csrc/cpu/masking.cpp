#include "cpu/masking.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cpu/checkerboard.h"
#include "cpu/parallel.h"
#include "cpu/short_copy.h"
#include "cpu/simd.h"

// All lengths are bytes, except those that count sites, pairs of sites or rows.
namespace pnf::cpu::PNF_ISA {
namespace {

constexpr int64_t kGrain = 1 << 16;  // worth a thread
constexpr int64_t kTile = 1 << 15;
constexpr int64_t kLong = 1 << 9;  // bytes of a run or a row that are worth a call

using Line = IntVec<float>;
constexpr int64_t kLine = sizeof(Line);

// for_runs over ranges of [0, count) in parallel, with `written` bytes in each step.
template <typename Body>
void runs_in_parallel(int64_t count, int64_t shortest, int64_t longest, int64_t written, int threads,
                      const Body& body) {
  parallel_for(count, kGrain / written, threads,
               [&](int64_t begin, int64_t end) { for_runs(begin, end, shortest, longest, body); });
}

// Joins all planes into one where each continues the alternation of the plane before it.
Board join(const Board& board) {
  if (board.height * board.width % 2) return board;
  if (board.height == 1) return {1, 1, board.outer * board.width, board.inner};
  if (board.height % 2 == 0) return {1, board.outer * board.height, board.width, board.inner};
  return board;
}

// Calls body(begin, end, kept) on the parts of [begin, end), sites of all planes, that lie in one row each: `kept` says
// whether the first site is kept.
template <typename Body>
void for_rows(const Sites<int64_t>& sites, int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const int64_t site = begin % sites.count;
    const int64_t next = std::min(end, begin + sites.width - site % sites.width);
    body(begin, next, sites.kept(site));
    begin = next;
  }
}

void keep(char* out, const char* x, const char* kept, int64_t n) {
  if (n < kLine) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<char>(x[i] & kept[i]);
    return;
  }
  const int64_t last = n - kLine;
  const auto line = [&](int64_t i) { write(out + i, read<Line>(x + i) & read<Line>(kept + i)); };
  for (int64_t i = 0; i < last; i += kLine) line(i);
  line(last);
}

class Mask {
 public:
  Mask(const Board& board, int parity) : sites_(join(board), parity), run_(board.inner), plane_(sites_.count * run_) {
    if (plane_ && run_ < kLong) table_ = Checkerboard(sites_, run_);
  }

  // out = x where it is kept and 0 elsewhere, on [begin, end) of the board; out and x point there.
  void apply(char* out, const char* x, int64_t begin, int64_t end) const {
    while (begin < end) {
      const int64_t at = begin % plane_, n = std::min(end - begin, plane_ - at);
      if (run_ < kLong) {
        table_.each(at, at + n, [&](int64_t from, int64_t to, const char* kept) {
          keep(out + from - at, x + from - at, kept, to - from);
        });
      } else {
        apply_runs(out, x, at, at + n);
      }
      out += n;
      x += n;
      begin += n;
    }
  }

 private:
  void apply_runs(char* out, const char* x, int64_t begin, int64_t end) const {
    while (begin < end) {
      const int64_t site = begin / run_, n = std::min(end, (site + 1) * run_) - begin;
      copy_or_zero(Exact{}, sites_.kept(site), out, x, n);
      out += n;
      x += n;
      begin += n;
    }
  }

  Sites<int64_t> sites_;
  int64_t run_, plane_;
  Checkerboard table_;  // of short runs
};

// Each pair of sites (2 k, 2 k + 1) has one kept site, the k-th. The last site of an odd plane has no partner.
int64_t pairs_of(const Sites<int64_t>& sites) { return (sites.count + 1) / 2; }

// Calls body(plane, begin, end) on the parts of [begin, end), pairs of all planes, that lie in one plane each.
template <typename Body>
void for_planes(int64_t pairs, int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const int64_t plane = begin / pairs, first = begin - plane * pairs;
    const int64_t n = std::min(end - begin, pairs - first);
    body(plane, first, first + n);
    begin += n;
  }
}

template <typename T>
void split(const T* __restrict x, T* __restrict kept, T* __restrict rest, const T* __restrict first, int64_t pairs) {
  for (int64_t k = 0; k < pairs; ++k) {
    const T a = x[2 * k], b = x[2 * k + 1], m = first[k];
    kept[k] = static_cast<T>((a & m) | (b & ~m));
    rest[k] = static_cast<T>((b & m) | (a & ~m));
  }
}

template <typename T>
void merge(T* __restrict x, const T* __restrict kept, const T* __restrict rest, const T* __restrict first,
           int64_t pairs) {
  for (int64_t k = 0; k < pairs; ++k) {
    const T a = kept[k], b = rest[k], m = first[k];
    x[2 * k] = static_cast<T>((a & m) | (b & ~m));
    x[2 * k + 1] = static_cast<T>((b & m) | (a & ~m));
  }
}

// Packs x if it is const, and otherwise unpacks into it. Every run is a word of type T; `body` is split or merge.
template <typename T, typename X, typename Half, typename Body>
void move_words(X* x, Half* kept, Half* rest, const Board& board, int parity, int threads, const Body& body) {
  const Board joined = join(board);
  const Sites<int64_t> sites(joined, parity);
  const Checkerboard table(sites, sizeof(T), 2);
  const int64_t pairs = pairs_of(sites), size = sizeof(T);
  parallel_for(joined.outer * pairs, kGrain / (2 * size), threads, [&](int64_t from, int64_t to) {
    for_planes(pairs, from, to, [&](int64_t plane, int64_t begin, int64_t end) {
      X* const site = x + plane * sites.count;
      Half *const a = kept + plane * sites.half(true), *const b = rest + plane * sites.half(false);
      const int64_t whole = std::min(end, sites.count / 2);
      table.each(begin * size, whole * size, [&](int64_t first, int64_t last, const char* mask) {
        const int64_t k = first / size;
        body(site + 2 * k, a + k, b + k, reinterpret_cast<const T*>(mask), (last - first) / size);
      });
      if (whole == end) return;
      Half* const half = (sites.kept(0) ? a : b) + whole;
      if constexpr (std::is_const_v<X>) {
        *half = site[2 * whole];
      } else {
        site[2 * whole] = *half;
      }
    });
  });
}

template <typename Move, typename X, typename Half>
void move_run(Move move, X* x, Half* half, int64_t n) {
  if constexpr (std::is_const_v<X>) {
    move.copy(half, x, n);
  } else {
    move.copy(x, half, n);
  }
}

// move_words for runs of any length.
template <typename X, typename Half>
void move_runs(X* x, Half* kept, Half* rest, const Board& board, int parity, int threads) {
  const Board joined = join(board);
  const Sites<int64_t> sites(joined, parity);
  const int64_t pairs = pairs_of(sites), run = board.inner;
  if (run >= kLong) {
    for_chunks(joined.outer * sites.count, run, kTile, threads, [&](int64_t site, int64_t begin, int64_t end) {
      const int64_t plane = site / sites.count, at = site - plane * sites.count;
      const bool keep_run = sites.kept(at);
      Half* const half = (keep_run ? kept : rest) + (plane * sites.half(keep_run) + at / 2) * run;
      move_run(Exact{}, x + site * run + begin, half + begin, end - begin);
    });
    return;
  }
  runs_in_parallel(joined.outer * pairs, run, run, 2 * run, threads, [&](int64_t from, int64_t to, auto move) {
    for_planes(pairs, from, to, [&](int64_t plane, int64_t begin, int64_t end) {
      const int64_t offset = plane * sites.count;
      for_rows(sites, offset + 2 * begin, offset + std::min(2 * end, sites.count),
               [&](int64_t site, int64_t last, bool keep_first) {
                 const int64_t pair = (site - offset) / 2;
                 X* at = x + site * run;
                 Half* first = kept + (plane * sites.half(true) + pair) * run;
                 Half* second = rest + (plane * sites.half(false) + pair) * run;
                 if (!keep_first) std::swap(first, second);
                 const int64_t n = run;  // a local: bytes that are written may alias anything else
                 for (; site + 1 < last; site += 2, at += 2 * n, first += n, second += n) {
                   move_run(move, at, first, n);
                   move_run(move, at + n, second, n);
                 }
                 if (site < last) move_run(move, at, first, n);
               });
    });
  });
}

template <typename T>
void pack_words(void* kept, void* rest, const void* x, const Board& board, int parity, int threads) {
  move_words<T>(static_cast<const T*>(x), static_cast<T*>(kept), static_cast<T*>(rest), board, parity, threads,
                split<T>);
}

template <typename T>
void unpack_words(void* out, const void* kept, const void* rest, const Board& board, int parity, int threads) {
  move_words<T>(static_cast<T*>(out), static_cast<const T*>(kept), static_cast<const T*>(rest), board, parity, threads,
                merge<T>);
}

// Whether rows are so short that Loose copies are fastest. Under a board each row must be one site.
bool has_short_rows(const ConcatLayout& beside, const Board& board) {
  return beside.row() < kLong && (beside.kept < beside.x || beside.x == board.inner);
}

// Calls body(begin, end, kept, alternate, move) on ranges of rows: the first row is kept or not, and the others are the
// same or alternate.
template <typename Body>
void for_short_rows(const ConcatLayout& beside, const Board& board, int parity, int threads, const Body& body) {
  const Sites<int64_t> sites(join(board), parity);
  const int64_t shortest = beside.kept && beside.condition ? std::min(beside.kept, beside.condition) : beside.row();
  runs_in_parallel(
      beside.rows, shortest, beside.row(), beside.row(), threads, [&](int64_t from, int64_t to, auto move) {
        if (beside.kept < beside.x) {
          body(from, to, true, false, move);
        } else {
          for_rows(sites, from, to, [&](int64_t begin, int64_t end, bool kept) { body(begin, end, kept, true, move); });
        }
      });
}

void input(char* out, const char* x, const char* condition, const ConcatLayout& beside, const Board& board, int parity,
           int threads) {
  const int64_t kept = beside.kept, start = beside.start(parity);
  if (has_short_rows(beside, board)) {
    for_short_rows(beside, board, parity, threads, [=](int64_t row, int64_t end, bool keep, bool alternate, auto move) {
      const ConcatLayout b = beside;  // a local: bytes that are written may alias anything else
      char* o = out + row * b.row();
      const char *from = x + row * b.x + start, *c = condition + row * b.condition;
      for (; row < end; ++row, keep ^= alternate, o += b.row(), from += b.x, c += b.condition) {
        copy_or_zero(move, keep, o, from, b.kept);
        move.copy(o + b.kept, c, b.condition);
      }
    });
    return;
  }
  const Mask mask(board, parity);
  for_chunks(beside.rows, beside.row(), kTile, threads, [&](int64_t row, int64_t begin, int64_t end) {
    const int64_t middle = std::clamp(kept, begin, end), from = row * beside.x + start;
    char* const o = out + row * beside.row();
    if (kept < beside.x) {
      copy_run(o + begin, x + from + begin, middle - begin);
    } else {
      mask.apply(o + begin, x + from + begin, from + begin, from + middle);
    }
    if (end > middle) copy_run(o + middle, condition + row * beside.condition + middle - kept, end - middle);
  });
}

void input_backward(char* x, const char* grad, const ConcatLayout& beside, const Board& board, int parity,
                    int threads) {
  const int64_t kept = beside.kept, start = beside.start(parity);
  if (has_short_rows(beside, board)) {
    for_short_rows(beside, board, parity, threads, [=](int64_t row, int64_t end, bool keep, bool alternate, auto move) {
      const ConcatLayout b = beside;
      const int64_t before = start, behind = b.x - start - b.kept;
      char* o = x + row * b.x;
      const char* g = grad + row * b.row();
      for (; row < end; ++row, keep ^= alternate, o += b.x, g += b.row()) {
        move.zero(o, before);
        copy_or_zero(move, keep, o + before, g, b.kept);
        move.zero(o + before + b.kept, behind);
      }
    });
    return;
  }
  const Mask mask(board, parity);
  for_chunks(beside.rows, beside.x, kTile, threads, [&](int64_t row, int64_t begin, int64_t end) {
    const int64_t from = row * beside.x;
    const char* const g = grad + row * beside.row();
    if (kept == beside.x) {
      mask.apply(x + from + begin, g + begin, from + begin, from + end);
      return;
    }
    const int64_t first = std::clamp(start, begin, end), last = std::clamp(start + kept, begin, end);
    zero_run(x + from + begin, first - begin);
    if (first < last) copy_run(x + from + first, g + first - start, last - first);
    zero_run(x + from + last, end - last);
  });
}

Board in_bytes(const Board& board, int size) { return {board.outer, board.height, board.width, board.inner * size}; }

ConcatLayout in_bytes(const ConcatLayout& beside, int size) {
  return {beside.rows, beside.x * size, beside.kept * size, beside.condition * size};
}

}  // namespace

void mask_apply(void* out, const void* x, const Board& entries, int size, int parity, int threads) {
  const Board board = in_bytes(entries, size);
  const int64_t n = board.numel();
  if (n == 0) return;
  const Mask mask(board, parity);
  parallel_for((n + kLine - 1) / kLine, kGrain / kLine, threads, [&](int64_t from, int64_t to) {
    const int64_t begin = from * kLine;
    mask.apply(static_cast<char*>(out) + begin, static_cast<const char*>(x) + begin, begin, std::min(to * kLine, n));
  });
}

void mask_pack(void* kept, void* rest, const void* x, const Board& entries, int size, int parity, int threads) {
  const Board board = in_bytes(entries, size);
  if (board.numel() == 0) return;
  switch (entries.inner == 1 ? size : 0) {
    case 1: return pack_words<uint8_t>(kept, rest, x, board, parity, threads);
    case 2: return pack_words<uint16_t>(kept, rest, x, board, parity, threads);
    case 4: return pack_words<uint32_t>(kept, rest, x, board, parity, threads);
    case 8: return pack_words<uint64_t>(kept, rest, x, board, parity, threads);
  }
  move_runs(static_cast<const char*>(x), static_cast<char*>(kept), static_cast<char*>(rest), board, parity, threads);
}

void mask_unpack(void* out, const void* kept, const void* rest, const Board& entries, int size, int parity,
                 int threads) {
  const Board board = in_bytes(entries, size);
  if (board.numel() == 0) return;
  switch (entries.inner == 1 ? size : 0) {
    case 1: return unpack_words<uint8_t>(out, kept, rest, board, parity, threads);
    case 2: return unpack_words<uint16_t>(out, kept, rest, board, parity, threads);
    case 4: return unpack_words<uint32_t>(out, kept, rest, board, parity, threads);
    case 8: return unpack_words<uint64_t>(out, kept, rest, board, parity, threads);
  }
  move_runs(static_cast<char*>(out), static_cast<const char*>(kept), static_cast<const char*>(rest), board, parity,
            threads);
}

void mask_input(void* out, const void* x, const void* condition, const ConcatLayout& entries, const Board& board,
                int size, int parity, int threads) {
  const ConcatLayout beside = in_bytes(entries, size);
  if (beside.rows * beside.row() == 0) return;
  input(static_cast<char*>(out), static_cast<const char*>(x), static_cast<const char*>(condition), beside,
        in_bytes(board, size), parity, threads);
}

void mask_input_backward(void* x, const void* grad, const ConcatLayout& entries, const Board& board, int size,
                         int parity, int threads) {
  const ConcatLayout beside = in_bytes(entries, size);
  if (beside.rows * beside.x == 0) return;
  input_backward(static_cast<char*>(x), static_cast<const char*>(grad), beside, in_bytes(board, size), parity, threads);
}

}  // namespace pnf::cpu::PNF_ISA
