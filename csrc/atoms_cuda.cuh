// From the pixels of a slice to atoms: extremes, the edges of the contexts, and the slice sorted by atom.
#pragma once

#include <cmath>

#include "plan_cuda.cuh"

namespace distilldepth::normalise {

// Block-wide tools. All threads call them; each ends with a barrier, after which its scratch is free again.

template <int kThreads>
__device__ __forceinline__ unsigned scan_block(unsigned x, unsigned* scratch, unsigned& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned inclusive = x;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const unsigned below = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane >= step) inclusive += below;
  }
  if (lane == kWarp - 1) scratch[warp] = inclusive;
  __syncthreads();
  unsigned before = 0;
  total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    const unsigned part = scratch[w];
    if (w < warp) before += part;
    total += part;
  }
  __syncthreads();
  return before + inclusive - x;
}

template <typename T>
__device__ void zero_block(T* data, size_t count, int threads) {
  for (size_t i = threadIdx.x; i < count; i += threads) data[i] = 0;
  __syncthreads();
}

template <typename T>
__device__ __forceinline__ T warp_max(T x) {
  return warp_reduce(x, Max<T>{});
}

__device__ __forceinline__ Partial warp_sum(const Partial& mine) {
  Partial sum;
  sum.x = warp_reduce(mine.x, Sum<double>{});
  sum.y = warp_reduce(mine.y, Sum<double>{});
  sum.n = warp_reduce(mine.n, Sum<int>{});
  sum.first = ~warp_max(~mine.first);
  return sum;
}

// How many of the ascending `edges` (count,) are <= x.
template <typename T>
__device__ __forceinline__ int edges_upto(const T* edges, int count, T x) {
  int low = 0;
  while (count > 0) {
    const int half = count / 2;
    if (edges[low + half] <= x) {
      low += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return low;
}

// Smallest and largest values and count of a slice; thread 0 gets the result.
template <int kThreads, typename Source>
__device__ Extremes<typename Source::Value> slice_extremes(
    const Source& source, int64_t image, const Slice<typename Source::Value>& slice, void* scratch) {
  using Value = typename Source::Value;
  constexpr int kBatch = Source::kBatch;
  Extremes<Value> mine{};
  for (int base = threadIdx.x; base < slice.pixels; base += kBatch * kThreads) {
    Value values[2][kBatch];
    bool valid[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = base + k * kThreads;
      valid[k] = i < slice.pixels && source.valid(image, slice.first + i);
      const int pixel = slice.first + (i < slice.pixels ? i : 0);
      values[kPrediction][k] = source.prediction(image, pixel);
      values[kTarget][k] = source.target(image, pixel);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (!valid[k]) continue;
      ++mine.count;
#pragma unroll
      for (int map = 0; map < 2; ++map) {
        const Value x = values[map][k];
        if (!(magnitude(x) <= kLargest<Value>)) {
          mine.bad = 1;
          continue;
        }
        mine.inverted_low[map] = max(mine.inverted_low[map], ~key_of(x));
        mine.high[map] = max(mine.high[map], key_of(x));
      }
    }
  }
  auto* per_warp = static_cast<Extremes<Value>*>(scratch);
  Extremes<Value> total;
#pragma unroll
  for (int map = 0; map < 2; ++map) {
    total.inverted_low[map] = warp_max(mine.inverted_low[map]);
    total.high[map] = warp_max(mine.high[map]);
  }
  total.count = warp_reduce(mine.count, Sum<unsigned>{});
  total.bad = warp_max(mine.bad);
  if (threadIdx.x % kWarp == 0) per_warp[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / kWarp; ++w) total.add(per_warp[w]);
  }
  __syncthreads();
  return total;
}

// Which level the edge or context `item` of all levels is of; `first` (levels,) says where each level starts.
__device__ __forceinline__ int level_of(const Plan& plan, const int (&first)[kLevels], int item) {
  int level = 0;
  while (level + 1 < plan.levels && first[level + 1] <= item) ++level;
  return level;
}

// Edge e as the reference computes it: in float64, then rounded up, so that contexts are the same in every precision.
template <typename Value>
__device__ Value value_edge(const Plan& plan, const State<Value>& state, int e) {
  const int level = level_of(plan, plan.first_edge, e);
  const double share = e - plan.first_edge[level] + 1, parts = plan.segments[level];
  double edge;
  if (plan.kind == Contexts::range) {
    const double low = state.extremes->low_value(kTarget), high = state.extremes->high_value(kTarget);
    edge = low + product(high - low, share) / parts;
  } else {
    const double position = product(static_cast<double>(state.extremes->count - 1), share) / parts;
    const double below = value_of<Value>(state.queries[2 * e].low);
    const double above = value_of<Value>(state.queries[2 * e + 1].low);
    edge = below + product(above - below, position - floor(position));
  }
  const Value rounded = static_cast<Value>(edge);
  return rounded < edge ? value_of<Value>(key_of(rounded) + 1) : rounded;
}

// Rank of an edge's query: below (0) or above (1) the quantile.
__device__ __forceinline__ unsigned edge_rank(const Plan& plan, unsigned count, int query) {
  const int e = query / 2, level = level_of(plan, plan.first_edge, e);
  const double share = e - plan.first_edge[level] + 1;
  const double position = product(static_cast<double>(count - 1), share) / plan.segments[level];
  return static_cast<unsigned>(query % 2 ? ceil(position) : floor(position));
}

// The distinct values of `all` (count,), ascending; quadratic, as there are few. `flags` (count,) is scratch.
template <typename T>
__device__ void sort_distinct(const T* all, T* distinct, int* distinct_count, int count, int* flags, int threads) {
  for (int e = threadIdx.x; e < count; e += threads) {
    bool first = true;
    for (int other = 0; other < e; ++other) first &= all[other] != all[e];
    flags[e] = first;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < count; e += threads) {
    int smaller = 0;
    for (int other = 0; other < count; ++other) smaller += flags[other] && all[other] < all[e];
    if (flags[e]) distinct[smaller] = all[e];
  }
  if (threadIdx.x == 0) {
    int found = 0;
    for (int e = 0; e < count; ++e) found += flags[e];
    *distinct_count = found;
  }
  __syncthreads();
}

// Which context of its level a stretch between distinct edges is in: the level's edges that are <= the stretch's lower.
template <typename T>
__device__ __forceinline__ int context_index(const Plan& plan, const T* all, const T* distinct, int level, int part) {
  if (part == 0) return 0;
  return edges_upto(all + plan.first_edge[level], plan.segments[level] - 1, distinct[part - 1]);
}

// Edges of all contexts and what they make of the atoms. `flags` (plan.edges,) is scratch.
template <typename Value>
__device__ void find_atoms(const Plan& plan, const State<Value>& state, int* flags, int threads) {
  const bool spatial = plan.kind == Contexts::spatial;
  int *rows = state.lines, *columns = state.lines + 2 * plan.edges;
  for (int e = threadIdx.x; e < plan.edges; e += threads) {
    if (spatial) {
      const int level = level_of(plan, plan.first_edge, e);
      const int64_t share = e - plan.first_edge[level] + 1;
      rows[e] = static_cast<int>(plan.height * share / plan.segments[level]);
      columns[e] = static_cast<int>(plan.width * share / plan.segments[level]);
    } else {
      state.edges[e] = value_edge(plan, state, e);
    }
  }
  if (threadIdx.x == 0) state.edge_counts[1] = 0;
  __syncthreads();
  if (spatial) {
    sort_distinct(rows, rows + plan.edges, state.edge_counts, plan.edges, flags, threads);
    sort_distinct(columns, columns + plan.edges, state.edge_counts + 1, plan.edges, flags, threads);
  } else {
    sort_distinct(state.edges, state.edges + plan.edges, state.edge_counts, plan.edges, flags, threads);
  }
  const int atoms = state.atoms(), columns_count = state.edge_counts[1] + 1;
  for (int i = threadIdx.x; i < plan.levels * atoms; i += threads) {
    const int level = i / atoms, atom = i % atoms;
    int context;
    if (spatial) {
      context = context_index(plan, rows, rows + plan.edges, level, atom / columns_count) * plan.segments[level] +
                context_index(plan, columns, columns + plan.edges, level, atom % columns_count);
    } else {
      context = context_index(plan, state.edges, state.edges + plan.edges, level, atom);
    }
    state.context_of[level * plan.atoms + atom] = static_cast<uint16_t>(context);
  }
  __syncthreads();
}

template <typename Value>
__device__ __forceinline__ int atom_of(const Plan& plan, const State<Value>& state, int pixel, Value target) {
  if (plan.kind != Contexts::spatial) return edges_upto(state.edges + plan.edges, state.edge_counts[0], target);
  const int y = pixel / plan.width, x = pixel - y * plan.width;
  const int row = edges_upto(state.lines + plan.edges, state.edge_counts[0], y);
  return row * (state.edge_counts[1] + 1) + edges_upto(state.lines + 3 * plan.edges, state.edge_counts[1], x);
}

// Sorts the valid pixels of a slice by atom (`whole`: all are one atom) and gives what is not valid its gradient, 0,
// where `gradient` (images, pixels) is not null. The order inside an atom is by warp, then by pixel: fixed, which is
// all that sums need to repeat. `counts` (plan.atoms, warps) is scratch.
template <int kThreads, typename Source>
__device__ void place_slice(
    const Plan& plan, const Source& source, const State<typename Source::Value>& state, int64_t image,
    const Slice<typename Source::Value>& slice, bool whole, typename Source::Value* gradient, unsigned* counts,
    unsigned* scratch) {
  using Value = typename Source::Value;
  constexpr int kBatch = Source::kBatch, kWarps = kThreads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int atoms = whole ? 1 : state.atoms();
  zero_block(counts, static_cast<size_t>(atoms) * kWarps, kThreads);
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {  // count, then place
    for (int base = warp * kWarp; base < slice.pixels; base += kBatch * kThreads) {
      Value predictions[kBatch], targets[kBatch];
      bool inside[kBatch], valid[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int i = base + k * kThreads + lane;
        inside[k] = i < slice.pixels;
        const int pixel = slice.first + (inside[k] ? i : 0);
        valid[k] = inside[k] && source.valid(image, pixel);
        targets[k] = source.target(image, pixel);
        predictions[k] = pass == 0 ? Value(0) : source.prediction(image, pixel);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int i = base + k * kThreads + lane;
        unsigned atom = kNone;
        if (valid[k]) atom = whole ? 0 : atom_of(plan, state, slice.first + i, targets[k]);
        const unsigned alike = __match_any_sync(kAllLanes, atom);
        unsigned* cursor = counts + atom * kWarps + warp;
        if (pass == 1 && valid[k]) {
          const int at = *cursor + __popc(alike & ((1u << lane) - 1));
          slice.prediction[at] = predictions[k];
          slice.target[at] = targets[k];
          slice.offset[at] = static_cast<uint16_t>(i);
        } else if (pass == 1 && inside[k] && gradient != nullptr) {
          gradient[image * plan.pixels + slice.first + i] = 0;
        }
        __syncwarp();
        if (valid[k] && __ffs(alike) == lane + 1) *cursor += __popc(alike);
        __syncwarp();
      }
    }
    __syncthreads();
    if (pass == 1) break;
    // From counts to where each warp's pixels of each atom start.
    const int entries = atoms * kWarps, stretch = (entries + kThreads - 1) / kThreads;
    const int begin = min(static_cast<int>(threadIdx.x) * stretch, entries), end = min(begin + stretch, entries);
    unsigned sum = 0, total;
    for (int i = begin; i < end; ++i) sum += counts[i];
    unsigned start = scan_block<kThreads>(sum, scratch, total);
    for (int i = begin; i < end; ++i) {
      const unsigned count = counts[i];
      counts[i] = start;
      if (i % kWarps == 0) slice.run[i / kWarps] = start;
      start += count;
    }
    if (threadIdx.x == 0) slice.run[atoms] = total;
    __syncthreads();
  }
}

// Gradient of an image without a valid pixel, or whose loss is NaN.
template <int kThreads, typename Source>
__device__ void fill_skipped(
    const Plan& plan, const Source& source, int64_t image, const Slice<typename Source::Value>& slice,
    typename Source::Value* gradient) {
  using Value = typename Source::Value;
  for (int i = threadIdx.x; i < slice.pixels; i += kThreads) {
    const int pixel = slice.first + i;
    gradient[image * plan.pixels + pixel] =
        source.valid(image, pixel) ? kNaN<Value> : Value(0);
  }
}

}  // namespace distilldepth::normalise
