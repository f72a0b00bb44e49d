// Exact order statistics of many overlapping groups of pixels at once: a histogram first, then a selection among the few
// values that share a bucket with the one that is wanted.
#pragma once

#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace distilldepth {

// Pixels per task: sums are made per piece and added in order, whatever the number of threads.
inline constexpr int64_t kPiece = 32768;
// Pixels that are worked on while they stay in the first-level cache.
inline constexpr int64_t kBlock = 1024;

// A stretch of the reordered pixels that lies in one atom.
struct Piece {
  int64_t begin;
  int64_t end;
  int64_t atom;
};

// An order statistic of the pixels of some atoms: `rank` 0 is the smallest.
struct Request {
  std::vector<int64_t> atoms;
  int64_t rank;
};

template <class T>
struct Selected {
  T value;
  uint32_t first;        // smallest source index at which it stands
  int64_t below, equal;  // how many are smaller, how many are the same
};

// Runs f(task) for all tasks, on all threads or on this one.
template <class F>
void run_tasks(bool parallel, int64_t tasks, const F& f) {
  if (parallel) {
    parallel_tasks(tasks, f);
  } else {
    for (int64_t task = 0; task < tasks; ++task) f(task);
  }
}

// The loops over a block stand in functions of their own, without aliases: the compiler makes vector code of those.

// to[i] = from[i] where valid, else `instead`.
template <class T>
void replace_invalid(T* __restrict to, const T* __restrict from, const uint8_t* __restrict valid, T instead,
                     int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T value = from[i];
    to[i] = valid[i] ? value : instead;
  }
}
template <class T>
void replace_invalid(T* __restrict values, const uint8_t* __restrict valid, T instead, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = valid[i] ? values[i] : instead;
}

// A block of values as T, with `instead` where they are not valid (may be null); in `buffer` if they must be changed.
template <class T, class E>
const T* read_block(const E* values, const uint8_t* valid, T instead, int64_t count, T* buffer) {
  if constexpr (std::is_same_v<T, E>) {
    if (valid == nullptr) return values;
    replace_invalid(buffer, values, valid, instead, count);
  } else {
    for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<T>(load(values[i]));
    if (valid != nullptr) replace_invalid(buffer, valid, instead, count);
  }
  return buffer;
}

// Cuts [low, high] into equal stretches.
template <class T>
struct Buckets {
  int64_t count;
  T low, scale, last;

  Buckets(T low, T high, int64_t count) : count(count), low(low), last(static_cast<T>(count - 1)) {
    const T extent = high - low;
    scale = static_cast<T>(count) / extent;
    // Where the range over- or underflows everything falls into one bucket: slow, but exact.
    if (!std::isfinite(extent) || !std::isfinite(scale)) scale = 0;
  }
  // Rounding is monotonic, so the bucket never decreases with the value.
  void find(uint16_t* __restrict bucket, const T* __restrict values, int64_t values_count) const {
    if (scale == 0) {
      std::fill(bucket, bucket + values_count, uint16_t{0});
      return;
    }
    const T from = low, factor = scale, most = last;
    for (int64_t i = 0; i < values_count; ++i) {
      const T place = (values[i] - from) * factor;
      bucket[i] = static_cast<uint16_t>(static_cast<int32_t>(place < most ? place : most));
    }
  }
};

// hits[i] gets `flag` where bucket[i] is the one sought.
inline void mark_hits(uint8_t* __restrict hits, const uint16_t* __restrict bucket, uint16_t sought, uint8_t flag,
                      int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int same = bucket[i] == sought;
    hits[i] = static_cast<uint8_t>(hits[i] | (-same & flag));
  }
}

// Exact order statistics of the `values` that `valid` (may be null) keeps, all finite and in [low, high], in atoms;
// `source` (may be null) gives the pixels' source indices.
template <class T, class E>
std::vector<Selected<T>> select_ranks(
    const E* values, const uint8_t* valid, const uint32_t* source, const std::vector<Piece>& pieces, int64_t atoms,
    T low, T high, const std::vector<Request>& requests, bool parallel) {
  const Buckets<T> cut(low, high, std::clamp<int64_t>((int64_t{1} << 17) / std::max<int64_t>(atoms, 1), 64, 2048));
  const int64_t buckets = cut.count;
  // f(begin, block, bucket, count) for every block of a piece. What is not valid gets one more bucket.
  const auto each_block = [&](const Piece& piece, const auto& f) {
    alignas(64) T buffer[kBlock];
    alignas(64) uint16_t bucket[kBlock];
    for (int64_t begin = piece.begin; begin < piece.end; begin += kBlock) {
      const int64_t count = std::min(kBlock, piece.end - begin);
      const uint8_t* kept = valid == nullptr ? nullptr : valid + begin;
      const T* block = read_block(values + begin, kept, low, count, buffer);
      cut.find(bucket, block, count);
      if (kept != nullptr) {
        replace_invalid(bucket, kept, static_cast<uint16_t>(buckets), count);
      }
      f(begin, block, bucket, count);
    }
  };

  std::vector<uint32_t> histogram(atoms * buckets, 0);
  run_tasks(parallel, static_cast<int64_t>(pieces.size()), [&](int64_t number) {
    const Piece& piece = pieces[number];
    // Neighbours often fall into one bucket: four counters in turn, so that an addition need not wait for the last.
    const int64_t stride = buckets + 1;
    std::vector<uint32_t> counters(4 * stride, 0);
    uint32_t* counts = counters.data();
    each_block(piece, [&](int64_t, const T*, const uint16_t* bucket, int64_t count) {
      int64_t i = 0;
      for (; i + 4 <= count; i += 4) {
        for (int part = 0; part < 4; ++part) ++counts[part * stride + bucket[i + part]];
      }
      for (; i < count; ++i) ++counts[bucket[i]];
    });
    uint32_t* mine = histogram.data() + piece.atom * buckets;
    for (int64_t b = 0; b < buckets; ++b) {
      const uint32_t sum = counts[b] + counts[stride + b] + counts[2 * stride + b] + counts[3 * stride + b];
      if (sum != 0) std::atomic_ref<uint32_t>(mine[b]).fetch_add(sum, std::memory_order_relaxed);
    }
  });

  struct Search {
    int64_t bucket;
    int64_t before;  // values in smaller buckets
    std::vector<T> values;
    std::vector<uint32_t> source;
    std::atomic<int64_t> filled{0};
  };
  std::vector<Search> searches(requests.size());
  std::vector<std::vector<int64_t>> wanted_by(atoms);
  std::vector<uint32_t> sums(buckets);
  for (size_t r = 0; r < requests.size(); ++r) {
    std::fill(sums.begin(), sums.end(), 0);
    for (const int64_t atom : requests[r].atoms) {
      const uint32_t* counts = histogram.data() + atom * buckets;
      for (int64_t b = 0; b < buckets; ++b) sums[b] += counts[b];
      wanted_by[atom].push_back(static_cast<int64_t>(r));
    }
    int64_t bucket = 0, before = 0;
    while (before + sums[bucket] <= requests[r].rank) before += sums[bucket++];
    searches[r].bucket = bucket;
    searches[r].before = before;
    searches[r].values.resize(sums[bucket]);
    if (source != nullptr) searches[r].source.resize(sums[bucket]);
  }

  run_tasks(parallel, static_cast<int64_t>(pieces.size()), [&](int64_t number) {
    const Piece& piece = pieces[number];
    const std::vector<int64_t>& wanted = wanted_by[piece.atom];
    // Few values are wanted: whole words of them are looked at together. One bit each for up to eight searches.
    alignas(64) uint8_t hits[kBlock];
    each_block(piece, [&](int64_t begin, const T* block, const uint16_t* bucket, int64_t count) {
      for (size_t first = 0; first < wanted.size(); first += 8) {
        const size_t number_of_bits = std::min<size_t>(8, wanted.size() - first);
        std::memset(hits, 0, sizeof hits);
        for (size_t bit = 0; bit < number_of_bits; ++bit) {
          const auto sought = static_cast<uint16_t>(searches[wanted[first + bit]].bucket);
          mark_hits(hits, bucket, sought, static_cast<uint8_t>(1u << bit), count);
        }
        for (int64_t word = 0; word < count; word += 8) {
          uint64_t eight;
          std::memcpy(&eight, hits + word, 8);
          if (eight == 0) continue;
          for (int64_t i = word; i < std::min(word + 8, count); ++i) {
            for (unsigned left = hits[i]; left != 0; left &= left - 1) {
              Search& search = searches[wanted[first + static_cast<size_t>(std::countr_zero(left))]];
              const int64_t place = search.filled.fetch_add(1, std::memory_order_relaxed);
              search.values[place] = block[i];
              if (source != nullptr) search.source[place] = source[begin + i];
            }
          }
        }
      }
    });
  });

  std::vector<Selected<T>> found(requests.size());
  run_tasks(parallel, static_cast<int64_t>(requests.size()), [&](int64_t r) {
    Search& search = searches[r];
    std::vector<T> values_by_rank = search.values;
    const int64_t rank = requests[r].rank - search.before;
    std::nth_element(values_by_rank.begin(), values_by_rank.begin() + rank, values_by_rank.end());
    const T value = values_by_rank[rank];
    Selected<T> selected{value, 0, search.before, 0};
    for (const T other : search.values) {
      selected.below += other < value;
      selected.equal += other == value;
    }
    if (source != nullptr) {
      selected.first = std::numeric_limits<uint32_t>::max();
      for (size_t i = 0; i < search.values.size(); ++i) {
        if (search.values[i] == value) selected.first = std::min(selected.first, search.source[i]);
      }
    }
    found[r] = selected;
  });
  return found;
}

}  // namespace distilldepth
