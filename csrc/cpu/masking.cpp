#include "cpu/masking.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/parallel.h"

// Here all lengths are bytes, but for those that count sites, pairs of sites or rows.
namespace pnf::cpu::PNF_ISA {
namespace {

constexpr int64_t kGrain = 1 << 16;
constexpr int64_t kTile = 1 << 15;
constexpr int64_t kTable = 1 << 11;  // short periods are repeated up to this, for long loops
constexpr int64_t kLong = 1 << 9;    // from here on a run or a row is worth a call

constexpr int64_t kLine = __BIGGEST_ALIGNMENT__;  // of the level's vectors
using Line = uint64_t __attribute__((vector_size(kLine)));

Line load(const char* p) {
  Line line;
  std::memcpy(&line, p, sizeof(line));
  return line;
}

void store(char* p, Line line) { std::memcpy(p, &line, sizeof(line)); }

// An empty tensor may have no address at all, which the C library's functions do not take even for no bytes.
struct Exactly {
  static void copy(char* out, const char* x, int64_t n) {
    if (n) std::memcpy(out, x, static_cast<size_t>(n));
  }
  static void zero(char* out, int64_t n) {
    if (n) std::memset(out, 0, static_cast<size_t>(n));
  }
};

// For short runs, such as the channels of a pixel: whole lines are fastest, wherever what lies behind a run may be read
// and is written later.
struct Loosely {
  static void copy(char* out, const char* x, int64_t n) {
    for (int64_t i = 0; i < n; i += kLine) store(out + i, load(x + i));
  }
  static void zero(char* out, int64_t n) {
    for (int64_t i = 0; i < n; i += kLine) store(out + i, Line{});
  }
};

template <typename Move>
void copy_or_zero(bool kept, char* out, const char* x, int64_t n, Move move) {
  if (kept) {
    move.copy(out, x, n);
  } else {
    move.zero(out, n);
  }
}

// Calls body(begin, end, move) on ranges of [0, count), each written in order. Of whatever a step writes, two steps
// write `shortest` or more.
template <typename Body>
void for_runs(int64_t count, int64_t shortest, int64_t longest, int threads, const Body& body) {
  parallel_for(count, kGrain / longest, threads, [&](int64_t begin, int64_t end) {
    const int64_t last = std::max(begin, end - 2 * (1 + kLine / shortest));
    body(begin, last, Loosely{});
    body(last, end, Exactly{});
  });
}

// Calls body(row, begin, end) on tiles of rows.
template <typename Body>
void for_tiles(int64_t rows, int64_t length, int threads, const Body& body) {
  const int64_t tiles = (length + kTile - 1) / kTile;
  parallel_for(rows * tiles, kGrain / std::min(length, kTile), threads, [&](int64_t from, int64_t to) {
    int64_t row = from / tiles, tile = from % tiles;
    for (int64_t left = to - from; left > 0; --left) {
      body(row, tile * kTile, std::min((tile + 1) * kTile, length));
      if (++tile == tiles) tile = 0, ++row;
    }
  });
}

// Where each plane continues the alternation of the one before, all are one.
Board join(const Board& board) {
  if (board.height * board.width % 2) return board;
  if (board.height == 1) return {1, 1, board.outer * board.width, board.inner};
  if (board.height % 2 == 0) return {1, board.outer * board.height, board.width, board.inner};
  return board;
}

// Calls body(begin, end, kept) on the parts of [begin, end), sites of all planes, that lie in one row each; `kept`
// tells of the first site.
template <typename Body>
void for_rows(const Sites<int64_t>& sites, int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const int64_t site = begin % sites.count;
    const int64_t next = std::min(end, begin + sites.width - site % sites.width);
    body(begin, next, sites.kept(site));
    begin = next;
  }
}

// What a plane repeats: for every step-th site so many bytes, all ones if it is kept and zero if not.
class Table {
 public:
  Table(const Sites<int64_t>& sites, int64_t step, int64_t bytes) {
    const int64_t count = (sites.width < sites.count ? 2 * sites.width : 2) / step;
    period_ = count * bytes * std::max<int64_t>(1, kTable / (count * bytes));
    kept_.resize(static_cast<size_t>(period_));
    char* const kept = kept_.data();
    for (int64_t i = 0; i < count; ++i) {
      std::memset(kept + i * bytes, sites.kept(i * step) ? 0xff : 0, static_cast<size_t>(bytes));
    }
    for (int64_t n = count * bytes; n < period_; n *= 2) Exactly::copy(kept + n, kept, std::min(n, period_ - n));
  }

  // Calls body(begin, end, kept) on the parts of [begin, end) that lie in one period each.
  template <typename Body>
  void for_periods(int64_t begin, int64_t end, const Body& body) const {
    while (begin < end) {
      const int64_t at = begin % period_;
      const int64_t next = std::min(end, begin + period_ - at);
      body(begin, next, kept_.data() + at);
      begin = next;
    }
  }

 private:
  int64_t period_;
  std::vector<char> kept_;
};

void keep(char* out, const char* x, const char* kept, int64_t n) {
  if (n < kLine) {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] & kept[i];
    return;
  }
  const int64_t last = n - kLine;
  for (int64_t i = 0; i < last; i += kLine) store(out + i, load(x + i) & load(kept + i));
  store(out + last, load(x + last) & load(kept + last));
}

class Mask {
 public:
  Mask(const Board& board, int parity) : sites_(join(board), parity), run_(board.inner), plane_(sites_.count * run_) {
    if (plane_ && run_ < kLong) table_.emplace(sites_, 1, run_);
  }

  // out = x where it is kept and 0 elsewhere, on [begin, end) of the board; out and x point there.
  void apply(char* out, const char* x, int64_t begin, int64_t end) const {
    while (begin < end) {
      const int64_t at = begin % plane_, n = std::min(end - begin, plane_ - at);
      if (table_) {
        table_->for_periods(at, at + n, [&](int64_t from, int64_t to, const char* kept) {
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
      copy_or_zero(sites_.kept(site), out, x, n, Exactly{});
      out += n;
      x += n;
      begin += n;
    }
  }

  Sites<int64_t> sites_;
  int64_t run_, plane_;
  std::optional<Table> table_;
};

// Of the sites (2 k, 2 k + 1) one is kept, the k-th; the last site of an odd plane has no partner.
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

// Packs x, or unpacks into it where it is not const; every run is a word of type T, and `body` is split or merge.
template <typename T, typename X, typename Half, typename Body>
void move_words(X* x, Half* kept, Half* rest, const Board& board, int parity, int threads, const Body& body) {
  const Board joined = join(board);
  const Sites<int64_t> sites(joined, parity);
  const Table table(sites, 2, sizeof(T));
  const int64_t pairs = pairs_of(sites), size = sizeof(T);
  parallel_for(joined.outer * pairs, kGrain / (2 * size), threads, [&](int64_t from, int64_t to) {
    for_planes(pairs, from, to, [&](int64_t plane, int64_t begin, int64_t end) {
      X* const site = x + plane * sites.count;
      Half *const a = kept + plane * sites.half(true), *const b = rest + plane * sites.half(false);
      const int64_t whole = std::min(end, sites.count / 2);
      table.for_periods(begin * size, whole * size, [&](int64_t first, int64_t last, const char* mask) {
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

// The same for runs of any length.
template <typename X, typename Half>
void move_runs(X* x, Half* kept, Half* rest, const Board& board, int parity, int threads) {
  const Board joined = join(board);
  const Sites<int64_t> sites(joined, parity);
  const int64_t pairs = pairs_of(sites), run = board.inner;
  if (run >= kLong) {
    for_tiles(joined.outer * sites.count, run, threads, [&](int64_t site, int64_t begin, int64_t end) {
      const int64_t plane = site / sites.count, at = site - plane * sites.count;
      const bool keep_run = sites.kept(at);
      Half* const half = (keep_run ? kept : rest) + (plane * sites.half(keep_run) + at / 2) * run;
      move_run(Exactly{}, x + site * run + begin, half + begin, end - begin);
    });
    return;
  }
  for_runs(joined.outer * pairs, run, 2 * run, threads, [&](int64_t from, int64_t to, auto move) {
    for_planes(pairs, from, to, [&](int64_t plane, int64_t begin, int64_t end) {
      const int64_t offset = plane * sites.count;
      for_rows(sites, offset + 2 * begin, offset + std::min(2 * end, sites.count),
               [&](int64_t site, int64_t last, bool keep_first) {
                 const int64_t pair = (site - offset) / 2;
                 X* at = x + site * run;
                 Half* first = kept + (plane * sites.half(true) + pair) * run;
                 Half* second = rest + (plane * sites.half(false) + pair) * run;
                 if (!keep_first) std::swap(first, second);
                 const int64_t n = run;  // a local, since bytes that are written may be anything else
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

// Rows that are so short that all of one moves loosely; under a board each is one site.
bool has_short_rows(const Beside& beside, const Board& board) {
  return beside.row() < kLong && (beside.kept < beside.x || beside.x == board.inner);
}

// Calls body(begin, end, kept, alternate, move) on rows: whether the first is kept, and whether every other one is not.
template <typename Body>
void for_short_rows(const Beside& beside, const Board& board, int parity, int threads, const Body& body) {
  const Sites<int64_t> sites(join(board), parity);
  const int64_t shortest = beside.kept && beside.condition ? std::min(beside.kept, beside.condition) : beside.row();
  for_runs(beside.rows, shortest, beside.row(), threads, [&](int64_t from, int64_t to, auto move) {
    if (beside.kept < beside.x) {
      body(from, to, true, false, move);
    } else {
      for_rows(sites, from, to, [&](int64_t begin, int64_t end, bool kept) { body(begin, end, kept, true, move); });
    }
  });
}

void input(char* out, const char* x, const char* condition, const Beside& beside, const Board& board, int parity,
           int threads) {
  const int64_t kept = beside.kept, start = beside.start(parity);
  if (has_short_rows(beside, board)) {
    for_short_rows(beside, board, parity, threads, [=](int64_t row, int64_t end, bool keep, bool alternate, auto move) {
      const Beside b = beside;  // a local, since bytes that are written may be anything else
      char* o = out + row * b.row();
      const char *from = x + row * b.x + start, *c = condition + row * b.condition;
      for (; row < end; ++row, keep ^= alternate, o += b.row(), from += b.x, c += b.condition) {
        copy_or_zero(keep, o, from, b.kept, move);
        move.copy(o + b.kept, c, b.condition);
      }
    });
    return;
  }
  const Mask mask(board, parity);
  for_tiles(beside.rows, beside.row(), threads, [&](int64_t row, int64_t begin, int64_t end) {
    const int64_t middle = std::clamp(kept, begin, end), from = row * beside.x + start;
    char* const o = out + row * beside.row();
    if (kept < beside.x) {
      Exactly::copy(o + begin, x + from + begin, middle - begin);
    } else {
      mask.apply(o + begin, x + from + begin, from + begin, from + middle);
    }
    if (end > middle) Exactly::copy(o + middle, condition + row * beside.condition + middle - kept, end - middle);
  });
}

void input_backward(char* x, const char* grad, const Beside& beside, const Board& board, int parity, int threads) {
  const int64_t kept = beside.kept, start = beside.start(parity);
  if (has_short_rows(beside, board)) {
    for_short_rows(beside, board, parity, threads, [=](int64_t row, int64_t end, bool keep, bool alternate, auto move) {
      const Beside b = beside;
      const int64_t before = start, behind = b.x - start - b.kept;
      char* o = x + row * b.x;
      const char* g = grad + row * b.row();
      for (; row < end; ++row, keep ^= alternate, o += b.x, g += b.row()) {
        move.zero(o, before);
        copy_or_zero(keep, o + before, g, b.kept, move);
        move.zero(o + before + b.kept, behind);
      }
    });
    return;
  }
  const Mask mask(board, parity);
  for_tiles(beside.rows, beside.x, threads, [&](int64_t row, int64_t begin, int64_t end) {
    const int64_t from = row * beside.x;
    const char* const g = grad + row * beside.row();
    if (kept == beside.x) {
      mask.apply(x + from + begin, g + begin, from + begin, from + end);
      return;
    }
    const int64_t first = std::clamp(start, begin, end), last = std::clamp(start + kept, begin, end);
    Exactly::zero(x + from + begin, first - begin);
    if (first < last) Exactly::copy(x + from + first, g + first - start, last - first);
    Exactly::zero(x + from + last, end - last);
  });
}

Board in_bytes(const Board& board, int size) { return {board.outer, board.height, board.width, board.inner * size}; }

Beside in_bytes(const Beside& beside, int size) {
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

void mask_input(void* out, const void* x, const void* condition, const Beside& entries, const Board& board, int size,
                int parity, int threads) {
  const Beside beside = in_bytes(entries, size);
  if (beside.rows * beside.row() == 0) return;
  input(static_cast<char*>(out), static_cast<const char*>(x), static_cast<const char*>(condition), beside,
        in_bytes(board, size), parity, threads);
}

void mask_input_backward(void* x, const void* grad, const Beside& entries, const Board& board, int size, int parity,
                         int threads) {
  const Beside beside = in_bytes(entries, size);
  if (beside.rows * beside.x == 0) return;
  input_backward(static_cast<char*>(x), static_cast<const char*>(grad), beside, in_bytes(board, size), parity, threads);
}

}  // namespace pnf::cpu::PNF_ISA
