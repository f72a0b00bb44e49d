// Exact order statistics of many overlapping groups of pixels at once: a histogram first, then a selection among the few
// values that share a bucket with the one that is wanted.
#pragma once

#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
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
  uint32_t first;  // smallest source index at which it stands
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

// Exact order statistics of `values` (all finite, in [low, high]) in atoms; `source` (may be null) gives the pixels'
// source indices.
template <class T>
std::vector<Selected<T>> select_ranks(
    const T* values, const uint32_t* source, const std::vector<Piece>& pieces, int64_t atoms, T low, T high,
    const std::vector<Request>& requests, bool parallel) {
  const int64_t buckets = std::clamp<int64_t>((int64_t{1} << 17) / std::max<int64_t>(atoms, 1), 64, 2048);
  const T extent = high - low;
  T scale = static_cast<T>(buckets) / extent;
  // Where the range over- or underflows everything falls into one bucket: slow, but exact.
  if (!std::isfinite(extent) || !std::isfinite(scale)) scale = 0;
  const T last = static_cast<T>(buckets - 1);
  // Rounding is monotonic, so the bucket never decreases with the value.
  const auto find_buckets = [&](int64_t begin, int64_t count, int32_t* bucket) {
    for (int64_t i = 0; i < count; ++i) {
      const T place = scale == 0 ? T{0} : (values[begin + i] - low) * scale;
      bucket[i] = static_cast<int32_t>(place < last ? place : last);
    }
  };

  std::vector<uint32_t> histogram(atoms * buckets, 0);
  run_tasks(parallel, static_cast<int64_t>(pieces.size()), [&](int64_t number) {
    const Piece& piece = pieces[number];
    // Neighbours often fall into one bucket: four counters in turn, so that an addition need not wait for the last.
    std::vector<uint32_t> counts(4 * buckets, 0);
    int32_t bucket[kBlock];
    for (int64_t begin = piece.begin; begin < piece.end; begin += kBlock) {
      const int64_t count = std::min(kBlock, piece.end - begin);
      find_buckets(begin, count, bucket);
      int64_t i = 0;
      for (; i + 4 <= count; i += 4) {
        for (int part = 0; part < 4; ++part) ++counts[part * buckets + bucket[i + part]];
      }
      for (; i < count; ++i) ++counts[bucket[i]];
    }
    uint32_t* mine = histogram.data() + piece.atom * buckets;
    for (int64_t b = 0; b < buckets; ++b) {
      const uint32_t sum = counts[b] + counts[buckets + b] + counts[2 * buckets + b] + counts[3 * buckets + b];
      if (sum != 0) std::atomic_ref<uint32_t>(mine[b]).fetch_add(sum, std::memory_order_relaxed);
    }
  });

  struct Search {
    int64_t bucket;
    int64_t rank;  // inside the bucket
    std::vector<T> values;
    std::vector<uint32_t> source;
    std::atomic<int64_t> filled{0};
  };
  std::vector<Search> searches(requests.size());
  std::vector<std::vector<int64_t>> wanted_by(atoms);
  std::vector<int64_t> sums(buckets);
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
    searches[r].rank = requests[r].rank - before;
    searches[r].values.resize(sums[bucket]);
    if (source != nullptr) searches[r].source.resize(sums[bucket]);
  }

  run_tasks(parallel, static_cast<int64_t>(pieces.size()), [&](int64_t number) {
    const Piece& piece = pieces[number];
    const std::vector<int64_t>& wanted = wanted_by[piece.atom];
    std::vector<uint8_t> interesting(buckets, 0);
    for (const int64_t r : wanted) interesting[searches[r].bucket] = 1;
    int32_t bucket[kBlock];
    for (int64_t begin = piece.begin; begin < piece.end; begin += kBlock) {
      const int64_t count = std::min(kBlock, piece.end - begin);
      find_buckets(begin, count, bucket);
      for (int64_t i = 0; i < count; ++i) {
        if (!interesting[bucket[i]]) continue;
        for (const int64_t r : wanted) {
          Search& search = searches[r];
          if (search.bucket != bucket[i]) continue;
          const int64_t place = search.filled.fetch_add(1, std::memory_order_relaxed);
          search.values[place] = values[begin + i];
          if (source != nullptr) search.source[place] = source[begin + i];
        }
      }
    }
  });

  std::vector<Selected<T>> found(requests.size());
  run_tasks(parallel, static_cast<int64_t>(requests.size()), [&](int64_t r) {
    Search& search = searches[r];
    std::vector<T> values_by_rank = search.values;
    std::nth_element(values_by_rank.begin(), values_by_rank.begin() + search.rank, values_by_rank.end());
    found[r] = {values_by_rank[search.rank], 0};
    if (source == nullptr) return;
    uint32_t first = std::numeric_limits<uint32_t>::max();
    for (size_t i = 0; i < search.values.size(); ++i) {
      if (search.values[i] == found[r].value) first = std::min(first, search.source[i]);
    }
    found[r].first = first;
  });
  return found;
}

}  // namespace distilldepth
