// Exact medians and quantiles of many overlapping groups of pixels: histograms, and queries that they narrow down.
#pragma once

#include "atoms_cuda.cuh"

namespace distilldepth::normalise {

// Bins of equal width, per map and atom: `histogram` (2, plan.atoms, bins). Of the target only if looking for edges.
template <int kThreads, typename Value>
__device__ void histogram_atoms(
    const Plan& plan, const State<Value>& state, const Slice<Value>& slice, Group group, unsigned* histogram) {
  const EqualBins<Value> prediction_bin = state.equal_bins(plan, kPrediction);
  const EqualBins<Value> target_bin = state.equal_bins(plan, kTarget);
  const int atoms = group == Group::edges ? 1 : state.atoms();
  for (int atom = 0; atom < atoms; ++atom) {
    unsigned* predictions = histogram + (static_cast<int64_t>(atom) << plan.bins_log2);
    unsigned* targets = predictions + (static_cast<int64_t>(plan.atoms) << plan.bins_log2);
    for (int i = slice.run[atom] + threadIdx.x; i < slice.run[atom + 1]; i += kThreads) {
      if (group == Group::contexts) atomicAdd(predictions + prediction_bin(slice.prediction[i]), 1u);
      atomicAdd(targets + target_bin(slice.target[i]), 1u);
    }
  }
}

// Queries for edges that share an interval share a histogram: that of the first.
template <typename Value>
__device__ __forceinline__ int first_alike(const Query<Value>* queries, int query) {
  int first = 0;
  while (queries[first].low != queries[query].low || queries[first].span != queries[query].span) ++first;
  return first;
}

// Bins of the keys of every unfinished query: `histogram` (queries, bins).
template <int kThreads, typename Value>
__device__ void histogram_queries(
    const Plan& plan, const State<Value>& state, const Slice<Value>& slice, Group group, unsigned* histogram) {
  struct Bins {
    Key<Value> low, span;
    int shift;
    unsigned* counts;
    __device__ __forceinline__ void count(Value x) const {
      const Key<Value> place = key_of(x) - low;
      if (place <= span) atomicAdd(counts + static_cast<int>(place >> shift), 1u);
    }
  };
  const auto bins_of = [&](int q) {
    const Query<Value>& query = state.queries[q];
    return Bins{query.low, query.span, bin_shift<Value>(query.span, plan.bins_log2),
                histogram + (static_cast<int64_t>(q) << plan.bins_log2)};
  };
  if (group == Group::edges) {
    for (int q = 0; q < 2 * plan.edges; ++q) {
      const Bins bins = bins_of(q);
      if (bins.span == 0 || first_alike(state.queries, q) != q) continue;
      for (int i = threadIdx.x; i < slice.run[1]; i += kThreads) bins.count(slice.target[i]);
    }
    return;
  }
  const int atoms = state.atoms();
  for (int atom = 0; atom < atoms; ++atom) {
    const int begin = slice.run[atom] + threadIdx.x, end = slice.run[atom + 1];
    if (slice.run[atom] == end) continue;
    for (int level = 0; level < plan.levels; ++level) {
      const int context = state.context(plan, level, atom);
      const Bins prediction = bins_of(context), target = bins_of(plan.contexts + context);
      if (prediction.span != 0) {
        for (int i = begin; i < end; i += kThreads) prediction.count(slice.prediction[i]);
      }
      if (target.span != 0) {
        for (int i = begin; i < end; i += kThreads) target.count(slice.target[i]);
      }
    }
  }
}

struct Found {
  unsigned bin, before, total;  // the bin that holds the rank, what is below it, what is in all bins
};

// The bin that holds an element of a given rank. `count(bin)`; `rank_of(total)`.
template <int kThreads, typename Count, typename Rank>
__device__ Found find_bin(int bins, Count count, Rank rank_of, unsigned* scratch) {
  const int stretch = (bins + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * stretch, bins), end = min(begin + stretch, bins);
  unsigned sum = 0, total;
  for (int bin = begin; bin < end; ++bin) sum += count(bin);
  unsigned before = scan_block<kThreads>(sum, scratch, total);
  const unsigned rank = rank_of(total);
  unsigned* found = scratch;
  if (threadIdx.x == 0) found[0] = found[1] = 0;
  __syncthreads();
  if (before <= rank && rank < before + sum) {
    int bin = begin;
    for (unsigned here; before + (here = count(bin)) <= rank; ++bin) before += here;
    found[0] = bin;
    found[1] = before;
  }
  __syncthreads();
  const Found result{found[0], found[1], total};
  __syncthreads();
  return result;
}

// The first key in [low, high] whose bin is at least `bin`; high + 1 if there is none. high must be below the last key.
template <typename Value>
__device__ Key<Value> first_key(const EqualBins<Value>& bins, Key<Value> low, Key<Value> high, int bin) {
  Key<Value> end = high + 1;
  while (low < end) {
    const Key<Value> middle = low + (end - low) / 2;
    if (bins(value_of<Value>(middle)) >= bin) {
      end = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Narrows a query by the histograms of all parts; `parts.at(i)` for i < parts.size() are alike in shape. `equal_width`:
// they are per atom with bins of equal width, and the query starts; else they are per query.
template <int kThreads, typename Value, typename Parts>
__device__ Query<Value> narrow(
    const Plan& plan, const State<Value>& state, const Parts& parts, Group group, bool equal_width, int q,
    unsigned* scratch) {
  const int bins = plan.bins();
  if (!equal_width) {
    Query<Value> query = state.queries[q];
    if (query.span == 0) return query;
    const int row = group == Group::edges ? first_alike(state.queries, q) : q;
    const int64_t at = static_cast<int64_t>(row) << plan.bins_log2;
    const auto count = [&](int bin) {
      unsigned sum = 0;
#pragma unroll 8
      for (int part = 0; part < parts.size(); ++part) sum += parts.at(part)[at + bin];
      return sum;
    };
    const Found found = find_bin<kThreads>(bins, count, [&](unsigned) { return query.rank; }, scratch);
    const int shift = bin_shift<Value>(query.span, plan.bins_log2);
    const Key<Value> start = static_cast<Key<Value>>(found.bin) << shift;
    const Key<Value> width = (static_cast<Key<Value>>(1) << shift) - 1;
    query.low += start;
    query.span = min(width, query.span - start);
    query.rank -= found.before;
    return query;
  }
  const int map = group == Group::edges ? kTarget : q / plan.contexts;
  const int context = q % plan.contexts, level = level_of(plan, plan.first_context, context);
  const int atoms = group == Group::edges ? 1 : state.atoms();
  const auto count = [&](int bin) {
    unsigned sum = 0;
    for (int atom = 0; atom < atoms; ++atom) {
      if (group == Group::contexts && state.context(plan, level, atom) != context) continue;
      const int64_t at = (static_cast<int64_t>(map * plan.atoms + atom) << plan.bins_log2) + bin;
#pragma unroll 8
      for (int part = 0; part < parts.size(); ++part) sum += parts.at(part)[at];
    }
    return sum;
  };
  unsigned rank = 0;
  const auto rank_of = [&](unsigned total) {
    rank = group == Group::edges ? edge_rank(plan, total, q) : (total - 1) / 2;
    return rank;
  };
  const Found found = find_bin<kThreads>(bins, count, rank_of, scratch);
  if (found.total == 0) return Query<Value>{0, 0, 0, 0};
  const Key<Value> low = ~state.extremes->inverted_low[map], high = state.extremes->high[map];
  auto* ends = reinterpret_cast<Key<Value>*>(scratch);
  if (threadIdx.x < 2) {
    const int bin = found.bin + threadIdx.x;
    ends[threadIdx.x] = bin == bins ? high + 1 : first_key(state.equal_bins(plan, map), low, high, bin);
  }
  __syncthreads();
  const Query<Value> query{ends[0], ends[1] - 1 - ends[0], rank - found.before, found.total};
  __syncthreads();
  return query;
}

}  // namespace distilldepth::normalise
