// Everything in one kernel, where a cluster holds an image in the shared memory of its blocks.
#pragma once

#include <cooperative_groups.h>

#include "selection_cuda.cuh"
#include "sums_cuda.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define DISTILLDEPTH_HAS_CLUSTERS
#endif

namespace distilldepth::normalise {

// Shared memory of one block of a cluster.
template <typename Value>
struct BlockMemory {
  unsigned* scratch;
  Extremes<Value>* extremes;  // (2,) of the slice, of the image
  State<Value> state;         // of the image, alike in every block
  Slice<Value> slice;
  Query<Value>* narrowed;  // (2 * contexts,) of this block's share of the queries
  Partial* deviations;     // (contexts,) of the slice
  Partial* signs;          // (contexts,) of the slice
  unsigned* region;        // histogram, counts of place_slice, flags of find_atoms, sums per warp: one after the other

  __host__ __device__ explicit BlockMemory(const Plan& plan, void* base, size_t* bytes = nullptr) {
    Carver carver(base);
    scratch = carver.take<unsigned>(kScratchBytes / sizeof(unsigned));
    extremes = carver.take<Extremes<Value>>(2);
    state.carve(plan, 1, carver);
    state.extremes = extremes + 1;
    narrowed = carver.take<Query<Value>>(2 * plan.contexts);
    deviations = carver.take<Partial>(plan.contexts);
    signs = carver.take<Partial>(plan.contexts);
    slice.run = carver.take<int>(plan.atoms + 1);
    region = carver.take<unsigned>(region_words(plan));
    slice.prediction = carver.take<Value>(plan.slice_pixels);
    slice.target = carver.take<Value>(plan.slice_pixels);
    slice.offset = carver.take<uint16_t>(plan.slice_pixels);
    if (bytes != nullptr) *bytes = carver.used();
  }

  static __host__ __device__ size_t region_words(const Plan& plan) {
    constexpr int kWarps = kClusterThreads / kWarp;
    const size_t words[] = {
        static_cast<size_t>(plan.rows()) << plan.bins_log2,
        static_cast<size_t>(plan.atoms) * kWarps,
        static_cast<size_t>(plan.edges),
        2 * plan.levels * kWarps * sizeof(Partial) / sizeof(unsigned),
    };
    size_t most = 0;
    for (size_t word : words) most = word > most ? word : most;
    return most;
  }
};

#ifdef DISTILLDEPTH_HAS_CLUSTERS
struct ClusterParts {
  cooperative_groups::cluster_group& cluster;
  unsigned* histogram;  // of this block

  __device__ int size() const { return static_cast<int>(cluster.num_blocks()); }
  __device__ const unsigned* at(int part) const { return cluster.map_shared_rank(histogram, part); }
};

// Adds up the partial sums of a context over the blocks, in the order of their ranks.
__device__ __forceinline__ Partial sum_blocks(cooperative_groups::cluster_group& cluster, Partial* sums, int u) {
  Partial total;
#pragma unroll 4
  for (int part = 0; part < static_cast<int>(cluster.num_blocks()); ++part) {
    total.add(cluster.map_shared_rank(sums, part)[u]);
  }
  return total;
}

// Histograms and narrowing until every query of the group has its value.
template <typename Value>
__device__ void select_in_cluster(
    const Plan& plan, cooperative_groups::cluster_group& cluster, const BlockMemory<Value>& memory, Group group) {
  constexpr int kThreads = kClusterThreads;
  const State<Value>& state = memory.state;
  const int rank = cluster.block_rank(), blocks = cluster.num_blocks();
  const int queries = group == Group::edges ? 2 * plan.edges : 2 * plan.contexts;
  const ClusterParts parts{cluster, memory.region};
  bool equal_width = true;
  bool open = queries > 0;
  while (open) {
    zero_block(memory.region, static_cast<size_t>(plan.rows()) << plan.bins_log2, kThreads);
    if (equal_width) {
      histogram_atoms<kThreads>(plan, state, memory.slice, group, memory.region);
    } else {
      histogram_queries<kThreads>(plan, state, memory.slice, group, memory.region);
    }
    cluster.sync();
    // Each block narrows its share of the queries; then everyone fetches all of them.
    for (int q = rank; q < queries; q += blocks) {
      const Query<Value> query =
          narrow<kThreads>(plan, state, parts, group, equal_width, q, memory.scratch);
      if (threadIdx.x == 0) memory.narrowed[q / blocks] = query;
    }
    cluster.sync();
    int left = 0;
    for (int q = threadIdx.x; q < queries; q += kThreads) {
      const Query<Value> query = cluster.map_shared_rank(memory.narrowed, q % blocks)[q / blocks];
      state.queries[q] = query;
      left |= query.span != 0;
    }
    open = __syncthreads_or(left);
    equal_width = false;
  }
}
#endif

// One cluster per image, one block per slice. `losses` (images,); `gradient` (images, pixels) or null.
template <typename Source>
__global__ void __launch_bounds__(kClusterThreads, 1)
normalise_in_cluster(Plan plan, Source source, ImageLoss* losses, typename Source::Value* gradient) {
#ifdef DISTILLDEPTH_HAS_CLUSTERS
  using Value = typename Source::Value;
  constexpr int kThreads = kClusterThreads;
  cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  const int rank = cluster.block_rank(), blocks = cluster.num_blocks();
  const int64_t image = blockIdx.x / blocks;
  BlockMemory<Value> memory(plan, shared_memory);
  State<Value>& state = memory.state;
  memory.slice.locate(plan, rank);

  const Extremes<Value> mine = slice_extremes<kThreads>(source, image, memory.slice, memory.scratch);
  if (threadIdx.x == 0) memory.extremes[0] = mine;
  cluster.sync();
  if (threadIdx.x == 0) {
    Extremes<Value> all{};
    for (int part = 0; part < blocks; ++part) all.add(*cluster.map_shared_rank(memory.extremes, part));
    memory.extremes[1] = all;
  }
  __syncthreads();
  if (state.extremes->skipped()) {
    if (gradient != nullptr) fill_skipped<kThreads>(plan, source, image, memory.slice, gradient);
    if (rank == 0 && threadIdx.x == 0) losses[image] = state.extremes->loss_if_skipped();
    cluster.sync();  // no block may end while another reads its shared memory
    return;
  }

  if (plan.kind == Contexts::quantile) {
    Value* no_gradient = nullptr;
    place_slice<kThreads>(
        plan, source, state, image, memory.slice, true, no_gradient, memory.region, memory.scratch);
    select_in_cluster(plan, cluster, memory, Group::edges);
  }
  find_atoms(plan, state, reinterpret_cast<int*>(memory.region), kThreads);
  place_slice<kThreads>(plan, source, state, image, memory.slice, false, gradient, memory.region, memory.scratch);
  select_in_cluster(plan, cluster, memory, Group::contexts);

  auto* per_warp = reinterpret_cast<Partial*>(memory.region);
  const Deviations<Value> deviations{plan, state, memory.slice, {}};
  sum_contexts<kThreads>(plan, state, memory.slice, deviations, memory.deviations, per_warp);
  cluster.sync();
  for (int u = threadIdx.x; u < plan.contexts; u += kThreads) {
    set_statistics(plan, state, u, sum_blocks(cluster, memory.deviations, u));
  }
  __syncthreads();
  sum_contexts<kThreads>(plan, state, memory.slice, Signs<Value>{state, memory.slice, {}}, memory.signs, per_warp);
  cluster.sync();
  auto* shares = reinterpret_cast<double*>(memory.region);
  const double divisor = image_divisor(plan, state.extremes->count);
  for (int u = threadIdx.x; u < plan.contexts; u += kThreads) {
    shares[u] = set_coefficients(state, u, sum_blocks(cluster, memory.signs, u), divisor);
  }
  __syncthreads();
  if (rank == 0 && threadIdx.x == 0) {
    double sum = 0;
    for (int u = 0; u < plan.contexts; ++u) sum += shares[u];
    losses[image] = {sum, state.extremes->count};
  }
  if (gradient != nullptr) write_gradient<kThreads>(plan, state, memory.slice, image, gradient);
  cluster.sync();
#endif
}

}  // namespace distilldepth::normalise
