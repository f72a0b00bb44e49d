// channel_kl on CUDA: the forward reads both maps once and keeps a few numbers per map, the backward reads both once
// more and writes the gradient.
//
// With T the temperature, s and t the maps, y_s = (s - max s) / T and likewise y_t, Z = sum e^y, phi = e^y / Z and
// u = log(phi_s / phi_t), over M maps with a valid position:
//   loss = T^2 / M * sum phi_t (log phi_t - log phi_s),   gradient = T / M * (phi_s - phi_t).
// Both cancel when the maps are alike, the loss to second order. So the difference of two exponentials is never taken:
//   e^{y_s} - e^{y_t} = +-E (1 - e^{-|u|}) with E the larger of them
// and 1 - e^{-|u|} from a series without the 1. Rounding E then is like rounding the teacher's phi, which a loss that
// has its minimum there hardly notices.
//
// A tile of a map stays in the registers of one block. Tiles have peaks and sums of their own; the block that finishes
// the last tile of a map puts them together in double and in their order, and the one that finishes the last map adds
// up the loss. Nobody waits for anybody.
#include "cuda.cuh"

namespace distilldepth {
namespace {

constexpr int kItems = 8;  // positions per thread
constexpr int kShortThreads = 64;
constexpr int kThreads = 128;
constexpr int64_t kShort = int64_t{kShortThreads} * kItems;  // positions of a map, at most
constexpr double kLog2E = 1.4426950408889634074;

// The register budgets follow from this.
template <typename Map>
constexpr int threads_per_processor() {
  return std::is_same_v<Map, double> ? 512 : 1024;
}

template <typename Acc>
constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();

template <typename Acc>
constexpr Acc kNan = std::numeric_limits<Acc>::quiet_NaN();

template <typename Acc>
constexpr Acc kMost = std::numeric_limits<Acc>::max();

// What the backward needs of a map, a row of doubles in the order of distilldepth.ops.library: 1 / Z (NaN if a position
// is not finite, 0 if there is none), log(Z_s / Z_t), 1 / M.
struct Statistics {
  double max[2];  // student, teacher
  double weight[2];
  double log_ratio;
  double share;
};
constexpr int64_t kStatistics = sizeof(Statistics) / sizeof(double);

// What a tile says. Its sums are of e^{y_s + r}, e^{y_t}, e^{y_t} u and e^{y_s + r} - e^{y_t}, with y relative to the
// tile's own maxima, u = y_s + r - y_t in powers of 2 and the shift r such that u is small where the maps are alike.
template <typename Acc>
struct Part {
  Acc max[2];
  Acc shift;
  Acc student_sum, teacher_sum, product, difference;  // NaN if a position is not finite, 0 if there is none
};

template <typename Map>
struct Problem {
  using Acc = acc_t<Map>;
  const Map* student;      // (B * C, P)
  const Map* teacher;      // (B * C, P)
  const bool* valid;       // (B, P) or null
  Statistics* statistics;  // (B * C,)
  int64_t positions;       // P
  unsigned maps;           // B * C
  unsigned channels;       // C
  unsigned tiles_per_map;
  double temperature;
  Acc scale;  // log2(e) / T
};

// What else the forward needs; counters are zero before every call.
template <typename Acc>
struct Forward {
  Acc* loss;            // ()
  Part<Acc>* parts;     // (B * C, tiles_per_map)
  double* divergences;  // (B * C,), over T^2
  unsigned* measured;   // (B * C,) tiles
  unsigned* finished;   // () maps
};

__device__ __forceinline__ float power_of_2(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_2(double x) { return exp2(x); }

// 1 - 2^-a for a >= 0, given 2^-a.
__device__ __forceinline__ float one_minus(float a, float power) {
  // ln(2)^k / k! with alternating signs.
  float series = 1.5252734e-5f;
  series = series * -a + 1.5403530e-4f;
  series = series * -a + 1.3333558e-3f;
  series = series * -a + 9.6181291e-3f;
  series = series * -a + 5.5504109e-2f;
  series = series * -a + 2.4022651e-1f;
  series = series * -a + 6.9314718e-1f;
  return a < 0.5f ? series * a : 1 - power;
}
__device__ __forceinline__ double one_minus(double a, double) { return -expm1(-a * 0.69314718055994530942); }

// Positions of one map in a thread's registers; neighbouring threads hold neighbouring packs of kVector.
template <typename Map, int kVector, int kBlock>
struct Tile {
  using Acc = acc_t<Map>;
  // kVector bools.
  using Flags = std::conditional_t<
      kVector == 1, uint8_t,
      std::conditional_t<kVector == 2, uint16_t, std::conditional_t<kVector == 4, uint32_t, uint64_t>>>;

  Acc student[kItems], teacher[kItems];  // -inf where not kept
  unsigned kept = 0;                     // bit k: item k is a valid position

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
      Pack<Map, kVector> s{}, t{};
      Flags flags = 0;
      if (inside) {
        s = load_pack<kVector>(student_tile, at);
        t = load_pack<kVector>(teacher_tile, at);
        flags = valid_tile == nullptr ? static_cast<Flags>(0x0101010101010101)
                                      : *reinterpret_cast<const Flags*>(valid_tile + at);
      }
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const bool keep = flags >> 8 * v & 1;
        kept |= unsigned{keep} << (k + v);
        student[k + v] = keep ? to_acc(s.x[v]) : -kInfinity<Acc>;
        teacher[k + v] = keep ? to_acc(t.x[v]) : -kInfinity<Acc>;
      }
    }
  }

  // Over the block; every thread gets it. Call with all threads.
  __device__ __forceinline__ Part<Acc> measure(const Problem<Map>& problem) const {
    Acc max[2] = {-kInfinity<Acc>, -kInfinity<Acc>};
    Acc seen[2] = {0, 0};  // sum of s - t; positions, NaN if one is not finite
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      max[0] = Max<Acc>{}(max[0], student[k]);
      max[1] = Max<Acc>{}(max[1], teacher[k]);
      if (kept >> k & 1) {
        const bool finite = fabs(student[k]) <= kMost<Acc> && fabs(teacher[k]) <= kMost<Acc>;
        seen[0] += student[k] - teacher[k];
        seen[1] += finite ? Acc(1) : kNan<Acc>;
      }
    }
    block_reduce<kBlock>(max, Max<Acc>{});
    block_reduce<kBlock>(seen, Sum<Acc>{});
    Part<Acc> part{};
    if (seen[1] == 0) return part;
    part.max[0] = max[0];
    part.max[1] = max[1];
    // Around their mean difference the maps are alike, unless one of them towers in a few places.
    const Acc shift = ((max[0] - max[1]) - seen[0] / seen[1]) * problem.scale;
    part.shift = fabs(shift) < 60 ? shift : Acc(0);
    const Acc start = seen[1] - seen[1];  // 0 or NaN
    Acc sums[4] = {start, start, start, start};
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      // Finite, so that the difference of two and its product with 0 are.
      const Acc y_s = Max<Acc>{}((student[k] - max[0]) * problem.scale + part.shift, -kMost<Acc> / 2);
      const Acc y_t = Max<Acc>{}((teacher[k] - max[1]) * problem.scale, -kMost<Acc> / 2);
      const Acc u = y_s - y_t;
      const Acc larger = power_of_2(u < 0 ? y_t : y_s), ratio = power_of_2(-fabs(u));
      const Acc smaller = larger * ratio, exp_t = u < 0 ? larger : smaller;
      sums[0] += u < 0 ? smaller : larger;
      sums[1] += exp_t;
      sums[2] += exp_t * u;
      sums[3] += copysign(larger * one_minus(fabs(u), ratio), u);
    }
    block_reduce<kBlock>(sums, Sum<Acc>{});
    part.teacher_sum = sums[1];
    part.product = sums[2];
    part.difference = sums[3];
    // The more exact of the two where the maps are alike.
    part.student_sum = fabs(sums[3]) < sums[1] / 2 ? sums[1] + sums[3] : sums[0];
    return part;
  }
};

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

// Statistics of a map, without the share, and its divergence from its parts, in their order. Call with all threads.
template <int kBlock, typename Map>
__device__ __forceinline__ void join(const Problem<Map>& problem, const Forward<acc_t<Map>>& forward, unsigned map) {
  using Acc = acc_t<Map>;
  const Part<Acc>* parts = forward.parts + static_cast<int64_t>(map) * problem.tiles_per_map;
  double max[2] = {-kInfinity<double>, -kInfinity<double>};
  for (unsigned i = threadIdx.x; i < problem.tiles_per_map; i += kBlock) {
    // A sum of NaN counts.
    if (__ldcg(&parts[i].teacher_sum) == 0) continue;
    max[0] = Max<double>{}(max[0], __ldcg(&parts[i].max[0]));
    max[1] = Max<double>{}(max[1], __ldcg(&parts[i].max[1]));
  }
  block_reduce<kBlock>(max, Max<double>{});
  double sums[3] = {0, 0, 0};  // Z_s, Z_t, sum e^{y_t} (y_s - y_t)
  for (unsigned i = threadIdx.x; i < problem.tiles_per_map; i += kBlock) {
    const double teacher_sum = __ldcg(&parts[i].teacher_sum);
    if (teacher_sum == 0) continue;
    const double student_lower =
        (__ldcg(&parts[i].max[0]) - max[0]) / problem.temperature - __ldcg(&parts[i].shift) / kLog2E;
    const double teacher_lower = (__ldcg(&parts[i].max[1]) - max[1]) / problem.temperature;
    const double factor = exp(teacher_lower);
    sums[0] += exp(student_lower) * __ldcg(&parts[i].student_sum);
    sums[1] += factor * teacher_sum;
    sums[2] += factor * (__ldcg(&parts[i].product) / kLog2E + teacher_sum * (student_lower - teacher_lower));
  }
  block_reduce<kBlock>(sums, Sum<double>{});
  if (threadIdx.x != 0) return;
  if (sums[1] == 0) {
    problem.statistics[map] = {};
    forward.divergences[map] = 0;
    return;
  }
  const double log_ratio = log(sums[0] / sums[1]);
  problem.statistics[map] = {{max[0], max[1]}, {1 / sums[0], 1 / sums[1]}, log_ratio, 0};
  forward.divergences[map] = log_ratio - sums[2] / sums[1];
}

// The loss from all maps, and their share. Call with all threads.
template <int kBlock, typename Map>
__device__ __forceinline__ void finish(const Problem<Map>& problem, const Forward<acc_t<Map>>& forward) {
  double sums[2] = {0, 0};  // divergences, maps that count
  for (unsigned i = threadIdx.x; i < problem.maps; i += kBlock) {
    sums[0] += __ldcg(forward.divergences + i);
    // NaN is not 0: a map that is not finite counts.
    sums[1] += __ldcg(&problem.statistics[i].weight[1]) == 0 ? 0 : 1;
  }
  block_reduce<kBlock>(sums, Sum<double>{});
  const double share = sums[1] > 0 ? 1 / sums[1] : 1;
  for (unsigned i = threadIdx.x; i < problem.maps; i += kBlock) problem.statistics[i].share = share;
  if (threadIdx.x == 0) {
    *forward.loss = static_cast<acc_t<Map>>(problem.temperature * problem.temperature * sums[0] * share);
  }
}

// One block per tile.
template <typename Map, int kVector, int kBlock>
__global__ void __launch_bounds__(kBlock, threads_per_processor<Map>() / kBlock)
    measure(const Problem<Map> problem, const Forward<acc_t<Map>> forward) {
  const unsigned map = blockIdx.x / problem.tiles_per_map;
  Tile<Map, kVector, kBlock> tile;
  tile.load(problem, map, int64_t{blockIdx.x - map * problem.tiles_per_map} * kBlock * kItems);
  const auto part = tile.measure(problem);
  if (threadIdx.x == 0) forward.parts[blockIdx.x] = part;
  if (!last_to_arrive(forward.measured + map, problem.tiles_per_map)) return;
  join<kBlock>(problem, forward, map);
  if (last_to_arrive(forward.finished, problem.maps)) finish<kBlock>(problem, forward);
}

// One block per tile. e^{y_s + r} and e^{y_t} are phi Z_t, with r = -log(Z_s / Z_t).
template <typename Map, int kVector, int kBlock>
__global__ void __launch_bounds__(kBlock, threads_per_processor<Map>() / kBlock)
    write_gradient(const Problem<Map> problem, const acc_t<Map>* grad_loss /* () */, Map* gradient /* (B * C, P) */) {
  using Acc = acc_t<Map>;
  // Of the map; y_s + r - y_t = (s - t - offset) / T, with the offset as a sum of two numbers. Values are taken at a
  // quarter, so that no difference of two is infinite.
  struct Constants {
    Acc max[2], shift, offset, offset_rest, weight;
  };
  constexpr Acc kQuarter = 0.25;
  __shared__ Constants shared;
  const unsigned map = blockIdx.x / problem.tiles_per_map;
  const int64_t start = int64_t{blockIdx.x - map * problem.tiles_per_map} * kBlock * kItems;
  Tile<Map, kVector, kBlock> tile;
  tile.load(problem, map, start);
  if (threadIdx.x == 0) {
    const Statistics row = problem.statistics[map];
    const double student_max = row.max[0] * kQuarter, teacher_max = row.max[1] * kQuarter;
    const double peaks = student_max - teacher_max, upper = problem.temperature * row.log_ratio * kQuarter;
    shared.max[0] = static_cast<Acc>(student_max);
    shared.max[1] = static_cast<Acc>(teacher_max);
    shared.shift = static_cast<Acc>(-row.log_ratio * kLog2E);
    shared.offset = static_cast<Acc>(peaks + upper);
    shared.offset_rest = static_cast<Acc>((peaks - shared.offset) + upper);
    shared.weight =
        static_cast<Acc>(static_cast<double>(*grad_loss) * problem.temperature * row.share * row.weight[1]);
  }
  __syncthreads();
  const Constants constants = shared;
  const Acc scale = problem.scale / kQuarter;
  Map* gradient_tile = gradient + map * problem.positions + start;
  const int positions = tile.size(problem, start);
#pragma unroll
  for (int k = 0; k < kItems; k += kVector) {
    Pack<Map, kVector> pack;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const Acc s = tile.student[k + v] * kQuarter, t = tile.teacher[k + v] * kQuarter;
      // s - t = apart + lost exactly.
      const Acc apart = s - t, back = s - apart, lost = (s - (apart + back)) + (back - t);
      const Acc u = ((apart - constants.offset) + (lost - constants.offset_rest)) * scale;
      const Acc y_s = (s - constants.max[0]) * scale + constants.shift;
      const Acc y_t = (t - constants.max[1]) * scale;
      const Acc size = fabs(u), larger = power_of_2(u < 0 ? y_t : y_s);
      const Acc value = copysign(larger * one_minus(size, power_of_2(-size)), u) * constants.weight;
      pack.x[v] = from_acc<Map>(tile.kept >> (k + v) & 1 ? value : Acc(0));
    }
    const int at = tile.offset(k);
    if (at < positions) store_pack<kVector>(gradient_tile, at, pack);
  }
}

// launch(block, vector) with the constants that fit: threads per block, and elements per load.
template <typename Map, typename Launch>
void choose(const Problem<Map>& problem, const Map* gradient, const Launch& launch) {
  constexpr int kVector = 16 / sizeof(Map);
  const bool vectors = problem.positions % kVector == 0 && aligned(problem.student, kVector) &&
                       aligned(problem.teacher, kVector) && aligned(gradient, kVector) &&
                       (problem.valid == nullptr || aligned(problem.valid, kVector));
  const auto with_block = [&](auto block) {
    if (vectors) {
      launch(block, std::integral_constant<int, kVector>{});
    } else {
      launch(block, std::integral_constant<int, 1>{});
    }
  };
  if (problem.positions <= kShort) {
    with_block(std::integral_constant<int, kShortThreads>{});
  } else {
    with_block(std::integral_constant<int, kThreads>{});
  }
  check_launch("channel_kl");
}

template <typename Map>
Problem<Map> describe(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& valid,
                      const Tensor& statistics, double temperature) {
  Problem<Map> problem{};
  problem.student = const_data<Map>(student);
  problem.teacher = const_data<Map>(teacher);
  problem.valid = const_data<bool>(valid);
  problem.statistics = reinterpret_cast<Statistics*>(mutable_data<double>(statistics));
  problem.positions = student.size(2);
  const int64_t maps = student.size(0) * student.size(1);
  const int64_t tile = (problem.positions <= kShort ? kShortThreads : kThreads) * kItems;
  const int64_t parts = maps * ceil_div(problem.positions, tile);
  STD_TORCH_CHECK(parts < int64_t{1} << 30, "channel_kl: the maps are too many or too large for one call");
  problem.channels = static_cast<unsigned>(student.size(1));
  problem.maps = static_cast<unsigned>(maps);
  problem.tiles_per_map = static_cast<unsigned>(parts / maps);
  problem.temperature = temperature;
  problem.scale = static_cast<acc_t<Map>>(kLog2E / temperature);
  return problem;
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
void run_forward(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& valid, double temperature,
                 Tensor& loss, Tensor& statistics) {
  using Acc = acc_t<Map>;
  const auto problem = describe<Map>(student, teacher, valid, statistics, temperature);
  const unsigned tiles = problem.maps * problem.tiles_per_map;
  Layout layout;
  const int64_t finished = layout.add<unsigned>(1);
  const int64_t measured = layout.add<unsigned>(problem.maps);
  const int64_t zeroed = layout.bytes;
  const int64_t divergences = layout.add<double>(problem.maps);
  const int64_t parts = layout.add<Part<Acc>>(tiles);
  const Tensor memory = new_empty(student, {layout.bytes}, ScalarType::Byte);
  char* base = mutable_data<char>(memory);
  Forward<Acc> forward{};
  forward.loss = mutable_data<Acc>(loss);
  forward.parts = reinterpret_cast<Part<Acc>*>(base + parts);
  forward.divergences = reinterpret_cast<double*>(base + divergences);
  forward.measured = reinterpret_cast<unsigned*>(base + measured);
  forward.finished = reinterpret_cast<unsigned*>(base + finished);

  const cudaStream_t stream = current_stream(student);
  check(cudaMemsetAsync(base, 0, zeroed, stream), "channel_kl");
  choose<Map>(problem, nullptr, [&](auto block, auto vector) {
    measure<Map, vector(), block()><<<tiles, block(), 0, stream>>>(problem, forward);
  });
}

template <typename Map>
void run_backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                  const std::optional<Tensor>& valid, const Tensor& statistics, double temperature, Tensor& gradient) {
  const auto problem = describe<Map>(student, teacher, valid, statistics, temperature);
  const unsigned tiles = problem.maps * problem.tiles_per_map;
  const auto* incoming = const_data<acc_t<Map>>(grad_loss);
  Map* to = mutable_data<Map>(gradient);
  const cudaStream_t stream = current_stream(student);
  choose<Map>(problem, to, [&](auto block, auto vector) {
    write_gradient<Map, vector(), block()><<<tiles, block(), 0, stream>>>(problem, incoming, to);
  });
}

std::tuple<Tensor, Tensor> channel_kl(const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& valid,
                                      double temperature) {
  const DeviceGuard guard(student);
  const ScalarType acc = acc_dtype(student.scalar_type());
  const int64_t maps = student.size(0) * student.size(1);
  if (student.numel() == 0) {
    return {new_zeros(student, {}, acc), new_zeros(student, {maps, kStatistics}, ScalarType::Double)};
  }
  Tensor loss = new_empty(student, {}, acc);
  Tensor statistics = new_empty(student, {maps, kStatistics}, ScalarType::Double);
  dispatch(student.scalar_type(), "channel_kl", [&](auto tag) {
    run_forward<typename decltype(tag)::type>(student, teacher, valid, temperature, loss, statistics);
  });
  return {loss, statistics};
}

Tensor channel_kl_backward(const Tensor& grad_loss, const Tensor& student, const Tensor& teacher,
                           const std::optional<Tensor>& valid, const Tensor& statistics, double temperature) {
  const DeviceGuard guard(student);
  Tensor gradient =
      new_empty(student, {student.size(0), student.size(1), student.size(2)}, student.scalar_type());
  if (student.numel() == 0) return gradient;
  dispatch(student.scalar_type(), "channel_kl_backward", [&](auto tag) {
    run_backward<typename decltype(tag)::type>(grad_loss, student, teacher, valid, statistics, temperature, gradient);
  });
  return gradient;
}

}  // namespace
}  // namespace distilldepth

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CUDA, m) {
  m.impl("channel_kl", TORCH_BOX(&distilldepth::channel_kl));
  m.impl("channel_kl_backward", TORCH_BOX(&distilldepth::channel_kl_backward));
}
