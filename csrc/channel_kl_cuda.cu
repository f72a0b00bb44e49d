// channel_kl on CUDA: loss and gradient while a map passes through the L2 cache once.
//
// With M maps that have a valid position, d_i = x_i - max x and phi_i = exp(d_i / T) / Z, the loss is
// T^2 / M * sum phi_t (log phi_t - log phi_s) and its gradient T / M * (phi_s - phi_t). Both need Z first, so there are
// two passes over a map: `measure` (max and Z) and `finish` (loss and gradient).
//
// The loss is summed as phi_t h(x) with x = log(phi_t / phi_s) and h(x) = x - 1 + exp(-x), which has the same sum
// because phi_t and phi_s both sum to 1. Every term is positive, so nothing cancels when student and teacher agree, and
// an error c in the logarithms of Z changes the sum by c^2 only.
//
// A map of at most kShort positions stays in the registers of one block. Longer maps are cut into tiles, and one kernel
// takes the tiles of all maps in order: step k measures tile k and finishes tile k - lag. The lag is just long enough
// that tile k - lag's map has been measured completely, so the second pass finds its data in L2, reads and writes
// overlap everywhere, and hardly ever does a block wait. Steps are handed out by a counter: a step only waits for
// earlier steps, which running blocks hold, so there is no deadlock whatever else the device runs.
#include "cuda.cuh"

namespace distilldepth {
namespace {

constexpr int kItems = 8;  // positions per thread
constexpr int kShortestThreads = 64;
constexpr int kShortThreads = 256;
constexpr int kTileThreads = 128;
constexpr int64_t kShortest = int64_t{kShortestThreads} * kItems;  // positions of a map, at most
constexpr int64_t kShort = int64_t{kShortThreads} * kItems;
constexpr int64_t kTile = int64_t{kTileThreads} * kItems;
constexpr int kCountThreads = 1024;

// The register budgets follow from these.
template <typename Map>
constexpr int threads_per_processor() {
  return std::is_same_v<Map, double> ? 512 : 896;
}

template <typename Map>
constexpr int blocks_per_processor() {
  return threads_per_processor<Map>() / kTileThreads;
}

template <typename Acc>
constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();

template <typename Acc>
constexpr Acc kNan = std::numeric_limits<Acc>::quiet_NaN();

// Of a map or a part of it; [0] student, [1] teacher. `sum` is of exp((x - max) / T), NaN if a position is not finite.
template <typename Acc>
struct Softmax {
  Acc max[2];
  Acc sum[2];
};

// What the second pass needs of a map: maxima, 1 / Z, log(Z_s / Z_t).
template <typename Acc>
struct Weights {
  Acc max[2];
  Acc weight[2];
  Acc log_ratio;
};

// Zero before every call.
struct Counters {
  unsigned images;  // with a valid position
  unsigned step;    // the next to hand out
  unsigned maps;    // whose loss is written
};

// The same for one map that is cut into tiles.
struct MapCounters {
  unsigned measured;  // tiles
  unsigned ready;     // 1 once the weights are written
  unsigned finished;  // tiles whose loss is written
};

template <typename Map>
struct Problem {
  using Acc = acc_t<Map>;
  const Map* student;   // (B * C, P)
  const Map* teacher;   // (B * C, P)
  const bool* valid;    // (B, P) or null
  Acc* gradient;        // (B * C, P) or null
  Acc* loss;            // ()
  double* map_losses;   // (B * C,)
  double* tile_losses;  // (B * C, tiles_per_map)
  Softmax<Acc>* softmaxes;    // (B * C, tiles_per_map)
  Weights<Acc>* weights;      // (B * C,)
  MapCounters* map_counters;  // (B * C,)
  Counters* counters;
  int64_t positions;  // P
  unsigned maps;            // B * C
  unsigned channels;        // C
  unsigned tiles_per_map;
  unsigned lag;
  double temperature;
  Acc inverse_temperature;
  Acc scale;  // log2(e) / T
};

__device__ __forceinline__ float power_of_2(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_2(double x) { return exp2(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// Positions of one map in a thread's registers; neighbouring threads hold neighbouring packs of kVector.
template <typename Map, int kVector, int kBlock>
struct Tile {
  using Acc = acc_t<Map>;
  // kVector bools.
  using Flags = std::conditional_t<
      kVector == 1, uint8_t,
      std::conditional_t<kVector == 2, uint16_t, std::conditional_t<kVector == 4, uint32_t, uint64_t>>>;

  Acc x[2][kItems];       // -inf where not kept
  unsigned kept = 0;      // bit k: item k is a valid position
  bool infinite = false;  // a kept item is -inf; other values that are not finite turn the sum into NaN by themselves

  // Where a pack begins, from the start of the tile.
  static __device__ __forceinline__ int offset(int item) { return (item / kVector * kBlock + threadIdx.x) * kVector; }

  static __device__ __forceinline__ int size(const Problem<Map>& problem, int64_t start) {
    return static_cast<int>(min(problem.positions - start, int64_t{kBlock} * kItems));
  }

  __device__ __forceinline__ void load(const Problem<Map>& problem, unsigned map, int64_t start) {
    const int64_t first = map * problem.positions + start;
    const Map* student_tile = problem.student + first;
    const Map* teacher_tile = problem.teacher + first;
    const bool* valid_tile =
        problem.valid == nullptr ? nullptr : problem.valid + map / problem.channels * problem.positions + start;
    const int positions = size(problem, start);
#pragma unroll
    for (int k = 0; k < kItems; k += kVector) {
      const int at = offset(k);
      // A vector is never cut: P is a multiple of kVector.
      const bool inside = at < positions;
      Pack<Map, kVector> student{}, teacher{};
      Flags flags = 0;
      if (inside) {
        student = load_pack<kVector>(student_tile, at);
        teacher = load_pack<kVector>(teacher_tile, at);
        flags = valid_tile == nullptr ? static_cast<Flags>(0x0101010101010101)
                                      : *reinterpret_cast<const Flags*>(valid_tile + at);
      }
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const bool keep = flags >> 8 * v & 1;
        const Acc s = keep ? to_acc(student.x[v]) : -kInfinity<Acc>;
        const Acc t = keep ? to_acc(teacher.x[v]) : -kInfinity<Acc>;
        infinite |= keep && (s == -kInfinity<Acc> || t == -kInfinity<Acc>);
        kept |= unsigned{keep} << (k + v);
        x[0][k + v] = s;
        x[1][k + v] = t;
      }
    }
  }

  // Over the block; every thread gets it.
  __device__ __forceinline__ Softmax<Acc> softmax(Acc scale) const {
    Softmax<Acc> result;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      result.max[side] = x[side][0];
#pragma unroll
      for (int k = 1; k < kItems; ++k) result.max[side] = Max<Acc>{}(result.max[side], x[side][k]);
    }
    block_reduce<kBlock>(result.max, Max<Acc>{});
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const Acc max = result.max[side] == -kInfinity<Acc> ? Acc(0) : result.max[side];
      result.sum[side] = infinite ? kNan<Acc> : Acc(0);
#pragma unroll
      for (int k = 0; k < kItems; ++k) result.sum[side] += power_of_2((x[side][k] - max) * scale);
    }
    block_reduce<kBlock>(result.sum, Sum<Acc>{});
    return result;
  }

  // This thread's part of the loss over T^2 / M; writes the gradient.
  __device__ __forceinline__ Acc finish(const Problem<Map>& problem, const Weights<Acc>& weights, unsigned map,
                                        int64_t start, Acc gradient_scale) const;
};

// phi_t h(x) and phi_s - phi_t. Near x = 0 a series keeps all digits: phi_s - phi_t = phi_t (h(x) - x). Elsewhere
// phi_t exp(-x) = phi_s avoids the exponential.
template <typename Acc>
struct Terms {
  Acc divergence;
  Acc difference;
};

template <typename Acc>
__device__ __forceinline__ Terms<Acc> compare(Acc phi_s, Acc phi_t, Acc x) {
  constexpr int kTerms = std::is_same_v<Acc, double> ? 14 : 7;
  // h(x) / x^2 = 1/2! - x/3! + x^2/4! - ..., as 1/2 (1 - x/3 (1 - x/4 (...))) with the products multiplied out.
  constexpr auto coefficient = [](int n) {
    double c = n % 2 == 0 ? 1.0 : -1.0;
    for (int k = 2; k <= n; ++k) c /= k;
    return static_cast<Acc>(c);
  };
  Acc series = coefficient(kTerms + 1);
#pragma unroll
  for (int n = kTerms; n >= 2; --n) series = series * x + coefficient(n);
  const Acc h = x * x * series;
  const bool near = fabs(x) < Acc(0.5);
  // phi_t = 0 has no logarithm: x may be -inf there.
  const Acc direct = phi_t == 0 ? phi_s : phi_t * (x - 1) + phi_s;
  return {near ? phi_t * h : direct, near ? phi_t * (h - x) : phi_s - phi_t};
}

template <typename Map, int kVector, int kBlock>
__device__ __forceinline__ acc_t<Map> Tile<Map, kVector, kBlock>::finish(const Problem<Map>& problem,
                                                                         const Weights<Acc>& weights, unsigned map,
                                                                         int64_t start, Acc gradient_scale) const {
  const bool wanted = problem.gradient != nullptr;
  Acc* gradient_tile = wanted ? problem.gradient + map * problem.positions + start : nullptr;
  const int positions = size(problem, start);
  Acc loss = 0;
#pragma unroll
  for (int k = 0; k < kItems; k += kVector) {
    Pack<Acc, kVector> gradient;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const Acc d_s = x[0][k + v] - weights.max[0];
      const Acc d_t = x[1][k + v] - weights.max[1];
      const Acc phi_s = power_of_2(d_s * problem.scale) * weights.weight[0];
      const Acc phi_t = power_of_2(d_t * problem.scale) * weights.weight[1];
      const Acc log_ratio = (d_t - d_s) * problem.inverse_temperature + weights.log_ratio;
      const Terms<Acc> terms = compare(phi_s, phi_t, log_ratio);
      const bool keep = kept >> (k + v) & 1;
      loss += keep ? terms.divergence : Acc(0);
      gradient.x[v] = keep ? terms.difference * gradient_scale : Acc(0);
    }
    const int at = offset(k);
    if (wanted && at < positions) store_pack<kVector>(gradient_tile, at, gradient);
  }
  return loss;
}

template <typename Acc>
__device__ __forceinline__ Weights<Acc> to_weights(const Softmax<Acc>& softmax) {
  Weights<Acc> weights;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    weights.max[side] = softmax.max[side];
    weights.weight[side] = 1 / softmax.sum[side];
  }
  // Not a difference of logarithms: it would lose digits where student and teacher agree.
  weights.log_ratio = logarithm(softmax.sum[0] / softmax.sum[1]);
  return weights;
}

template <typename Map>
__device__ __forceinline__ double counted_maps(const Problem<Map>& problem) {
  if (problem.valid == nullptr) return static_cast<double>(problem.maps);
  const double maps = static_cast<double>(problem.counters->images) * static_cast<double>(problem.channels);
  return maps > 0 ? maps : 1;
}

// Whether this block is the last of `expected` to arrive, after thread 0 has written what the last one reads (with
// __ldcg, past the L1 cache). Call with all threads, and with a barrier between two calls.
__device__ __forceinline__ bool last_to_arrive(unsigned* counter, unsigned expected) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(counter, 1u) == expected - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// In the order of the parts, whichever block does it. Call with all threads.
template <int kBlock>
__device__ __forceinline__ double sum_parts(const double* parts, unsigned count) {
  double sum = 0;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < count; i += kBlock) sum += __ldcg(parts + i);
  return block_sum<kBlock>(sum);
}

// Writes a map's loss, and the whole loss after the last map. Call with all threads.
template <typename Map, int kBlock>
__device__ __forceinline__ void add_map(const Problem<Map>& problem, double loss, unsigned map) {
  if (threadIdx.x == 0) problem.map_losses[map] = loss;
  if (!last_to_arrive(&problem.counters->maps, problem.maps)) return;
  const double sum = sum_parts<kBlock>(problem.map_losses, problem.maps);
  if (threadIdx.x == 0) {
    *problem.loss = static_cast<acc_t<Map>>(problem.temperature * problem.temperature * sum / counted_maps(problem));
  }
}

// One block per map.
template <typename Map, int kVector, int kBlock>
__global__ void __launch_bounds__(kBlock, threads_per_processor<Map>() / kBlock)
    short_maps(const Problem<Map> problem) {
  using Acc = acc_t<Map>;
  const unsigned map = blockIdx.x;
  Tile<Map, kVector, kBlock> tile;
  tile.load(problem, map, 0);
  const Weights<Acc> weights = to_weights(tile.softmax(problem.scale));
  const Acc gradient_scale = static_cast<Acc>(problem.temperature / counted_maps(problem));
  const double loss = tile.finish(problem, weights, map, 0, gradient_scale);
  add_map<Map, kBlock>(problem, block_sum<kBlock>(loss), map);
}

// Adds up the softmaxes of a map's tiles, in their own order. Call with all threads.
template <typename Map>
__device__ __forceinline__ void combine_tiles(const Problem<Map>& problem, unsigned map) {
  using Acc = acc_t<Map>;
  const Softmax<Acc>* parts = problem.softmaxes + static_cast<int64_t>(map) * problem.tiles_per_map;
  Softmax<Acc> whole;
  double sum[2] = {0, 0};
  whole.max[0] = whole.max[1] = -kInfinity<Acc>;
  for (unsigned i = threadIdx.x; i < problem.tiles_per_map; i += kTileThreads) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      whole.max[side] = Max<Acc>{}(whole.max[side], __ldcg(&parts[i].max[side]));
    }
  }
  block_reduce<kTileThreads>(whole.max, Max<Acc>{});
  for (unsigned i = threadIdx.x; i < problem.tiles_per_map; i += kTileThreads) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const Acc max = __ldcg(&parts[i].max[side]);
      // A tile without a valid position has the sum 0; a tile of -inf has NaN and keeps it.
      const Acc factor = max == -kInfinity<Acc> ? Acc(1) : power_of_2((max - whole.max[side]) * problem.scale);
      sum[side] += static_cast<double>(__ldcg(&parts[i].sum[side]) * factor);
    }
  }
  block_reduce<kTileThreads>(sum, Sum<double>{});
  if (threadIdx.x == 0) {
    whole.sum[0] = static_cast<Acc>(sum[0]);
    whole.sum[1] = static_cast<Acc>(sum[1]);
    problem.weights[map] = to_weights(whole);
    __threadfence();
    atomicExch(&problem.map_counters[map].ready, 1u);
  }
}

// First pass of a tile; the block that completes a map releases its second pass. Call with all threads.
template <typename Map, int kVector>
__device__ __forceinline__ void measure_tile(const Problem<Map>& problem, unsigned number) {
  const unsigned map = number / problem.tiles_per_map;
  Tile<Map, kVector, kTileThreads> tile;
  tile.load(problem, map, (number - map * problem.tiles_per_map) * kTile);
  const auto softmax = tile.softmax(problem.scale);
  if (threadIdx.x == 0) problem.softmaxes[number] = softmax;
  if (last_to_arrive(&problem.map_counters[map].measured, problem.tiles_per_map)) combine_tiles(problem, map);
}

// Second pass of a tile. Call with all threads.
template <typename Map, int kVector>
__device__ __forceinline__ void finish_tile(const Problem<Map>& problem, unsigned number, acc_t<Map> gradient_scale) {
  using Acc = acc_t<Map>;
  __shared__ Weights<Acc> weights;
  const unsigned map = number / problem.tiles_per_map;
  const int64_t start = (number - map * problem.tiles_per_map) * kTile;
  Tile<Map, kVector, kTileThreads> tile;
  tile.load(problem, map, start);
  if (threadIdx.x == 0) {
    const volatile unsigned* ready = &problem.map_counters[map].ready;
    while (*ready == 0) __nanosleep(64);
    __threadfence();
    const Weights<Acc>* source = problem.weights + map;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      weights.max[side] = __ldcg(&source->max[side]);
      weights.weight[side] = __ldcg(&source->weight[side]);
    }
    weights.log_ratio = __ldcg(&source->log_ratio);
  }
  __syncthreads();
  const double loss = block_sum<kTileThreads>(double{tile.finish(problem, weights, map, start, gradient_scale)});
  if (threadIdx.x == 0) problem.tile_losses[number] = loss;
  if (!last_to_arrive(&problem.map_counters[map].finished, problem.tiles_per_map)) return;
  const double* parts = problem.tile_losses + static_cast<int64_t>(map) * problem.tiles_per_map;
  add_map<Map, kTileThreads>(problem, sum_parts<kTileThreads>(parts, problem.tiles_per_map), map);
}

template <typename Map, int kVector>
__global__ void __launch_bounds__(kTileThreads, blocks_per_processor<Map>()) long_maps(const Problem<Map> problem) {
  using Acc = acc_t<Map>;
  __shared__ unsigned handed_out;
  const unsigned tiles = problem.maps * problem.tiles_per_map;
  const unsigned steps = tiles + problem.lag;
  const Acc gradient_scale = static_cast<Acc>(problem.temperature / counted_maps(problem));
  unsigned next = 0;
  if (threadIdx.x == 0) next = atomicAdd(&problem.counters->step, 1u);
  for (;;) {
    if (threadIdx.x == 0) handed_out = next;
    __syncthreads();
    const unsigned step = handed_out;
    if (step >= steps) return;
    // Asked for early, so that the answer is here when the step is done.
    if (threadIdx.x == 0) next = atomicAdd(&problem.counters->step, 1u);
    if (step < tiles) measure_tile<Map, kVector>(problem, step);
    if (step >= problem.lag) finish_tile<Map, kVector>(problem, step - problem.lag, gradient_scale);
    __syncthreads();
  }
}

// One block per image; looks no further than the first valid position.
__global__ void __launch_bounds__(kCountThreads) count_images(const bool* valid /* (B, P) */, int64_t positions,
                                                         Counters* counters) {
  const bool* row = valid + blockIdx.x * positions;
  for (int64_t start = 0; start < positions; start += int64_t{kCountThreads} * 16) {
    bool found = false;
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      const int64_t at = start + k * kCountThreads + threadIdx.x;
      if (at < positions) found |= row[at];
    }
    if (__syncthreads_or(found)) {
      if (threadIdx.x == 0) atomicAdd(&counters->images, 1u);
      return;
    }
  }
}

template <typename Map, int kVector>
void launch(Problem<Map> problem, int64_t images, int processors, cudaStream_t stream) {
  if (problem.valid != nullptr) {
    count_images<<<static_cast<unsigned>(images), kCountThreads, 0, stream>>>(problem.valid, problem.positions,
                                                                             problem.counters);
    check_launch("channel_kl");
  }
  if (problem.positions <= kShort) {
    if (problem.positions <= kShortest) {
      short_maps<Map, kVector, kShortestThreads><<<problem.maps, kShortestThreads, 0, stream>>>(problem);
    } else {
      short_maps<Map, kVector, kShortThreads><<<problem.maps, kShortThreads, 0, stream>>>(problem);
    }
  } else {
    const unsigned tiles = problem.maps * problem.tiles_per_map;
    const unsigned blocks = std::min(tiles, static_cast<unsigned>(processors * blocks_per_processor<Map>()));
    // Up to `blocks` steps are under way at once; the last tile of a map must not be among them.
    problem.lag = std::min(tiles, problem.tiles_per_map + blocks);
    long_maps<Map, kVector><<<blocks, kTileThreads, 0, stream>>>(problem);
  }
  check_launch("channel_kl");
}

// Arrays one after the other in one allocation, each aligned for every type.
struct Layout {
  int64_t bytes = 0;

  template <typename T>
  int64_t add(int64_t count) {
    const int64_t offset = bytes;
    bytes += ceil_div(count * static_cast<int64_t>(sizeof(T)), 16) * 16;
    return offset;
  }
};

template <typename Map>
void run(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& valid, double temperature,
         Tensor& loss, Tensor& gradient) {
  using Acc = acc_t<Map>;
  constexpr int kVector = 16 / sizeof(Map);
  Problem<Map> problem{};
  problem.student = const_data<Map>(student);
  problem.teacher = const_data<Map>(teacher);
  problem.valid = const_data<bool>(valid);
  problem.gradient = gradient.numel() > 0 ? mutable_data<Acc>(gradient) : nullptr;
  problem.loss = mutable_data<Acc>(loss);
  problem.positions = student.size(2);
  const int64_t maps = student.size(0) * student.size(1);
  const int64_t parts = maps * ceil_div(problem.positions, kTile);
  STD_TORCH_CHECK(parts < int64_t{1} << 30, "channel_kl: the maps are too many or too large for one call");
  problem.channels = static_cast<unsigned>(student.size(1));
  problem.maps = static_cast<unsigned>(maps);
  problem.tiles_per_map = static_cast<unsigned>(parts / maps);
  problem.temperature = temperature;
  problem.inverse_temperature = static_cast<Acc>(1 / temperature);
  problem.scale = static_cast<Acc>(1.4426950408889634074 / temperature);

  const int64_t tiled_maps = problem.positions > kShort ? maps : 0;
  const int64_t tiles = problem.positions > kShort ? parts : 0;
  Layout layout;
  const int64_t counters = layout.add<Counters>(1);
  const int64_t map_counters = layout.add<MapCounters>(tiled_maps);
  const int64_t zeroed = layout.bytes;
  const int64_t map_losses = layout.add<double>(maps);
  const int64_t tile_losses = layout.add<double>(tiles);
  const int64_t softmaxes = layout.add<Softmax<Acc>>(tiles);
  const int64_t weights = layout.add<Weights<Acc>>(tiled_maps);
  const Tensor memory = new_empty(student, {layout.bytes}, ScalarType::Byte);
  char* base = mutable_data<char>(memory);
  problem.counters = reinterpret_cast<Counters*>(base + counters);
  problem.map_counters = reinterpret_cast<MapCounters*>(base + map_counters);
  problem.map_losses = reinterpret_cast<double*>(base + map_losses);
  problem.tile_losses = reinterpret_cast<double*>(base + tile_losses);
  problem.softmaxes = reinterpret_cast<Softmax<Acc>*>(base + softmaxes);
  problem.weights = reinterpret_cast<Weights<Acc>*>(base + weights);

  const cudaStream_t stream = current_stream(student);
  check(cudaMemsetAsync(base, 0, zeroed, stream), "channel_kl");
  const int processors = multiprocessors(student);
  const bool vectors = problem.positions % kVector == 0 && aligned(problem.student, kVector) &&
                       aligned(problem.teacher, kVector) &&
                       (problem.valid == nullptr || aligned(problem.valid, kVector));
  if (vectors) {
    launch<Map, kVector>(problem, student.size(0), processors, stream);
  } else {
    launch<Map, 1>(problem, student.size(0), processors, stream);
  }
}

std::tuple<Tensor, Tensor> channel_kl(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& valid,
                                      double temperature, bool need_gradient) {
  const DeviceGuard guard(student);
  const ScalarType acc = acc_dtype(student.scalar_type());
  Tensor gradient = need_gradient ? new_empty(student, {student.size(0), student.size(1), student.size(2)}, acc)
                                  : new_empty(student, {0}, acc);
  if (student.numel() == 0) return {new_zeros(student, {}, acc), gradient};
  Tensor loss = new_empty(student, {}, acc);
  dispatch(student.scalar_type(), "channel_kl", [&](auto tag) {
    run<typename decltype(tag)::type>(student, teacher, valid, temperature, loss, gradient);
  });
  return {loss, gradient};
}

}  // namespace
}  // namespace distilldepth

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CUDA, m) { m.impl("channel_kl", TORCH_BOX(&distilldepth::channel_kl)); }
