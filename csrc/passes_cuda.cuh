// One kernel per pass, for maps and devices that clusters do not serve. One block per slice unless said otherwise.
#pragma once

#include "selection_cuda.cuh"
#include "sums_cuda.cuh"

namespace distilldepth::normalise {

// Global memory of all images.
template <typename Value>
struct Workspace {
  // Zeros at the start.
  Extremes<Value>* extremes;  // (images,)
  unsigned* atom_histogram;   // (images, 2, plan.atoms, bins)
  // Anything at the start.
  State<Value> state;
  unsigned* query_histogram;  // (2 turns, images, 2 * plan.contexts, bins), each cleared before it is counted into
  Query<Value>* queries;  // (2 turns, images, 2 * plan.contexts): a kernel reads one turn's and writes the other's
  ImageLoss* losses;      // (images,)
  Value* prediction;      // (images, pixels) sorted inside each slice
  Value* target;          // (images, pixels)
  uint16_t* offset;       // (images, pixels)
  int* run;               // (images, slices, plan.atoms + 1)
  Partial* partials;      // (images, slices, plan.contexts)

  __host__ __device__ size_t atom_words(const Plan& plan) const {
    return static_cast<size_t>(2 * plan.atoms) << plan.bins_log2;
  }
  __host__ __device__ size_t query_words(const Plan& plan) const {
    return static_cast<size_t>(2 * plan.contexts) << plan.bins_log2;
  }

  // Returns the bytes of the part that starts as zeros.
  size_t carve(const Plan& plan, Carver& carver) {
    const size_t images = plan.images, pixels = plan.pixels, slices = plan.slices;
    extremes = carver.take<Extremes<Value>>(images);
    atom_histogram = carver.take<unsigned>(images * atom_words(plan));
    const size_t zeros = carver.used();
    state.carve(plan, images, carver);
    state.extremes = extremes;
    query_histogram = carver.take<unsigned>(2 * images * query_words(plan));
    queries = carver.take<Query<Value>>(2 * images * 2 * plan.contexts);
    losses = carver.take<ImageLoss>(images);
    prediction = carver.take<Value>(images * pixels);
    target = carver.take<Value>(images * pixels);
    offset = carver.take<uint16_t>(images * pixels);
    run = carver.take<int>(images * slices * (plan.atoms + 1));
    partials = carver.take<Partial>(images * slices * plan.contexts);
    return zeros;
  }

  __device__ State<Value> state_of(const Plan& plan, int64_t image, int turn) const {
    State<Value> one = state.of(plan, image);
    one.queries = queries + (turn * plan.images + image) * 2 * plan.contexts;
    return one;
  }
  __device__ Slice<Value> slice_of(const Plan& plan, int64_t image, int slice) const {
    Slice<Value> one;
    one.locate(plan, slice);
    const int64_t start = image * plan.pixels + one.first;
    one.prediction = prediction + start;
    one.target = target + start;
    one.offset = offset + start;
    one.run = run + (image * plan.slices + slice) * (plan.atoms + 1);
    return one;
  }
  __device__ unsigned* query_histogram_of(const Plan& plan, int64_t image, int turn) const {
    return query_histogram + (turn * plan.images + image) * query_words(plan);
  }
};

// Whether a block counts in shared memory before it adds to the image's histogram.
__host__ __device__ inline bool counts_in_shared(const Plan& plan) {
  return (static_cast<size_t>(plan.rows()) << plan.bins_log2) * sizeof(unsigned) <= kDefaultShared - kScratchBytes;
}

__device__ __forceinline__ void atomic_max(uint32_t* at, uint32_t x) { atomicMax(at, x); }
__device__ __forceinline__ void atomic_max(uint64_t* at, uint64_t x) {
  atomicMax(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(x));
}

template <typename Source>
__global__ void __launch_bounds__(kSliceThreads, 2)
find_extremes(Plan plan, Source source, Workspace<typename Source::Value> work) {
  using Value = typename Source::Value;
  const int64_t image = blockIdx.x / plan.slices;
  const Slice<Value> slice = work.slice_of(plan, image, blockIdx.x % plan.slices);
  const Extremes<Value> mine = slice_extremes<kSliceThreads>(source, image, slice, shared_memory);
  if (threadIdx.x != 0 || mine.count == 0) return;
  Extremes<Value>& all = work.extremes[image];
#pragma unroll
  for (int map = 0; map < 2; ++map) {
    atomic_max(&all.inverted_low[map], mine.inverted_low[map]);
    atomic_max(&all.high[map], mine.high[map]);
  }
  if (mine.bad) atomicMax(&all.bad, 1u);
  atomicAdd(&all.count, mine.count);
}

// One block per image.
template <typename Value>
__global__ void __launch_bounds__(kSliceThreads) prepare_atoms(Plan plan, Workspace<Value> work, int turn) {
  const int64_t image = blockIdx.x;
  const State<Value> state = work.state_of(plan, image, turn);
  if (state.extremes->skipped()) return;
  if (plan.kind == Contexts::quantile) {  // the search for the edges has used it
    zero_block(work.atom_histogram + image * work.atom_words(plan), work.atom_words(plan), kSliceThreads);
  }
  find_atoms(plan, state, reinterpret_cast<int*>(shared_memory), kSliceThreads);
}

// Runs `count(histogram)`, in shared memory if it fits, and adds to `total` (words,).
template <typename Count>
__device__ void count_into(const Plan& plan, unsigned* total, size_t words, unsigned* region, Count count) {
  if (!counts_in_shared(plan)) {
    count(total);
    return;
  }
  zero_block(region, words, kSliceThreads);
  count(region);
  __syncthreads();
  for (size_t i = threadIdx.x; i < words; i += kSliceThreads) {
    if (region[i] != 0) atomicAdd(total + i, region[i]);
  }
}

template <typename Source>
__global__ void __launch_bounds__(kSliceThreads, kBlocksAtOnce<typename Source::Value>)
place_slices(
    Plan plan, Source source, Workspace<typename Source::Value> work, Group group, int turn,
    typename Source::Value* gradient) {
  using Value = typename Source::Value;
  const int64_t image = blockIdx.x / plan.slices;
  const Slice<Value> slice = work.slice_of(plan, image, blockIdx.x % plan.slices);
  const State<Value> state = work.state_of(plan, image, turn);
  if (state.extremes->skipped()) {
    if (gradient != nullptr) fill_skipped<kSliceThreads>(plan, source, image, slice, gradient);
    return;
  }
  auto* scratch = reinterpret_cast<unsigned*>(shared_memory);
  unsigned* region = scratch + kScratchBytes / sizeof(unsigned);
  place_slice<kSliceThreads>(
      plan, source, state, image, slice, group == Group::edges, gradient, region, scratch);
  const size_t words = work.atom_words(plan);
  count_into(plan, work.atom_histogram + image * words, words, region, [&](unsigned* histogram) {
    histogram_atoms<kSliceThreads>(plan, state, slice, group, histogram);
  });
}

template <typename Value>
__global__ void __launch_bounds__(kSliceThreads, 2)
count_keys(Plan plan, Workspace<Value> work, Group group, int turn) {
  const int64_t image = blockIdx.x / plan.slices;
  const State<Value> state = work.state_of(plan, image, turn);
  if (state.extremes->skipped()) return;
  const int queries = group == Group::edges ? 2 * plan.edges : 2 * plan.contexts;
  int open = 0;
  for (int q = threadIdx.x; q < queries; q += kSliceThreads) open |= state.queries[q].span != 0;
  if (!__syncthreads_or(open)) return;
  const Slice<Value> slice = work.slice_of(plan, image, blockIdx.x % plan.slices);
  unsigned* region = reinterpret_cast<unsigned*>(shared_memory) + kScratchBytes / sizeof(unsigned);
  count_into(
      plan, work.query_histogram_of(plan, image, turn), static_cast<size_t>(queries) << plan.bins_log2, region,
      [&](unsigned* histogram) { histogram_queries<kSliceThreads>(plan, state, slice, group, histogram); });
}

struct OnePart {
  const unsigned* histogram;

  __device__ int size() const { return 1; }
  __device__ const unsigned* at(int) const { return histogram; }
};

// One block per query of every image. Reads one turn's queries and histogram, writes the other's queries, and clears
// the other's histogram for the next count.
template <typename Value>
__global__ void __launch_bounds__(kSliceThreads, 2)
narrow_queries(Plan plan, Workspace<Value> work, Group group, bool equal_width, int turn) {
  const int queries = group == Group::edges ? 2 * plan.edges : 2 * plan.contexts;
  const int64_t image = blockIdx.x / queries;
  const int q = blockIdx.x % queries;
  const State<Value> state = work.state_of(plan, image, turn);
  if (state.extremes->skipped()) return;
  zero_block(
      work.query_histogram_of(plan, image, 1 - turn) + (static_cast<int64_t>(q) << plan.bins_log2), plan.bins(),
      kSliceThreads);
  const OnePart part{
      equal_width ? work.atom_histogram + image * work.atom_words(plan) : work.query_histogram_of(plan, image, turn)};
  const Query<Value> query = narrow<kSliceThreads>(
      plan, state, part, group, equal_width, q, reinterpret_cast<unsigned*>(shared_memory));
  if (threadIdx.x == 0) work.state_of(plan, image, 1 - turn).queries[q] = query;
}

enum class Sums : int { deviations = 0, signs = 1 };

template <typename Value>
__global__ void __launch_bounds__(kSliceThreads, 2)
sum_slices(Plan plan, Workspace<Value> work, Sums sums, int turn) {
  const int64_t image = blockIdx.x / plan.slices;
  const State<Value> state = work.state_of(plan, image, turn);
  if (state.extremes->skipped()) return;
  const Slice<Value> slice = work.slice_of(plan, image, blockIdx.x % plan.slices);
  auto* per_warp = reinterpret_cast<Partial*>(shared_memory);
  Partial* partials = work.partials + blockIdx.x * static_cast<int64_t>(plan.contexts);
  if (sums == Sums::deviations) {
    const Deviations<Value> deviations{plan, state, slice, {}};
    sum_contexts<kSliceThreads>(plan, state, slice, deviations, partials, per_warp);
  } else {
    sum_contexts<kSliceThreads>(plan, state, slice, Signs<Value>{state, slice, {}}, partials, per_warp);
  }
}

// Adds up the slices' sums and derives what the next pass needs. One block per image, a warp per context.
template <typename Value>
__global__ void __launch_bounds__(kSliceThreads, 2)
finish_sums(Plan plan, Workspace<Value> work, Sums sums, int turn) {
  const int64_t image = blockIdx.x;
  const State<Value> state = work.state_of(plan, image, turn);
  if (state.extremes->skipped()) {
    if (threadIdx.x == 0) work.losses[image] = state.extremes->loss_if_skipped();
    return;
  }
  auto* shares = reinterpret_cast<double*>(shared_memory);  // (contexts,)
  const double divisor = image_divisor(plan, state.extremes->count);
  for (int u = threadIdx.x / kWarp; u < plan.contexts; u += kSliceThreads / kWarp) {
    Partial mine;
    for (int64_t slice = threadIdx.x % kWarp; slice < plan.slices; slice += kWarp) {
      mine.add(work.partials[(image * plan.slices + slice) * plan.contexts + u]);
    }
    const Partial total = warp_sum(mine);
    if (threadIdx.x % kWarp != 0) continue;
    if (sums == Sums::deviations) {
      set_statistics(plan, state, u, total);
    } else {
      shares[u] = set_coefficients(state, u, total, divisor);
    }
  }
  __syncthreads();
  if (sums == Sums::deviations || threadIdx.x != 0) return;
  double sum = 0;
  for (int u = 0; u < plan.contexts; ++u) sum += shares[u];
  work.losses[image] = {sum, state.extremes->count};
}

template <typename Value>
__global__ void __launch_bounds__(kSliceThreads, kBlocksAtOnce<Value>)
write_gradients(Plan plan, Workspace<Value> work, int turn, Value* gradient) {
  const int64_t image = blockIdx.x / plan.slices;
  const State<Value> state = work.state_of(plan, image, turn);
  if (state.extremes->skipped()) return;
  const Slice<Value> slice = work.slice_of(plan, image, blockIdx.x % plan.slices);
  write_gradient<kSliceThreads>(plan, state, slice, image, gradient);
}

}  // namespace distilldepth::normalise
