// What the passes of normalise_cuda.cuh share: the shape of the work, keys of values, what is known of an image and of a
// slice of its pixels.
#pragma once

#include <cstring>

#include "cuda.cuh"

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

}  // namespace distilldepth::normalise
