// Channel-wise distillation on the CPU: loss and gradient, without storing a softmax.
//
// With T the temperature, s and t the maps, y_s = (s - peak_s) / T and likewise y_t, Z = sum e^y, phi = e^y / Z and
// u = log(phi_s / phi_t), over M maps:
//   loss = T^2 / M * sum phi_t (log phi_t - log phi_s),   gradient = T / M * (phi_s - phi_t).
// Both cancel when the maps are alike, the loss to second order. So the difference of two exponentials is never taken:
//   e^{y_s} - e^{y_t} = +-E (1 - e^{-|u|}) with E the larger of them
// and 1 - e^{-|u|} from a series without the 1. Rounding E then is like rounding the teacher's phi, which a
// loss that has its minimum there hardly notices.
//
// A map is cut into chunks of fixed length, each with its own peaks and sums, which are then put together in order and
// in double. So a chunk is read from memory once for both, any number of maps keeps all threads busy, and the result
// does not depend on how many threads there are.
#include "cpu.h"

#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

namespace distilldepth {
namespace {

constexpr int64_t kChunk = 4096;
// Sums have this many lanes: enough that the compiler makes a vector loop of them instead of unrolling them one by one.
constexpr int kGroup = 64;
static_assert(kChunk % kGroup == 0);
constexpr double kLog2E = 1.4426950408889634;

// What the backward needs of a map, a row of doubles in the order of distilldepth.ops.library: 1 / Z (NaN if a position
// is not finite, 0 if there is none), log(Z_s / Z_t), 1 / M.
struct Statistics {
  double student_peak, teacher_peak, student_weight, teacher_weight, log_ratio, share;
};
constexpr int64_t kStatistics = sizeof(Statistics) / sizeof(double);

// What one chunk says. Its sums are of e^{y_t}, e^{y_s + r}, e^{y_t} u and e^{y_s + r} - e^{y_t}, with y relative to the
// chunk's own peaks, u = y_s + r - y_t in powers of 2 and the shift r such that u is small where the maps are alike.
struct Sums {
  double student_peak = std::numeric_limits<double>::lowest();
  double teacher_peak = std::numeric_limits<double>::lowest();
  double shift = 0, student_sum = 0, teacher_sum = 0, product = 0, difference = 0;
  int64_t positions = 0;
  bool finite = true;
};

template <class Value>
struct Format;

template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23, bias = 127;
  // 2^f = 1 + f q(f) for |f| <= 1/2, q interpolated at Chebyshev nodes: relative error 1e-10.
  static constexpr float series[] = {1.5297323760701075e-05f, 0.0001546144469856913f, 0.001333350238616277f,
                                     0.009618056678524637f,   0.055504108839096185f,  0.24022650922288757f,
                                     0.6931471805599453f};
};

template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52, bias = 1023;
  // Relative error 1e-17 before rounding.
  static constexpr double series[] = {4.4549605981865186e-10, 7.072585949269223e-09, 1.0178062445845774e-07,
                                      1.321544258792169e-06,  1.525273382983612e-05, 0.0001540353044173605,
                                      0.0013333558146416936,  0.009618129107606888,  0.0555041086648216,
                                      0.24022650695910097,    0.6931471805599453};
};

// 2^x = power + rest with power = 2^n, |x - n| <= 1/2; both are 0 below the normal numbers. For x below the bias.
template <class Value>
struct Exp2 {
  Value power, rest;

  explicit Exp2(Value x) {
    using F = Format<Value>;
    // The exponent bits of 2^-bias are zero, and so is the number that they make. Also for NaN.
    const Value bounded = x > Value{-F::bias} ? x : Value{-F::bias};
    // Adding 1.5 * 2^mantissa leaves the nearest integer in the last bits.
    constexpr Value magic = Value{3} * static_cast<Value>(int64_t{1} << (F::mantissa - 1));
    const Value shifted = bounded + magic;
    const Value f = bounded - (shifted - magic);
    Value q = F::series[0];
    for (size_t k = 1; k < std::size(F::series); ++k) q = q * f + F::series[k];
    power = std::bit_cast<Value>((std::bit_cast<typename F::Bits>(shifted) + F::bias) << F::mantissa);
    rest = power * (f * q);
  }
};

// The exponentials 2^{y_s} and 2^{y_t} at one position, from the larger y and u = y_s - y_t: the larger one, 2^-|u| and
// 1 - 2^-|u|.
template <class Value>
struct Pair {
  Value larger, ratio, difference;

  Pair(Value y, Value u) {
    const Exp2<Value> top(y), below(-std::abs(u));
    larger = top.power + top.rest;
    ratio = below.power + below.rest;
    difference = (1 - below.power) - below.rest;
  }
};

// One map's part of a chunk, (count,), in the type of sums and padded to whole groups. -inf stands where a position is
// not valid or not there: it has no weight in any sum.
template <class Value>
class Values {
 public:
  static constexpr Value lowest = -std::numeric_limits<Value>::infinity();

  // from (count,), valid (count,) or null.
  template <class Element>
  Values(const Element* from, const uint8_t* valid, int64_t count) {
    const int64_t padded = (count + kGroup - 1) / kGroup * kGroup;
    if constexpr (std::is_same_v<Element, Value>) {
      if (!valid && count == padded) {
        at_ = from;
        return;
      }
    }
    if (valid) {
      for (int64_t i = 0; i < count; ++i) {
        const Value value = load(from[i]);
        buffer_[i] = valid[i] ? value : lowest;
      }
    } else {
      for (int64_t i = 0; i < count; ++i) buffer_[i] = load(from[i]);
    }
    std::fill(buffer_ + count, buffer_ + padded, lowest);
    at_ = buffer_;
  }
  Values(const Values&) = delete;

  Value operator[](int64_t i) const { return at_[i]; }

 private:
  alignas(64) Value buffer_[kChunk];
  const Value* at_;
};

// Peaks, shift, and whether all values are finite, of a chunk of padded length.
template <class Value>
void look(Sums& sums, const Values<Value>& student, const Values<Value>& teacher, int64_t padded, double temperature) {
  constexpr Value most = std::numeric_limits<Value>::max();
  Value student_peaks[kGroup], teacher_peaks[kGroup], apart[kGroup] = {};
  int32_t finite[kGroup] = {};
  std::fill_n(student_peaks, kGroup, -most);
  std::fill_n(teacher_peaks, kGroup, -most);
  for (int64_t i = 0; i < padded; i += kGroup) {
    for (int lane = 0; lane < kGroup; ++lane) {
      const Value s = student[i + lane], t = teacher[i + lane];
      student_peaks[lane] = student_peaks[lane] < s ? s : student_peaks[lane];
      teacher_peaks[lane] = teacher_peaks[lane] < t ? t : teacher_peaks[lane];
      const bool usable = (std::abs(s) <= most) & (std::abs(t) <= most);
      // Without a branch, which would keep the compiler from making a vector loop.
      using Bits = typename Format<Value>::Bits;
      apart[lane] += std::bit_cast<Value>(std::bit_cast<Bits>(s - t) & (Bits{0} - Bits{usable}));
      finite[lane] += usable ? 1 : 0;
    }
  }
  const auto larger = [](Value a, Value b) { return a < b ? b : a; };
  sums.student_peak = fold_lanes(student_peaks, larger);
  sums.teacher_peak = fold_lanes(teacher_peaks, larger);
  sums.finite = sum_lanes(finite) == sums.positions;
  // Around their mean difference the maps are alike, unless one of them towers in a few places.
  const double mean = sum_lanes(apart) / static_cast<double>(sums.positions);
  const double shift = (sums.student_peak - sums.teacher_peak - mean) / temperature;
  sums.shift = std::abs(shift) < 40 ? shift : 0;
}

template <class Value>
void add(Sums& sums, const Values<Value>& student, const Values<Value>& teacher, int64_t padded, double temperature) {
  using Bits = typename Format<Value>::Bits;
  // Far below all that counts, and finite, so that the difference of two and its product with 0 are.
  constexpr Value least = std::numeric_limits<Value>::lowest() / 2;
  const auto student_peak = static_cast<Value>(sums.student_peak), teacher_peak = static_cast<Value>(sums.teacher_peak);
  const auto rate = static_cast<Value>(kLog2E / temperature), shift = static_cast<Value>(sums.shift * kLog2E);
  Value student_sums[kGroup] = {}, teacher_sums[kGroup] = {}, products[kGroup] = {}, differences[kGroup] = {};
  Value student_y[kGroup], teacher_y[kGroup];
  for (int64_t i = 0; i < padded; i += kGroup) {
    for (int lane = 0; lane < kGroup; ++lane) {
      const Value s = (student[i + lane] - student_peak) * rate + shift;
      const Value t = (teacher[i + lane] - teacher_peak) * rate;
      student_y[lane] = s < least ? least : s;
      teacher_y[lane] = t < least ? least : t;
    }
    for (int lane = 0; lane < kGroup; ++lane) {
      const Value y_s = student_y[lane], y_t = teacher_y[lane], u = y_s - y_t;
      const Pair<Value> pair(y_s < y_t ? y_t : y_s, u);
      const Value smaller = pair.larger * pair.ratio;
      // Selected by sign bits: of branches the compiler would make no vector loop.
      const Bits chosen = Bits{0} - (std::bit_cast<Bits>(u) >> (8 * sizeof(Value) - 1));
      const Bits swapped = (std::bit_cast<Bits>(smaller) ^ std::bit_cast<Bits>(pair.larger)) & chosen;
      const Value exp_t = std::bit_cast<Value>(std::bit_cast<Bits>(smaller) ^ swapped);
      student_sums[lane] += std::bit_cast<Value>(std::bit_cast<Bits>(pair.larger) ^ swapped);
      teacher_sums[lane] += exp_t;
      products[lane] += exp_t * u;
      differences[lane] += std::copysign(pair.larger * pair.difference, u);
    }
  }
  sums.teacher_sum = sum_lanes(teacher_sums);
  sums.product = sum_lanes(products);
  sums.difference = sum_lanes(differences);
  // The more exact of the two where the maps are alike.
  sums.student_sum = std::abs(sums.difference) < sums.teacher_sum / 2 ? sums.teacher_sum + sums.difference
                                                                      : double{sum_lanes(student_sums)};
}

// student, teacher (count,), valid (count,) or null.
template <class Element>
Sums sum_chunk(const Element* student, const Element* teacher, const uint8_t* valid, int64_t count,
               double temperature) {
  using Value = Accumulator<Element>;
  const Values<Value> s(student, valid, count), t(teacher, valid, count);
  const int64_t padded = (count + kGroup - 1) / kGroup * kGroup;
  Sums sums{.positions = count};
  if (valid) sums.positions = std::count_if(valid, valid + count, [](uint8_t byte) { return byte != 0; });
  if (sums.positions == 0) return sums;
  look(sums, s, t, padded, temperature);
  if (!sums.finite) return sums;
  add(sums, s, t, padded, temperature);
  return sums;
}

// One map from its chunks, (count,): statistics without the share, and the divergence over T^2.
std::tuple<Statistics, double> join(const Sums* chunks, int64_t count, double temperature) {
  Sums map;
  for (int64_t k = 0; k < count; ++k) {
    if (chunks[k].positions == 0) continue;
    map.student_peak = std::max(map.student_peak, chunks[k].student_peak);
    map.teacher_peak = std::max(map.teacher_peak, chunks[k].teacher_peak);
    map.positions += chunks[k].positions;
    map.finite &= chunks[k].finite;
  }
  if (map.positions == 0) return {Statistics{}, 0.0};
  if (!map.finite) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    return {Statistics{nan, nan, nan, nan, nan, 0}, nan};
  }
  for (int64_t k = 0; k < count; ++k) {
    const Sums& chunk = chunks[k];
    if (chunk.positions == 0) continue;
    const double student_lower = (chunk.student_peak - map.student_peak) / temperature - chunk.shift;
    const double teacher_lower = (chunk.teacher_peak - map.teacher_peak) / temperature;
    const double factor = std::exp(teacher_lower);
    map.student_sum += std::exp(student_lower) * chunk.student_sum;
    map.teacher_sum += factor * chunk.teacher_sum;
    map.product += factor * (chunk.product / kLog2E + chunk.teacher_sum * (student_lower - teacher_lower));
  }
  const double log_ratio = std::log(map.student_sum / map.teacher_sum);
  return {{map.student_peak, map.teacher_peak, 1 / map.student_sum, 1 / map.teacher_sum, log_ratio, 0},
          log_ratio - map.product / map.teacher_sum};
}

// phi_s - phi_t times a weight, from the difference of the maps without a rounding error: with r = -log(Z_s / Z_t),
// e^{y_s + r} and e^{y_t} are phi Z_t, and y_s + r - y_t = (s - t - offset) / T. The offset is a sum of two numbers, to
// have all digits. Values are taken at a quarter, so that no difference of two is infinite.
template <class Value>
class Gradient {
 public:
  Gradient(const Statistics& map, double incoming, double temperature)
      : student_peak_(static_cast<Value>(map.student_peak * quarter)),
        teacher_peak_(static_cast<Value>(map.teacher_peak * quarter)),
        shift_(static_cast<Value>(-map.log_ratio * kLog2E)),
        rate_(static_cast<Value>(kLog2E / quarter / temperature)),
        weight_(static_cast<Value>(incoming * temperature * map.share * map.teacher_weight)) {
    const auto [apart, lost] = subtract(map.student_peak * quarter, map.teacher_peak * quarter);
    const double more = temperature * map.log_ratio * quarter;
    offset_ = static_cast<Value>(apart + more);
    offset_rest_ = static_cast<Value>(((apart - offset_) + more) + lost);
  }

  Value operator()(Value student, Value teacher) const {
    const Value s = student * quarter, t = teacher * quarter;
    const auto [apart, lost] = subtract(s, t);
    const Value u = ((apart - offset_) + (lost - offset_rest_)) * rate_;
    const Value y_s = (s - student_peak_) * rate_ + shift_, y_t = (t - teacher_peak_) * rate_;
    const Pair<Value> pair(u < 0 ? y_t : y_s, u);
    return std::copysign(pair.larger * pair.difference, u) * weight_;
  }

 private:
  static constexpr Value quarter = 0.25;

  // a - b without an error, as a sum of two numbers.
  template <class T>
  static std::pair<T, T> subtract(T a, T b) {
    const T apart = a - b, back = a - apart;
    return {apart, (a - (apart + back)) + (back - b)};
  }

  Value student_peak_, teacher_peak_, shift_, rate_, weight_, offset_, offset_rest_;
};

// gradient, student, teacher (count,), valid (count,) or null.
template <bool all, class Element>
void write_gradient(Element* gradient, const Element* student, const Element* teacher, const uint8_t* valid,
                    int64_t count, const Gradient<Accumulator<Element>>& map) {
  for (int64_t i = 0; i < count; ++i) {
    const Accumulator<Element> value = map(load(student[i]), load(teacher[i]));
    gradient[i] = store_as(all || valid[i] ? value : 0, Element{});
  }
}

// The chunks of maps (images, channels, size).
struct Chunks {
  int64_t channels, size, maps, per_map;

  explicit Chunks(const Tensor& maps_)
      : channels(maps_.size(1)),
        size(maps_.size(2)),
        maps(maps_.size(0) * channels),
        per_map((size + kChunk - 1) / kChunk) {}

  // f(chunk, map, where it begins in the maps, where in valid, its length), in parallel.
  template <class F>
  void for_each(const F& f) const {
    parallel_tasks(
        maps * per_map,
        [&](int64_t chunk) {
          const int64_t map = chunk / per_map, begin = chunk % per_map * kChunk;
          f(chunk, map, map * size + begin, map / channels * size + begin, std::min(kChunk, size - begin));
        },
        std::max<int64_t>(1, kChunk / size));
  }
};

// Fills the statistics, (maps,), and returns the loss. student, teacher (images, channels, size), valid (images, size)
// or null.
template <class Element>
double measure(const Element* student, const Element* teacher, const uint8_t* valid, const Chunks& chunks,
               double temperature, Statistics* statistics) {
  std::vector<Sums> sums(chunks.maps * chunks.per_map);
  chunks.for_each([&](int64_t chunk, int64_t, int64_t at, int64_t valid_at, int64_t count) {
    sums[chunk] = sum_chunk(student + at, teacher + at, valid ? valid + valid_at : nullptr, count, temperature);
  });
  std::vector<double> divergences(chunks.maps);
  parallel_tasks(
      chunks.maps,
      [&](int64_t map) {
        std::tie(statistics[map], divergences[map]) = join(&sums[map * chunks.per_map], chunks.per_map, temperature);
      },
      std::max<int64_t>(1, 1024 / chunks.per_map));
  int64_t counted = 0;
  double total = 0;
  for (int64_t map = 0; map < chunks.maps; ++map) {
    // NaN is not 0: a map that is not finite counts.
    counted += statistics[map].teacher_weight != 0;
    total += divergences[map];
  }
  const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, counted));
  for (int64_t map = 0; map < chunks.maps; ++map) statistics[map].share = share;
  return temperature * temperature * total * share;
}

std::tuple<Tensor, Tensor> channel_kl(Tensor student, Tensor teacher, std::optional<Tensor> valid, double temperature) {
  const Chunks chunks(student);
  Tensor statistics = make({chunks.maps, kStatistics}, ScalarType::Double);
  auto* rows = reinterpret_cast<Statistics*>(statistics.mutable_data_ptr<double>());
  return dispatch("channel_kl", student.scalar_type(), [&]<class Element>() {
    double loss = 0;
    if (student.numel() == 0) {
      std::fill_n(rows, chunks.maps, Statistics{});
    } else {
      loss = measure(student.const_data_ptr<Element>(), teacher.const_data_ptr<Element>(), valid_data(valid), chunks,
                     temperature, rows);
    }
    return std::make_tuple(make_scalar(loss, accumulator_dtype<Element>), statistics);
  });
}

Tensor channel_kl_backward(Tensor grad_loss, Tensor student, Tensor teacher, std::optional<Tensor> valid,
                           Tensor statistics, double temperature) {
  const Chunks chunks(student);
  Tensor gradient = make({student.size(0), student.size(1), student.size(2)}, student.scalar_type());
  if (student.numel() == 0) return gradient;
  const auto* rows = reinterpret_cast<const Statistics*>(statistics.const_data_ptr<double>());
  const uint8_t* kept = valid_data(valid);
  dispatch("channel_kl_backward", student.scalar_type(), [&]<class Element>() {
    using Value = Accumulator<Element>;
    const double incoming = *grad_loss.const_data_ptr<Value>();
    const auto* s = student.const_data_ptr<Element>();
    const auto* t = teacher.const_data_ptr<Element>();
    auto* to = gradient.mutable_data_ptr<Element>();
    chunks.for_each([&](int64_t, int64_t map, int64_t at, int64_t valid_at, int64_t count) {
      const Gradient<Value> write(rows[map], incoming, temperature);
      if (kept) {
        write_gradient<false>(to + at, s + at, t + at, kept + valid_at, count, write);
      } else {
        write_gradient<true>(to + at, s + at, t + at, nullptr, count, write);
      }
    });
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CPU, m) {
  m.impl("channel_kl", TORCH_BOX(&channel_kl));
  m.impl("channel_kl_backward", TORCH_BOX(&channel_kl_backward));
}

}  // namespace distilldepth
