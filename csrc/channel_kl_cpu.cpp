// Channel-wise distillation on the CPU: loss and gradient, without storing a softmax.
//
// With T the temperature, n positions, s and t the maps, y_s = (s - peak_s) / T and likewise y_t, Z = sum e^y:
//   log phi = y - log Z,   loss / T^2 = (sum e^{y_t} (y_t - y_s)) / Z_t + log Z_s - log Z_t,
//   gradient = T (e^{y_s} / Z_s - e^{y_t} / Z_t) / maps.
// The three terms of the loss cancel to second order when the maps are alike, as does the gradient to first order, so
// everything after reading a value is in double; the exponential is only as exact as the maps deserve.
//
// A map is cut into chunks of fixed length, each with its own peak and sums, which are then put together in order. So a
// chunk is read from memory once for both, any number of maps keeps all threads busy, and the result does not depend on
// how many threads there are.
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

// What one chunk says; `product` = sum e^{y_t} (T y_t - T y_s). Sums are relative to the chunk's own peaks.
struct Sums {
  double student_peak = -std::numeric_limits<double>::infinity();
  double teacher_peak = -std::numeric_limits<double>::infinity();
  double student_sum = 0, teacher_sum = 0, product = 0;
  int64_t positions = 0;
  bool finite = true;
};

// A whole map: gradient = student_weight e^{y_s} - teacher_weight e^{y_t}.
struct Map {
  double student_peak, teacher_peak, student_weight, teacher_weight, divergence;
};

// 2^x for x <= 0; 0 below the normal numbers. x = n + f with |f| <= 1/2, 2^f = 1 + f q(f), q interpolated at Chebyshev
// nodes: relative error 1e-10 in its short form, 1e-17 before rounding in its long one.
template <bool exact>
inline double exp2_negative(double x) {
  // The exponent bits of 2^-1023 are zero, and so is the number that they make.
  const double bounded = x < -1023.0 ? -1023.0 : x;
  // Adding 1.5 * 2^52 leaves the nearest integer in the last bits.
  const double shifted = bounded + 0x1.8p52;
  const double f = bounded - (shifted - 0x1.8p52);
  double q;
  if constexpr (exact) {
    q = 4.4549605981865186e-10;
    q = q * f + 7.072585949269223e-09;
    q = q * f + 1.0178062445845774e-07;
    q = q * f + 1.321544258792169e-06;
    q = q * f + 1.525273382983612e-05;
    q = q * f + 0.0001540353044173605;
    q = q * f + 0.0013333558146416936;
    q = q * f + 0.009618129107606888;
    q = q * f + 0.0555041086648216;
    q = q * f + 0.24022650695910097;
    q = q * f + 0.6931471805599453;
  } else {
    q = 1.5297323760701075e-05;
    q = q * f + 0.0001546144469856913;
    q = q * f + 0.001333350238616277;
    q = q * f + 0.009618056678524637;
    q = q * f + 0.055504108839096185;
    q = q * f + 0.24022650922288757;
    q = q * f + 0.6931471805599453;
  }
  const uint64_t power = (std::bit_cast<uint64_t>(shifted) + 1023) << 52;
  return (1.0 + f * q) * std::bit_cast<double>(power);
}

// One map's part of a chunk, (count,), in the type of sums and padded to whole groups. -inf stands where a
// position is not valid or not there: it has no weight in any sum.
template <class Value>
class Values {
 public:
  static constexpr Value lowest = -std::numeric_limits<Value>::infinity();

  // from (count,), valid (count,) or null.
  template <class Element>
  Values(const Element* from, const uint8_t* valid, int64_t count) : padded_((count + kGroup - 1) / kGroup * kGroup) {
    if constexpr (std::is_same_v<Element, Value>) {
      if (!valid && count == padded_) {
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
    std::fill(buffer_ + count, buffer_ + padded_, lowest);
    at_ = buffer_;
  }
  Values(const Values&) = delete;

  Value operator[](int64_t i) const { return at_[i]; }
  int64_t padded() const { return padded_; }

  // The largest value and how many are finite.
  std::pair<double, int64_t> look() const {
    Value peaks[kGroup];
    int32_t finite[kGroup] = {};
    std::fill_n(peaks, kGroup, lowest);
    for (int64_t i = 0; i < padded_; i += kGroup) {
      for (int lane = 0; lane < kGroup; ++lane) {
        const Value value = at_[i + lane];
        peaks[lane] = peaks[lane] < value ? value : peaks[lane];
        finite[lane] += std::abs(value) <= std::numeric_limits<Value>::max() ? 1 : 0;
      }
    }
    return {fold_lanes(peaks, [](Value a, Value b) { return a < b ? b : a; }), sum_lanes(finite)};
  }

 private:
  alignas(64) Value buffer_[kChunk];
  const Value* at_;
  int64_t padded_;
};

// How far a value is below its peak; finite also for -inf, so that the difference of two is 0 instead of NaN.
inline double below(double value, double peak) {
  const double difference = value - peak;
  return difference < std::numeric_limits<double>::lowest() ? std::numeric_limits<double>::lowest() : difference;
}

template <class Value>
Sums sum_chunk(const Values<Value>& student, const Values<Value>& teacher, int64_t positions, double rate) {
  constexpr bool exact = std::is_same_v<Value, double>;
  const auto [student_peak, student_finite] = student.look();
  const auto [teacher_peak, teacher_finite] = teacher.look();
  Sums sums{.student_peak = student_peak, .teacher_peak = teacher_peak, .positions = positions};
  sums.finite = student_finite == positions && teacher_finite == positions;
  if (positions == 0 || !sums.finite) return sums;
  double student_sums[kGroup] = {}, teacher_sums[kGroup] = {}, products[kGroup] = {};
  for (int64_t i = 0; i < student.padded(); i += kGroup) {
    for (int lane = 0; lane < kGroup; ++lane) {
      const double s = below(student[i + lane], student_peak), t = below(teacher[i + lane], teacher_peak);
      const double exp_t = exp2_negative<exact>(t * rate);
      student_sums[lane] += exp2_negative<exact>(s * rate);
      teacher_sums[lane] += exp_t;
      products[lane] += exp_t * (t - s);
    }
  }
  sums.student_sum = sum_lanes(student_sums);
  sums.teacher_sum = sum_lanes(teacher_sums);
  sums.product = sum_lanes(products);
  return sums;
}

// The divergence of one map from its chunks, (count,); the weights are those of a gradient of sum(divergence) * T^2.
Map join(const Sums* chunks, int64_t count, double temperature, double rate) {
  Sums map;
  for (int64_t k = 0; k < count; ++k) {
    map.student_peak = std::max(map.student_peak, chunks[k].student_peak);
    map.teacher_peak = std::max(map.teacher_peak, chunks[k].teacher_peak);
    map.positions += chunks[k].positions;
    map.finite &= chunks[k].finite;
  }
  if (map.positions == 0) return {};
  if (!map.finite) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    return {nan, nan, nan, nan, nan};
  }
  for (int64_t k = 0; k < count; ++k) {
    const Sums& chunk = chunks[k];
    if (chunk.positions == 0) continue;
    const double student_lower = chunk.student_peak - map.student_peak;
    const double teacher_lower = chunk.teacher_peak - map.teacher_peak;
    const double factor = std::exp2(teacher_lower * rate);
    map.student_sum += std::exp2(student_lower * rate) * chunk.student_sum;
    map.teacher_sum += factor * chunk.teacher_sum;
    map.product += factor * (chunk.product + chunk.teacher_sum * (teacher_lower - student_lower));
  }
  const double divergence =
      map.product / (temperature * map.teacher_sum) + std::log(map.student_sum / map.teacher_sum);
  return {map.student_peak, map.teacher_peak, temperature / map.student_sum, temperature / map.teacher_sum,
          divergence};
}

// gradient (count,), valid (count,) or null.
template <class Value>
void write_gradient(Value* gradient, const Values<Value>& student, const Values<Value>& teacher, const uint8_t* valid,
                    int64_t count, double rate, const Map& map, double share) {
  constexpr bool exact = std::is_same_v<Value, double>;
  if (std::isnan(map.divergence)) {
    for (int64_t i = 0; i < count; ++i) {
      gradient[i] = !valid || valid[i] ? std::numeric_limits<Value>::quiet_NaN() : Value{0};
    }
    return;
  }
  const double student_peak = map.student_peak, teacher_peak = map.teacher_peak;
  const double student_weight = map.student_weight * share, teacher_weight = map.teacher_weight * share;
  for (int64_t i = 0; i < count; ++i) {
    const double exp_s = exp2_negative<exact>((student[i] - student_peak) * rate);
    const double exp_t = exp2_negative<exact>((teacher[i] - teacher_peak) * rate);
    gradient[i] = static_cast<Value>(student_weight * exp_s - teacher_weight * exp_t);
  }
}

// The loss. student, teacher (images, channels, size), valid (images, size) or null, gradient as student or null.
template <class Element>
double run(const Element* student, const Element* teacher, const uint8_t* valid, Accumulator<Element>* gradient,
           int64_t images, int64_t channels, int64_t size, double temperature) {
  using Value = Accumulator<Element>;
  const double rate = 1.4426950408889634 / temperature;
  const int64_t maps = images * channels, chunks = (size + kChunk - 1) / kChunk;
  const int64_t grain = std::max<int64_t>(1, kChunk / size);
  std::vector<Sums> sums(maps * chunks);
  const auto for_chunks = [&](const auto& f) {
    parallel_tasks(
        maps * chunks,
        [&](int64_t task) {
          const int64_t map = task / chunks, begin = task % chunks * kChunk, count = std::min(kChunk, size - begin);
          f(task, map * size + begin, valid ? valid + map / channels * size + begin : nullptr, count);
        },
        grain);
  };
  for_chunks([&](int64_t task, int64_t offset, const uint8_t* kept, int64_t count) {
    const Values<Value> s(student + offset, kept, count), t(teacher + offset, kept, count);
    int64_t positions = count;
    if (kept) positions = std::count_if(kept, kept + count, [](uint8_t byte) { return byte != 0; });
    sums[task] = sum_chunk(s, t, positions, rate);
  });

  std::vector<Map> joined(maps);
  parallel_tasks(
      maps, [&](int64_t map) { joined[map] = join(&sums[map * chunks], chunks, temperature, rate); },
      std::max<int64_t>(1, 1024 / chunks));
  int64_t counted = 0;
  double total = 0;
  for (int64_t map = 0; map < maps; ++map) {
    int64_t positions = 0;
    for (int64_t k = 0; k < chunks; ++k) positions += sums[map * chunks + k].positions;
    counted += positions > 0;
    total += joined[map].divergence;
  }
  const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, counted));
  if (gradient) {
    for_chunks([&](int64_t task, int64_t offset, const uint8_t* kept, int64_t count) {
      const Values<Value> s(student + offset, kept, count), t(teacher + offset, kept, count);
      write_gradient(gradient + offset, s, t, kept, count, rate, joined[task / chunks], share);
    });
  }
  return temperature * temperature * total * share;
}

std::tuple<Tensor, Tensor> channel_kl(Tensor student, Tensor teacher, std::optional<Tensor> valid, double temperature,
                                      bool need_gradient) {
  const int64_t images = student.size(0), channels = student.size(1), size = student.size(2);
  return dispatch("channel_kl", student.scalar_type(), [&]<class Element>() {
    using Value = Accumulator<Element>;
    const ScalarType dtype = accumulator_dtype<Element>;
    Tensor gradient = need_gradient ? make({images, channels, size}, dtype) : make({0}, dtype);
    if (student.numel() == 0) return std::make_tuple(make_scalar(0.0, dtype), gradient);
    const double loss = run(student.const_data_ptr<Element>(), teacher.const_data_ptr<Element>(), valid_data(valid),
                            need_gradient ? gradient.mutable_data_ptr<Value>() : nullptr, images, channels, size,
                            temperature);
    return std::make_tuple(make_scalar(loss, dtype), gradient);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CPU, m) { m.impl("channel_kl", TORCH_BOX(&channel_kl)); }

}  // namespace distilldepth
