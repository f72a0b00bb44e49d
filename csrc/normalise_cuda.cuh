// The hybrid normalisation loss and its gradient on a GPU, for hybrid_norm_cuda.cu and crop_ssi_cuda.cu.
//
// An image is cut into slices of consecutive pixels, one per block. The edges of the contexts of all levels together
// cut the target axis (spatial: the image) into disjoint atoms; every context of every level is a union of atoms. A
// block sorts the valid pixels of its slice by atom, so that afterwards whole runs of pixels share their contexts and
// every sum over a context is a plain sum over runs, in a fixed order. Passes over a slice:
//   extremes     smallest and largest prediction and target, count
//   place        sort the slice by atom
//   histogram    counts per atom, then per context, that narrow down the medians
//   deviations   sums of |x - center|
//   signs        loss, and the sums that the gradient needs
//   gradient     but for a scale that is the same for all, because the valid pixels of the batch are counted meanwhile
// Two ways to run them. A cluster of up to 16 blocks holds an image in its shared memory and does everything in one
// kernel (compute capability 9.0 and above, maps up to about 560 x 560 float32). Otherwise every pass is a kernel, and
// the sorted slices lie in global memory. Which one, and the launches, are here; the kernels in clusters_cuda.cuh and
// passes_cuda.cuh, of parts that both are made of: plan, atoms, selection, sums.
//
// Medians are exact. A query holds the interval [low, low + span] of keys (integers in the order of the values) that
// its value lies in. The first histogram has bins of equal width between the smallest and the largest value, whose
// counts are even for real maps; the later ones cut the interval of keys, so that a fixed number of them ends every
// query, whatever the values.
#pragma once

#include <climits>
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <vector>

#include "clusters_cuda.cuh"
#include "passes_cuda.cuh"

namespace distilldepth::normalise {

// Where and for whom the kernels run.
struct Call {
  const char* op;
  const Tensor& like;  // on the device
  cudaStream_t stream;
};

// Lets a kernel have as much shared memory as there is: always all of it, so that calls from several threads agree.
inline cudaError_t allow_all_shared(const Call& call, const void* kernel) {
  const int most = device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(call.like);
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

template <typename... Parameters, typename... Arguments>
void launch_clusters(
    const Call& call, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, int cluster,
    const Arguments&... arguments) {
  if (blocks == 0) return;
  STD_TORCH_CHECK(blocks <= INT_MAX, call.op, ": the batch is too large for one launch");
  if (shared > kDefaultShared) check(allow_all_shared(call, reinterpret_cast<const void*>(kernel)), call.op);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = call.stream;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), call.op);
}

template <typename... Parameters, typename... Arguments>
void launch(
    const Call& call, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
    const Arguments&... arguments) {
  launch_clusters(call, kernel, blocks, threads, shared, 1, arguments...);
}

inline Plan make_plan(
    const char* op, int64_t images, int64_t height, int64_t width, const std::vector<int64_t>& segments,
    int64_t contexts, double spread_eps, bool mean_per_image) {
  STD_TORCH_CHECK(contexts >= 0 && contexts <= 2, op, ": contexts must be 0, 1 or 2, got ", contexts);
  STD_TORCH_CHECK(!segments.empty() && segments.size() <= kLevels, op, ": segments must have 1 to ", kLevels,
                  " levels, got ", segments.size());
  STD_TORCH_CHECK(height * width <= INT_MAX, op, ": maps must have fewer than 2^31 pixels");
  Plan plan{};
  plan.images = images;
  plan.height = static_cast<int>(height);
  plan.width = static_cast<int>(width);
  plan.pixels = static_cast<int>(height * width);
  plan.kind = static_cast<Contexts>(contexts);
  plan.levels = static_cast<int>(segments.size());
  plan.mean_per_image = mean_per_image;
  plan.spread_eps = spread_eps;
  std::set<int64_t> rows, columns;
  for (int level = 0; level < plan.levels; ++level) {
    const int64_t parts = segments[level];
    const int64_t own = plan.kind == Contexts::spatial ? parts * parts : parts;
    STD_TORCH_CHECK(parts >= 1 && parts <= kMaxContexts && plan.contexts + own <= kMaxContexts, op,
                    ": segments must make at most ", kMaxContexts, " contexts");
    plan.segments[level] = static_cast<int>(parts);
    plan.first_edge[level] = plan.edges;
    plan.first_context[level] = plan.contexts;
    plan.edges += static_cast<int>(parts - 1);
    plan.contexts += static_cast<int>(own);
    for (int64_t k = 1; k < parts; ++k) {
      rows.insert(height * k / parts);
      columns.insert(width * k / parts);
    }
  }
  const size_t atoms = plan.kind == Contexts::spatial ? (rows.size() + 1) * (columns.size() + 1) : plan.edges + 1;
  STD_TORCH_CHECK(atoms <= kMaxContexts, op, ": the edges of segments must cut an image into at most ", kMaxContexts,
                  " parts, got ", atoms);
  plan.atoms = static_cast<int>(atoms);
  return plan;
}

// Clusters of `size` blocks that the device runs at once with this much shared memory per block; 0 if it cannot.
// Remembered, because the question is slow.
template <typename Source>
int clusters_at_once(const Call& call, int size, size_t shared) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int, size_t>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace({static_cast<int>(call.like.get_device()), size, shared}, 0);
  if (!is_new) return entry->second;
  const void* kernel = reinterpret_cast<const void*>(normalise_in_cluster<Source>);
  // Code that was compiled for an older architecture has no clusters in it, even where the device has them.
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), call.op);
  if (attributes.ptxVersion < 90) return 0;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = size;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(size);
  config.blockDim = dim3(kClusterThreads);
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const bool fits =
      allow_all_shared(call, kernel) == cudaSuccess &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess;
  if (!fits) {
    clusters = 0;
    cudaGetLastError();  // not an error of this call: the answer is no
  }
  entry->second = clusters;
  return clusters;
}

// Cuts images into as many slices as a cluster has blocks, if a cluster can hold one; says the bytes per block.
template <typename Source>
bool plan_clusters(const Call& call, Plan& plan, size_t& shared) {
  using Value = typename Source::Value;
  const size_t most = device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>(call.like);
  // In pixels per block: what a launch costs beside its pixels. Larger clusters are faster for one image, smaller ones
  // run more images at once.
  constexpr double kFixedCost = 12000;
  double best = 0;
  for (int size = kLargestCluster; size >= 4; size /= 2) {
    Plan candidate = plan;
    candidate.slices = size;
    candidate.slice_pixels = static_cast<int>(ceil_div(ceil_div(plan.pixels, size), kWarp) * kWarp);
    if (candidate.slice_pixels > UINT16_MAX + 1) continue;
    size_t bytes = 0;
    for (candidate.bins_log2 = 10; candidate.bins_log2 >= 6; --candidate.bins_log2) {
      BlockMemory<Value>(candidate, nullptr, &bytes);
      if (bytes <= most) break;
    }
    if (candidate.bins_log2 < 6) continue;
    const int at_once = clusters_at_once<Source>(call, size, bytes);
    if (at_once == 0) continue;
    const double cost = ceil_div(plan.images, at_once) * (kFixedCost + candidate.slice_pixels);
    if (best != 0 && cost >= best) continue;
    best = cost;
    plan = candidate;
    shared = bytes;
  }
  return best != 0;
}

inline Tensor allocate(const Tensor& like, size_t bytes) {
  return new_empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

// What the kernels write: scalars, and the gradient (images, pixels) over `scale`, or null.
template <typename Value>
struct Results {
  Value *loss, *scale, *gradient;
};

template <typename Source>
void run_in_clusters(
    const Call& call, const Plan& plan, size_t shared, const Source& source,
    const Results<typename Source::Value>& results) {
  const Tensor memory = allocate(call.like, plan.images * sizeof(ImageLoss));
  auto* losses = static_cast<ImageLoss*>(memory.mutable_data_ptr());
  launch_clusters(call, normalise_in_cluster<Source>, plan.images * plan.slices, kClusterThreads, shared, plan.slices,
                  plan, source, losses, results.gradient);
  launch(call, sum_images<kSliceThreads, typename Source::Value>, 1, kSliceThreads, 0, plan, losses, results.loss,
         results.scale);
}

template <typename Source>
void run_in_passes(
    const Call& call, Plan plan, const Source& source, const Results<typename Source::Value>& results) {
  using Value = typename Source::Value;
  plan.slice_pixels = kSlicePixels;
  plan.slices = static_cast<int>(ceil_div(plan.pixels, kSlicePixels));
  for (plan.bins_log2 = 9; plan.bins_log2 > 6 && !counts_in_shared(plan);) --plan.bins_log2;
  if (!counts_in_shared(plan)) plan.bins_log2 = 8;
  Workspace<Value> work;
  Carver measure(nullptr);
  const size_t zeros = work.carve(plan, measure);
  const Tensor memory = allocate(call.like, measure.used());
  Carver carver(memory.mutable_data_ptr());
  work.carve(plan, carver);

  const int64_t slices = plan.images * plan.slices;
  const size_t histogram_bytes =
      counts_in_shared(plan) ? (static_cast<size_t>(plan.rows()) << plan.bins_log2) * sizeof(unsigned) : 0;
  const size_t counts_bytes = static_cast<size_t>(plan.atoms) * (kSliceThreads / kWarp) * sizeof(unsigned);
  const size_t per_warp_bytes = 2 * plan.levels * (kSliceThreads / kWarp) * sizeof(Partial);
  const size_t table_bytes = (plan.edges + plan.contexts) * sizeof(double);
  const int key_passes = static_cast<int>(ceil_div(8 * sizeof(Value), plan.bins_log2));
  int turn = 0;
  const auto place = [&](Group group, Value* where) {
    launch(call, place_slices<Source>, slices, kSliceThreads, kScratchBytes + std::max(histogram_bytes, counts_bytes),
           plan, source, work, group, turn, where);
  };
  const auto select = [&](Group group) {
    const int64_t queries = plan.images * 2 * (group == Group::edges ? plan.edges : plan.contexts);
    for (int pass = 0; pass <= key_passes; ++pass) {
      if (pass > 0) {
        launch(call, count_keys<Value>, slices, kSliceThreads, kScratchBytes + histogram_bytes, plan, work, group,
               turn);
      }
      launch(call, narrow_queries<Value>, queries, kSliceThreads, kScratchBytes, plan, work, group, pass == 0, turn);
      turn = 1 - turn;
    }
  };
  const auto sum = [&](Sums sums) {
    launch(call, sum_slices<Value>, slices, kSliceThreads, per_warp_bytes, plan, work, sums, turn);
    launch(call, finish_sums<Value>, plan.images, kSliceThreads, table_bytes, plan, work, sums, turn);
  };

  check(cudaMemsetAsync(memory.mutable_data_ptr(), 0, zeros, call.stream), call.op);
  launch(call, find_extremes<Source>, slices, kSliceThreads, kScratchBytes, plan, source, work);
  if (plan.kind == Contexts::quantile && plan.edges > 0) {
    place(Group::edges, nullptr);
    select(Group::edges);
  }
  launch(call, prepare_atoms<Value>, plan.images, kSliceThreads, table_bytes, plan, work, turn);
  place(Group::contexts, results.gradient);
  select(Group::contexts);
  sum(Sums::deviations);
  sum(Sums::signs);
  if (results.gradient != nullptr) {
    launch(call, write_gradients<Value>, slices, kSliceThreads, 0, plan, work, turn, results.gradient);
  }
  launch(call, sum_images<kSliceThreads, Value>, 1, kSliceThreads, 0, plan, work.losses, results.loss, results.scale);
}

// The loss of a batch, and its gradient. A Source gives the maps: `valid(image, pixel)`, `prediction(image, pixel)`,
// `target(image, pixel)` with one zero; `kBatch` is how many pixels a thread reads at a time.
template <typename Source>
void run(const Call& call, Plan plan, const Source& source, const Results<typename Source::Value>& results) {
  if constexpr (std::is_same_v<typename Source::Value, float>) {
    size_t shared = 0;
    if (plan_clusters<Source>(call, plan, shared)) {
      run_in_clusters(call, plan, shared, source, results);
      return;
    }
  }
  run_in_passes(call, plan, source, results);
}

}  // namespace distilldepth::normalise
