// Copies and zeros of runs of entries: contiguous stretches, often as short as the channels of a pixel.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/simd.h"

namespace pnf::cpu::PNF_ISA {

// Moves n bytes, where word <= n <= 2 word, as two words that may overlap: no loop and no call. A word of 0 bytes
// stands for any n, and a word of 1 byte for n <= 1.
template <size_t word>
struct Ends {
  static void copy(char* out, const char* x, size_t n) {
    if constexpr (word == 0) {
      std::memcpy(out, x, n);
    } else if constexpr (word == 1) {
      if (n) *out = *x;
    } else {
      char head[word], tail[word];
      std::memcpy(head, x, word);
      std::memcpy(tail, x + n - word, word);
      std::memcpy(out, head, word);
      std::memcpy(out + n - word, tail, word);
    }
  }

  static void zero(char* out, size_t n) {
    if constexpr (word == 0) {
      std::memset(out, 0, n);
    } else if constexpr (word == 1) {
      if (n) *out = 0;
    } else {
      std::memset(out, 0, word);
      std::memset(out + n - word, 0, word);
    }
  }
};

// Calls body(Ends<word>{}) with the word for n bytes.
template <typename Body>
inline void with_ends(size_t n, const Body& body) {
  if (n > 128) {
    body(Ends<0>{});
  } else if (n >= 64) {
    body(Ends<64>{});
  } else if (n >= 32) {
    body(Ends<32>{});
  } else if (n >= 16) {
    body(Ends<16>{});
  } else if (n >= 8) {
    body(Ends<8>{});
  } else if (n >= 4) {
    body(Ends<4>{});
  } else if (n >= 2) {
    body(Ends<2>{});
  } else {
    body(Ends<1>{});
  }
}

// Calls body(copy), where copy(to, from) moves `count` entries: the choice is made once for many runs of one length.
template <typename T, typename Body>
inline void with_copy(int64_t count, const Body& body) {
  const size_t n = static_cast<size_t>(count) * sizeof(T);
  with_ends(n, [&](auto ends) {
    body([n](T* to, const T* from) {
      decltype(ends)::copy(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), n);
    });
  });
}

template <typename T>
inline void copy_run(T* to, const T* from, int64_t count) {
  with_copy<T>(count, [&](auto copy) { copy(to, from); });
}

template <typename T>
inline void zero_run(T* to, int64_t count) {
  const size_t n = static_cast<size_t>(count) * sizeof(T);
  with_ends(n, [&](auto ends) { ends.zero(reinterpret_cast<char*>(to), n); });
}

// Moves runs and nothing behind them. Few runs need that, so it is compiled once.
struct Exact {
  template <typename T>
  static void copy(T* to, const T* from, int64_t count) {
    copy_bytes(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), count * int64_t{sizeof(T)});
  }

  template <typename T>
  static void zero(T* to, int64_t count) {
    zero_bytes(reinterpret_cast<char*>(to), count * int64_t{sizeof(T)});
  }

 private:
  [[gnu::noinline]] static void copy_bytes(char* to, const char* from, int64_t count) { copy_run(to, from, count); }
  [[gnu::noinline]] static void zero_bytes(char* to, int64_t count) { zero_run(to, count); }
};

// Moves runs in ascending order that may overrun: the next run overwrites the excess. Whole words are fastest; GCC
// copies them by vectors of half the size unless they are vectors.
template <int64_t word>
struct Loose {
  using Word = char __attribute__((vector_size(word < PNF_VECTOR_BYTES ? word : PNF_VECTOR_BYTES)));

  template <typename T>
  static void copy(T* to, const T* from, int64_t count) {
    char* out = reinterpret_cast<char*>(to);
    const char* x = reinterpret_cast<const char*>(from);
    each(count * static_cast<int64_t>(sizeof(T)), [&](int64_t i) { write(out + i, read<Word>(x + i)); });
  }

  template <typename T>
  static void zero(T* to, int64_t count) {
    char* out = reinterpret_cast<char*>(to);
    each(count * static_cast<int64_t>(sizeof(T)), [&](int64_t i) { write(out + i, Word{}); });
  }

 private:
  // Calls body(place) for each part of the words of n bytes.
  template <typename Body>
  static void each(int64_t n, const Body& body) {
    for (int64_t i = 0; i < n; i += word) {
      for (int64_t j = i; j < i + word; j += static_cast<int64_t>(sizeof(Word))) body(j);
    }
  }
};

template <typename Move, typename T>
inline void copy_or_zero(Move move, bool copied, T* to, const T* from, int64_t count) {
  if (copied) {
    move.copy(to, from, count);
  } else {
    move.zero(to, count);
  }
}

// Calls body(first, last, move) on ranges of the rows [begin, end): `move` is Loose, and Exact for the last rows, which
// no row follows. The longest run of a row has `longest` bytes. Wherever rows read or write, two of them advance by
// `shortest` bytes or more.
template <typename Body>
inline void for_runs(int64_t begin, int64_t end, int64_t shortest, int64_t longest, const Body& body) {
  int64_t exact = begin;
  const auto go = [&]<int64_t word>(Loose<word> loose) {
    exact = std::max(begin, end - 2 * (1 + word / shortest));
    if (begin < exact) body(begin, exact, loose);
  };
  if (longest <= 16) {
    go(Loose<16>{});
  } else if (longest <= 32) {
    go(Loose<32>{});
  } else {
    go(Loose<64>{});
  }
  body(exact, end, Exact{});
}

}  // namespace pnf::cpu::PNF_ISA
