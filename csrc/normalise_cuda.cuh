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
// the sorted slices lie in global memory.
//
// Medians are exact. A query holds the interval [low, low + span] of keys (integers in the order of the values) that
// its value lies in. The first histogram has bins of equal width between the smallest and the largest value, whose
// counts are even for real maps; the later ones cut the interval of keys, so that a fixed number of them ends every
// query, whatever the values.
#pragma once

#include <cooperative_groups.h>

#include <climits>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <vector>

#include "cuda.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define DISTILLDEPTH_HAS_CLUSTERS
#endif

namespace distilldepth::normalise {

constexpr int kLevels = 16;
constexpr int kMaxContexts = 1024;
constexpr int kPrediction = 0, kTarget = 1;
constexpr unsigned kNone = 0xffffffffu;
// Device code may use constants, but no host functions.
template <typename Value>
constexpr Value kLargest = std::numeric_limits<Value>::max();
template <typename Value>
constexpr Value kNaN = std::numeric_limits<Value>::quiet_NaN();

constexpr int kSliceThreads = 512;
constexpr int kSlicePixels = 4096;
template <typename Value>
constexpr int kBlocksAtOnce = sizeof(Value) == 8 ? 1 : 2;  // per multiprocessor, as registers allow
constexpr int kClusterThreads = 1024;
constexpr int kLargestCluster = 16;
constexpr size_t kDefaultShared = 48 * 1024;  // bytes of shared memory that need no permission
constexpr int kGradientBatch = 4;             // pixels at a time per thread, to have several loads in flight
constexpr int kScratchBytes = 2048;

enum class Contexts : int { range = 0, quantile = 1, spatial = 2 };
enum class Group : int { edges = 0, contexts = 1 };  // what queries look for: quantiles of the image, or medians

// The shape of the work, by value to every kernel. Edges and contexts of all levels stand one after the other.
struct Plan {
  int64_t images;
  int height, width, pixels;  // of one image
  Contexts kind;
  int levels;
  int segments[kLevels];
  int first_edge[kLevels], first_context[kLevels];
  int edges, contexts;  // of all levels of one image; edges along one axis for spatial
  int atoms;            // at most
  int bins_log2;
  int slices, slice_pixels;
  bool mean_per_image;  // each image counts the same, not each pixel
  double spread_eps;

  __host__ __device__ int bins() const { return 1 << bins_log2; }
  __host__ __device__ int rows() const { return 2 * (atoms > contexts ? atoms : contexts); }  // of a histogram
};

// Keys: unsigned integers in the order of the values they stand for. Only finite values have keys.

template <typename Value>
using Key = std::conditional_t<sizeof(Value) == 8, uint64_t, uint32_t>;

template <typename Value>
__host__ __device__ __forceinline__ Key<Value> key_of(Value x) {
  constexpr Key<Value> sign = Key<Value>(1) << (8 * sizeof(Value) - 1);
  Key<Value> bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits & sign ? ~bits : bits | sign;
}

template <typename Value>
__host__ __device__ __forceinline__ Value value_of(Key<Value> key) {
  constexpr Key<Value> sign = Key<Value>(1) << (8 * sizeof(Value) - 1);
  const Key<Value> bits = key & sign ? key ^ sign : ~key;
  Value x;
  memcpy(&x, &bits, sizeof(bits));
  return x;
}

// -0.0 and 0.0 are equal and must have one key.
template <typename Value>
__device__ __forceinline__ Value one_zero(Value x) {
  return x == 0 ? Value(0) : x;
}

// A product that is rounded before it is added to something, so that the same expression gives the same bits wherever
// it is compiled, and N(x) - N(x) is 0.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }

template <typename Value>
__device__ __forceinline__ int sign_of(Value x) {
  return (x > 0) - (x < 0);
}

template <typename Value>
__device__ __forceinline__ Value magnitude(Value x) {
  return x < 0 ? -x : x;
}

// Bins of equal width. Every step rounds monotonically, so the bin never falls as the value grows.
template <typename Value>
struct EqualBins {
  Value low, scale;
  int count;

  __device__ EqualBins(Value low_, Value high, int count_) : low(low_), scale(count_ / (high - low_)), count(count_) {
    if (!(scale <= kLargest<Value>)) scale = 0;  // constant, or too narrow
  }
  __device__ __forceinline__ int operator()(Value x) const {
    if (scale == 0) return 0;
    const Value place = (x - low) * scale;
    return place < count ? static_cast<int>(place) : count - 1;
  }
};

template <typename Value>
struct Query {
  Key<Value> low, span;  // the value's key is in [low, low + span]
  unsigned rank;         // among the values of its group in that interval
  unsigned count;        // values in its group
};

template <typename Value>
__device__ __forceinline__ int bin_shift(Key<Value> span, int bins_log2) {
  const int bits = sizeof(Value) == 8 ? 64 - __clzll(span) : 32 - __clz(static_cast<unsigned>(span));
  return bits > bins_log2 ? bits - bins_log2 : 0;
}

// What an image adds to the loss of the batch.
struct ImageLoss {
  double sum;      // over pixels and levels, over image_divisor; NaN if a valid pixel is not finite
  unsigned count;  // valid pixels
};

// [kPrediction] and [kTarget]; the lowest key is kept inverted, so that all zeros is the start of every maximum.
template <typename Value>
struct Extremes {
  Key<Value> inverted_low[2], high[2];
  unsigned count;  // valid pixels
  unsigned bad;    // one of them is not finite

  __device__ Value low_value(int map) const { return value_of<Value>(~inverted_low[map]); }
  __device__ Value high_value(int map) const { return value_of<Value>(high[map]); }
  // Nothing to normalise: no pixel, or the loss is NaN.
  __device__ bool skipped() const { return count == 0 || bad != 0; }
  __device__ ImageLoss loss_if_skipped() const { return {bad ? kNaN<double> : 0.0, count}; }
  __device__ void add(const Extremes& other) {
#pragma unroll
    for (int map = 0; map < 2; ++map) {
      inverted_low[map] = max(inverted_low[map], other.inverted_low[map]);
      high[map] = max(high[map], other.high[map]);
    }
    count += other.count;
    bad |= other.bad;
  }
};

// What the gradient needs of a context; 32 bytes for float, read at once.
template <typename Value>
struct alignas(16) Context {
  Value center[2], inverse_spread[2];
  Value slope, rest, share;  // see set_coefficients: rest has the sign q
  unsigned center_pixel;
};

// Sums over a context. Deviations: x, y of prediction and target, n pixels above - below the center, first the center's
// pixel. Signs: x of sign * (prediction - center), y of |difference|, n of signs.
struct Partial {
  double x = 0, y = 0;
  int n = 0;
  unsigned first = kNone;

  __device__ void add(const Partial& other) {
    x += other.x;
    y += other.y;
    n += other.n;
    first = min(first, other.first);
  }
};

// Hands out parts of one block of memory; from a null pointer it measures.
class Carver {
 public:
  __host__ __device__ explicit Carver(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <typename T>
  __host__ __device__ T* take(size_t count) {
    T* part = reinterpret_cast<T*>(base_ + used_);
    used_ += (count * sizeof(T) + 15) / 16 * 16;
    return part;
  }
  __host__ __device__ size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

// What is known of an image; of all images in global memory, of one in shared memory.
template <typename Value>
struct State {
  Extremes<Value>* extremes;  // (images,)
  int* edge_counts;           // (images, 2) distinct edges; spatial: of rows, of columns; else: of targets, 0
  Value* edges;               // (images, 2, plan.edges) all, distinct ascending
  int* lines;                 // (images, 2, 2, plan.edges) rows, columns: all, distinct ascending
  uint16_t* context_of;       // (images, levels, plan.atoms)
  Query<Value>* queries;      // (images, 2 * plan.contexts): a map's contexts; for edges: (edge, below or above)
  Context<Value>* contexts;   // (images, plan.contexts)
  int* balance;               // (images, plan.contexts) sum of e, then of q e - sign: see set_coefficients
  double* spreads;            // (images, plan.contexts) of the prediction

  __host__ __device__ void carve(const Plan& plan, int64_t images, Carver& carver) {
    edge_counts = carver.take<int>(images * 2);
    edges = carver.take<Value>(images * 2 * plan.edges);
    lines = carver.take<int>(images * 4 * plan.edges);
    context_of = carver.take<uint16_t>(images * plan.levels * plan.atoms);
    queries = carver.take<Query<Value>>(images * 2 * plan.contexts);
    contexts = carver.take<Context<Value>>(images * plan.contexts);
    balance = carver.take<int>(images * plan.contexts);
    spreads = carver.take<double>(images * plan.contexts);
  }

  __device__ State of(const Plan& plan, int64_t image) const {
    State state = *this;
    state.extremes += image;
    state.edge_counts += image * 2;
    state.edges += image * 2 * plan.edges;
    state.lines += image * 4 * plan.edges;
    state.context_of += image * plan.levels * plan.atoms;
    state.queries += image * 2 * plan.contexts;
    state.contexts += image * plan.contexts;
    state.balance += image * plan.contexts;
    state.spreads += image * plan.contexts;
    return state;
  }

  __device__ int atoms() const { return (edge_counts[0] + 1) * (edge_counts[1] + 1); }
  __device__ int context(const Plan& plan, int level, int atom) const {
    return plan.first_context[level] + context_of[level * plan.atoms + atom];
  }
  __device__ EqualBins<Value> equal_bins(const Plan& plan, int map) const {
    return EqualBins<Value>(extremes->low_value(map), extremes->high_value(map), plan.bins());
  }
};

// The valid pixels of a slice, sorted by atom.
template <typename Value>
struct Slice {
  Value* prediction;  // (slice_pixels,)
  Value* target;      // (slice_pixels,)
  uint16_t* offset;   // (slice_pixels,) place in the image, less `first`
  int* run;           // (plan.atoms + 1,) where each atom starts
  int first, pixels;  // of the image, valid or not

  __device__ void locate(const Plan& plan, int slice) {
    const int64_t start = static_cast<int64_t>(slice) * plan.slice_pixels;
    first = static_cast<int>(start < plan.pixels ? start : plan.pixels);
    pixels = plan.pixels - first < plan.slice_pixels ? plan.pixels - first : plan.slice_pixels;
  }
};

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

// Adds up `measure` over every context's pixels of a slice into `sums` (contexts,). `measure.begin(context)`, then
// `measure(i, x, y, n, first)` for every pixel. `per_warp` (2, levels, warps) is scratch. A thread adds few values
// before they go on in double.
template <int kThreads, typename Value, typename Measure>
__device__ void sum_contexts(
    const Plan& plan, const State<Value>& state, const Slice<Value>& slice, Measure measure, Partial* sums,
    Partial* per_warp) {
  constexpr int kWarps = kThreads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int u = threadIdx.x; u < plan.contexts; u += kThreads) sums[u] = Partial();
  __syncthreads();
  const int atoms = state.atoms();
  for (int atom = 0, turn = 0; atom < atoms; ++atom) {
    const int begin = slice.run[atom], end = slice.run[atom + 1];
    if (begin == end) continue;
    // Two buffers in turn: one barrier per atom is enough.
    Partial* buffer = per_warp + (turn++ % 2) * plan.levels * kWarps;
    for (int level = 0; level < plan.levels; ++level) {
      Partial mine;
      if (begin + warp * kWarp < end) {
        measure.begin(state.context(plan, level, atom));
        Value x = 0, y = 0;
        for (int i = begin + threadIdx.x; i < end; i += kThreads) measure(i, x, y, mine.n, mine.first);
        mine.x = x;
        mine.y = y;
        mine = warp_sum(mine);
      }
      if (lane == 0) buffer[level * kWarps + warp] = mine;
    }
    __syncthreads();
    for (int level = warp; level < plan.levels; level += kWarps) {
      const Partial total = warp_sum(lane < kWarps ? buffer[level * kWarps + lane] : Partial());
      if (lane == 0) sums[state.context(plan, level, atom)].add(total);
    }
  }
  __syncthreads();
}

template <typename Value>
struct Deviations {
  const Plan& plan;
  const State<Value>& state;
  const Slice<Value>& slice;
  Value centers[2];

  __device__ void begin(int context) {
    centers[kPrediction] = value_of<Value>(state.queries[context].low);
    centers[kTarget] = value_of<Value>(state.queries[plan.contexts + context].low);
  }
  __device__ __forceinline__ void operator()(int i, Value& x, Value& y, int& n, unsigned& first) const {
    const Value deviation = slice.prediction[i] - centers[kPrediction];
    x += magnitude(deviation);
    y += magnitude(slice.target[i] - centers[kTarget]);
    n += sign_of(deviation);
    if (deviation == 0) first = min(first, static_cast<unsigned>(slice.first + slice.offset[i]));
  }
};

// N(prediction) - N(target); the same bits in every pass.
template <typename Value>
__device__ __forceinline__ Value difference(const Context<Value>& context, Value deviation, Value target) {
  return product(deviation, context.inverse_spread[kPrediction]) -
         product(target - context.center[kTarget], context.inverse_spread[kTarget]);
}

template <typename Value>
struct Signs {
  const State<Value>& state;
  const Slice<Value>& slice;
  Context<Value> context;

  __device__ void begin(int index) { context = state.contexts[index]; }
  __device__ __forceinline__ void operator()(int i, Value& x, Value& y, int& n, unsigned&) const {
    const Value deviation = slice.prediction[i] - context.center[kPrediction];
    const Value apart = difference(context, deviation, slice.target[i]);
    const int sign = sign_of(apart);
    x += sign * deviation;
    y += magnitude(apart);
    n += sign;
  }
};

// Center and spread of a context from the sums of the deviations.
template <typename Value>
__device__ void set_statistics(const Plan& plan, const State<Value>& state, int u, const Partial& sums) {
  Context<Value> context{};
  const double deviations[2] = {sums.x, sums.y};
#pragma unroll
  for (int map = 0; map < 2; ++map) {
    const Query<Value>& query = state.queries[map * plan.contexts + u];
    context.center[map] = value_of<Value>(query.low);
    if (query.count == 0) continue;
    const double spread = deviations[map] / query.count + plan.spread_eps;
    context.inverse_spread[map] = static_cast<Value>(1 / spread);
    if (map == kPrediction) state.spreads[u] = spread;
  }
  context.center_pixel = sums.first;
  state.contexts[u] = context;
  state.balance[u] = sums.n;
}

// What the loss of an image is divided by before it meets the others, and its gradient too.
__device__ __forceinline__ double image_divisor(const Plan& plan, unsigned count) {
  return plan.mean_per_image ? count : 1;
}

// Per context with n pixels, r = (p - c) / s, sigma_i = sign(r_i - N(t_i)) / divisor, A = sum sigma_i,
// Q = sum sigma_i (p_i - c), e_j = sign(p_j - c), and up to the scale that sum_images finds:
//   dL/dp_j = sigma_j / s - Q e_j / (s^2 n) + [j is the center pixel] (-A / s + Q sum_k e_k / (s^2 n))
// With slope = 1 / (divisor * s), q = the sign of Q, and rest = slope - |Q| / (s^2 n) > 0 this is
//   (sign_j - q e_j) slope + q e_j rest                                     for other pixels,
//   (sign_j + sum_k (q e_k - sign_k)) slope - q sum_k e_k rest              for the center pixel, whose e is 0.
// Where a context has few pixels, the maps nearly agree or the target hardly varies, |Q| is nearly n s / divisor and the
// multiples of slope are 0: what is left is small beside slope and must not be lost in rounding.
// Returns the context's share of the image's loss.
template <typename Value>
__device__ double set_coefficients(const State<Value>& state, int u, const Partial& sums, double divisor) {
  Context<Value>& context = state.contexts[u];
  const unsigned count = state.queries[u].count;
  if (count == 0) return 0;
  const double spread = state.spreads[u], slope = 1 / (divisor * spread);
  const int q = sums.x < 0 ? -1 : 1;
  const double rest = slope * (1 - q * sums.x / (spread * count));
  context.slope = static_cast<Value>(slope);
  context.rest = static_cast<Value>(q * rest);
  context.share = static_cast<Value>(-q * state.balance[u] * rest);
  state.balance[u] = q * state.balance[u] - sums.n;
  return sums.y / divisor;
}

// `gradient` (images, pixels) of the valid pixels of a slice.
template <int kThreads, typename Value>
__device__ void write_gradient(
    const Plan& plan, const State<Value>& state, const Slice<Value>& slice, int64_t image, Value* gradient) {
  constexpr int kBatch = kGradientBatch;
  gradient += image * plan.pixels + slice.first;
  const int atoms = state.atoms();
  for (int atom = 0; atom < atoms; ++atom) {
    const int end = slice.run[atom + 1];
    for (int base = slice.run[atom] + threadIdx.x; base < end; base += kBatch * kThreads) {
      Value predictions[kBatch], targets[kBatch], gradients[kBatch];
      unsigned offsets[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int i = min(base + k * kThreads, end - 1);
        predictions[k] = slice.prediction[i];
        targets[k] = slice.target[i];
        offsets[k] = slice.offset[i];
        gradients[k] = 0;
      }
      for (int level = 0; level < plan.levels; ++level) {
        const int u = state.context(plan, level, atom);
        const Context<Value> context = state.contexts[u];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const Value deviation = predictions[k] - context.center[kPrediction];
          const int sign = sign_of(difference(context, deviation, targets[k])), side = sign_of(deviation);
          int slopes = context.rest < 0 ? sign + side : sign - side;
          Value rest = side * context.rest;
          if (slice.first + offsets[k] == context.center_pixel) {
            slopes = sign + state.balance[u];
            rest = context.share;
          }
          gradients[k] += slopes * context.slope + rest;
        }
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (base + k * kThreads < end) gradient[offsets[k]] = gradients[k];
      }
    }
  }
}

extern __shared__ __align__(16) unsigned char shared_memory[];

// The loss of the batch from those of the images (images,), in a fixed order, and the scale that every gradient lacks:
// 1 / (levels * M), with M the valid pixels of the batch, or its images that have one.
template <int kThreads, typename Value>
__global__ void __launch_bounds__(kThreads)
sum_images(Plan plan, const ImageLoss* images, Value* loss, Value* scale) {
  double sums[2] = {0, 0};  // losses, M
  for (int64_t image = threadIdx.x; image < plan.images; image += kThreads) {
    const ImageLoss one = images[image];
    sums[0] += one.sum;
    sums[1] += plan.mean_per_image ? one.count > 0 : one.count;
  }
  block_reduce<kThreads>(sums, Sum<double>{});
  if (threadIdx.x != 0) return;
  const double divisor = plan.levels * (sums[1] > 0 ? sums[1] : 1);
  *loss = static_cast<Value>(sums[0] / divisor);
  *scale = static_cast<Value>(1 / divisor);
}

// A cluster: one image in the shared memory of its blocks.

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

// One kernel per pass, for maps and devices that clusters do not serve. One block per slice unless said otherwise.

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

// Host side.

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
