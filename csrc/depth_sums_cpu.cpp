// Scoring on the CPU: which pixels count, the fit of prediction to truth, and all sums of errors that metrics are made
// of, for maps of one size.
//
// An image is cut into chunks of fixed length, and each is read twice: once for the fit and the extremes, and, when
// these are known, once for the errors. Both times the pixels that count are put side by side first, so that what
// follows needs no mask, costs nothing where the truth is sparse, and cannot be spoiled by what does not count. The
// parts of the chunks are put together in order, so the result does not depend on how many threads there are.
#include "cpu.h"

#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

namespace distilldepth {
namespace {

constexpr int64_t kChunk = 4096;
// Sums have this many lanes: enough that the compiler makes a vector loop of them instead of unrolling them one by one.
constexpr int kGroup = 64;
static_assert(kChunk % kGroup == 0);
constexpr float kMost = std::numeric_limits<float>::max(), kLeast = std::numeric_limits<float>::min();

// The sums of distilldepth.metrics.depth, in its order.
enum Sum {
  kCount, kAbsolute, kSquare, kRelative, kSquareRelative, kRelativeSquare, kInverseAbsolute, kInverseSquare,
  kLog, kLogAbsolute, kLogSquare, kBelow1, kBelow2, kBelow3, kSums
};
using Sums = std::array<double, kSums>;
constexpr float kDeltas[] = {1.25f, 1.5625f, 1.953125f};

// Lower clip of the aligned map: the number as it is, or made of the nearest or the farthest depth that counts.
enum Floor { kNumber, kOverNearest, kTimesFarthest, kOverFarthest };

// What is the same for all images, as distilldepth.ops.library describes it.
struct Rules {
  bool in_disparity, fit_positive;
  int64_t floor_kind;
  double floor;
  float low, high;
};

// What is left of maps (images, height, width) after the crop, as segments of a row no longer than a chunk, and which
// of them make a chunk.
struct Crop {
  int64_t pixels, width, begin, row_length, per_row, length, segments, per_chunk, chunks;

  Crop(int64_t height, int64_t width_, const std::vector<int64_t>& box) : pixels(height * width_), width(width_) {
    int64_t rows = box[1] - box[0];
    begin = box[0] * width + box[2];
    row_length = box[3] - box[2];
    if (row_length == width) {
      row_length *= rows;
      rows = 1;
    }
    length = std::max<int64_t>(1, std::min(row_length, kChunk));
    per_row = (row_length + length - 1) / length;
    segments = rows * per_row;
    per_chunk = kChunk / length;
    chunks = (segments + per_chunk - 1) / per_chunk;
  }
};

// An image and the depths, both included, between which its truth counts.
struct Image {
  const float *prediction, *truth;
  const uint8_t* valid;
  float near, far;
};

// The pixels of a chunk that count, side by side.
class Pixels {
 public:
  alignas(64) float prediction[kChunk + kGroup], truth[kChunk + kGroup];
  int64_t count = 0;

  Pixels(const Image& image, const Crop& crop, int64_t chunk) {
    const int64_t end = std::min(crop.segments, (chunk + 1) * crop.per_chunk);
    for (int64_t segment = chunk * crop.per_chunk; segment < end; ++segment) {
      const int64_t row = segment / crop.per_row, column = segment % crop.per_row * crop.length;
      const int64_t at = crop.begin + row * crop.width + column;
      append(image, at, std::min(crop.length, crop.row_length - column));
    }
  }

  void keep_positive() {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float p = prediction[i], g = truth[i];
      prediction[kept] = p;
      truth[kept] = g;
      kept += p > 0;
    }
    count = kept;
  }

  // Fills up to whole groups; returns the length then.
  int64_t pad(float p, float g) {
    const int64_t padded = (count + kGroup - 1) / kGroup * kGroup;
    std::fill(prediction + count, prediction + padded, p);
    std::fill(truth + count, truth + padded, g);
    return padded;
  }

 private:
  void append(const Image& image, int64_t at, int64_t length) {
    const float *p = image.prediction + at, *g = image.truth + at;
    const uint8_t* valid = image.valid + at;
    int64_t i = 0;
#ifdef __AVX512BW__
    const __m512 near = _mm512_set1_ps(image.near), far = _mm512_set1_ps(image.far);
    for (; i + 16 <= length; i += 16) {
      const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(valid + i)));
      const __m512 depth = _mm512_loadu_ps(g + i);
      __mmask16 kept = _mm512_test_epi32_mask(bytes, bytes);
      kept = _mm512_mask_cmp_ps_mask(kept, depth, near, _CMP_GE_OQ);
      kept = _mm512_mask_cmp_ps_mask(kept, depth, far, _CMP_LE_OQ);
      // Whole vectors are stored, over which the next one is written.
      _mm512_storeu_ps(truth + count, _mm512_maskz_compress_ps(kept, depth));
      _mm512_storeu_ps(prediction + count, _mm512_maskz_compress_ps(kept, _mm512_loadu_ps(p + i)));
      count += std::popcount(static_cast<uint32_t>(kept));
    }
#endif
    for (; i < length; ++i) {
      prediction[count] = p[i];
      truth[count] = g[i];
      count += (valid[i] != 0) & (g[i] >= image.near) & (g[i] <= image.far);
    }
  }
};

// What a chunk says before the fit: of the pixels that count, and, if the fit is wanted, of those that it uses their
// means and the sums of products of the differences from them. Sums are made about the first pixel: maps far from 0
// keep their digits, and a constant map gives exactly 0.
struct Part {
  int64_t count = 0, used = 0;
  float nearest = kMost, farthest = 0;
  bool finite = true, varies = false;
  double first = 0, x = 0, y = 0, xx = 0, xy = 0;

  // Puts another part behind this one.
  void join(const Part& next) {
    count += next.count;
    nearest = std::min(nearest, next.nearest);
    farthest = std::max(farthest, next.farthest);
    finite &= next.finite;
    if (next.used == 0) return;
    varies |= next.varies || (used > 0 && next.first != first);
    if (used == 0) first = next.first;
    const double total = static_cast<double>(used + next.used), share = static_cast<double>(next.used) / total;
    const double dx = next.x - x, dy = next.y - y, weight = static_cast<double>(used) * share;
    x += dx * share;
    y += dy * share;
    xx += next.xx + dx * dx * weight;
    xy += next.xy + dx * dy * weight;
    used += next.used;
  }
};

void look(const Pixels& pixels, int64_t padded, Part& part) {
  float nearest[kGroup], farthest[kGroup] = {};
  int32_t odd[kGroup] = {};
  std::fill_n(nearest, kGroup, kMost);
  for (int64_t i = 0; i < padded; i += kGroup) {
    for (int lane = 0; lane < kGroup; ++lane) {
      const float g = pixels.truth[i + lane];
      nearest[lane] = g < nearest[lane] ? g : nearest[lane];
      farthest[lane] = g > farthest[lane] ? g : farthest[lane];
      odd[lane] += std::abs(pixels.prediction[i + lane]) <= kMost ? 0 : 1;
    }
  }
  part.nearest = *std::min_element(nearest, nearest + kGroup);
  part.farthest = *std::max_element(farthest, farthest + kGroup);
  part.finite = sum_lanes(odd) == 0;
}

template <bool in_disparity>
void fit(const Pixels& pixels, int64_t padded, Part& part) {
  const double first_x = pixels.prediction[0], first_y = in_disparity ? 1.0 / pixels.truth[0] : pixels.truth[0];
  double sum_x[kGroup] = {}, sum_y[kGroup] = {}, sum_xx[kGroup] = {}, sum_xy[kGroup] = {};
  for (int64_t i = 0; i < padded; i += kGroup) {
    for (int lane = 0; lane < kGroup; ++lane) {
      const double g = pixels.truth[i + lane];
      const double x = pixels.prediction[i + lane] - first_x, y = (in_disparity ? 1 / g : g) - first_y;
      sum_x[lane] += x;
      sum_y[lane] += y;
      sum_xx[lane] += x * x;
      sum_xy[lane] += x * y;
    }
  }
  const double count = static_cast<double>(pixels.count);
  const double x = sum_lanes(sum_x) / count, y = sum_lanes(sum_y) / count, xx = sum_lanes(sum_xx);
  part.used = pixels.count;
  part.first = first_x;
  part.x = first_x + x;
  part.y = first_y + y;
  part.xx = xx - x * x * count;
  part.xy = sum_lanes(sum_xy) - x * y * count;
  part.varies = xx != 0;
}

Part look_at(const Image& image, const Crop& crop, int64_t chunk, const Rules& rules, bool wants_fit) {
  Pixels pixels(image, crop, chunk);
  Part part{.count = pixels.count};
  if (pixels.count == 0) return part;
  look(pixels, pixels.pad(pixels.prediction[0], pixels.truth[0]), part);
  if (!wants_fit) return part;
  if (rules.fit_positive) pixels.keep_positive();
  if (pixels.count == 0) return part;
  const int64_t padded = pixels.pad(pixels.prediction[0], pixels.truth[0]);
  rules.in_disparity ? fit<true>(pixels, padded, part) : fit<false>(pixels, padded, part);
  return part;
}

// How an image is aligned: a row of doubles in the order of distilldepth.ops.library.
struct Alignment {
  double scale, shift, floor, finite;
};
constexpr int64_t kAlignment = sizeof(Alignment) / sizeof(double);

// given (2,): scale and shift, or null.
Alignment align(const Part& image, const Rules& rules, const double* given) {
  Alignment result{0, 0, rules.floor, image.finite ? 1.0 : 0.0};
  if (rules.floor_kind == kOverNearest) result.floor = rules.floor / image.nearest;
  if (rules.floor_kind == kTimesFarthest) result.floor = rules.floor * image.farthest;
  if (rules.floor_kind == kOverFarthest) result.floor = rules.floor / image.farthest;
  if (given) {
    result.scale = given[0];
    result.shift = given[1];
  } else if (image.used == 0 || !image.finite) {
    result.scale = result.shift = std::numeric_limits<double>::quiet_NaN();
  } else {
    result.scale = image.varies ? image.xy / image.xx : 0;
    result.shift = image.y - result.scale * image.x;
  }
  return result;
}

// a * b > c for the exact product, b and c positive.
inline bool exceeds(float a, float b, float c) {
#ifdef FP_FAST_FMAF
  return std::fma(a, b, -c) > 0;
#else
  return static_cast<double>(a) * b > c;
#endif
}

// ln x for a normal x = 1 + rest, relative error below 1.5e-7. Next to 1 the rest has more digits than x.
inline float log_of(float x, float rest) {
  // x = 2^k m with m between sqrt(1/2) and sqrt(2).
  constexpr int32_t low = 0x3f3504f3;
  const int32_t bits = std::bit_cast<int32_t>(x) - low, k = bits >> 23;
  const float m = std::bit_cast<float>((bits & 0x007fffff) + low);
  const float f = k == 0 ? rest : m - 1;
  // ln(1 + f) = f - f^2 / 2 + f^3 q(f), q from the Cephes library.
  float q = 7.0376836292e-2f;
  q = q * f - 1.1514610310e-1f;
  q = q * f + 1.1676998740e-1f;
  q = q * f - 1.2420140846e-1f;
  q = q * f + 1.4249322787e-1f;
  q = q * f - 1.6668057665e-1f;
  q = q * f + 2.0000714765e-1f;
  q = q * f - 2.4999993993e-1f;
  q = q * f + 3.3333331174e-1f;
  const float square = f * f, power = static_cast<float>(k);
  // ln 2 in two parts, of which the product with the first is exact.
  return (f + ((q * f - 0.5f) * square + power * -2.12194440e-4f)) + power * 0.693359375f;
}

// Depth from the prediction of every pixel that counts, in place, as score._to_depth gives it.
template <bool in_disparity>
void to_depth(Pixels& pixels, const Alignment& alignment, const Rules& rules) {
  const double scale = alignment.scale, shift = alignment.shift, floor = alignment.floor;
  const float low = rules.low, high = rules.high;
  for (int64_t i = 0; i < pixels.count; ++i) {
    const double moved = scale * pixels.prediction[i] + shift;
    // NaN passes through all of these.
    const float aligned = static_cast<float>(moved < floor ? floor : moved);
    float depth = in_disparity ? 1 / aligned : aligned;
    depth = depth < low ? low : depth;
    pixels.prediction[i] = depth > high ? high : depth;
  }
}

// Adds what a chunk of depths says, padded with pairs that are equal; false if a ratio is no normal number.
bool add_errors(const Pixels& pixels, int64_t padded, Sums& sums) {
  constexpr int floats = kLogAbsolute - kAbsolute + 1;
  alignas(64) float lanes[floats][kGroup] = {};
  alignas(64) double logs[kGroup] = {}, log_squares[kGroup] = {};
  alignas(64) int32_t odd[kGroup] = {}, below[3][kGroup] = {};
  alignas(64) float log[kGroup], inverse[kGroup];
  for (int64_t i = 0; i < padded; i += kGroup) {
    const float *d = pixels.prediction + i, *g = pixels.truth + i;
    // |1/d - 1/g| = |d - g| / g / d: no digits are lost where d and g are close.
    for (int lane = 0; lane < kGroup; ++lane) {
      const float apart = d[lane] - g[lane], relative = apart / g[lane], ratio = d[lane] / g[lane];
      odd[lane] += (ratio >= kLeast) & (ratio <= kMost) ? 0 : 1;
      log[lane] = log_of(ratio, relative);
      inverse[lane] = std::abs(relative / d[lane]);
      lanes[kAbsolute - 1][lane] += std::abs(apart);
      lanes[kSquare - 1][lane] += apart * apart;
      lanes[kRelative - 1][lane] += std::abs(relative);
      lanes[kSquareRelative - 1][lane] += apart * relative;
      lanes[kRelativeSquare - 1][lane] += relative * relative;
    }
    for (int lane = 0; lane < kGroup; ++lane) {
      lanes[kInverseAbsolute - 1][lane] += inverse[lane];
      lanes[kInverseSquare - 1][lane] += inverse[lane] * inverse[lane];
      lanes[kLogAbsolute - 1][lane] += std::abs(log[lane]);
      const float larger = d[lane] > g[lane] ? d[lane] : g[lane], smaller = d[lane] > g[lane] ? g[lane] : d[lane];
      for (int k = 0; k < 3; ++k) below[k][lane] += exceeds(kDeltas[k], smaller, larger) ? 1 : 0;
    }
    // Of these two sums a small difference is wanted, so not even their last digit may be rounded to float32.
    for (int lane = 0; lane < kGroup; ++lane) {
      const double value = log[lane];
      logs[lane] += value;
      log_squares[lane] += value * value;
    }
  }
  if (sum_lanes(odd) > 0) return false;
  for (int k = 0; k < floats; ++k) {
    double total = 0;
    for (const float lane : lanes[k]) total += lane;
    sums[kAbsolute + k] += total;
  }
  sums[kLog] = sum_lanes(logs);
  sums[kLogSquare] = sum_lanes(log_squares);
  for (int k = 0; k < 3; ++k) sums[kBelow1 + k] = sum_lanes(below[k]) - static_cast<double>(padded - pixels.count);
  return true;
}

// The same pixel by pixel, for depth that is not finite or hardly.
void add_odd_errors(const Pixels& pixels, Sums& sums) {
  for (int64_t i = 0; i < pixels.count; ++i) {
    const double d = pixels.prediction[i], g = pixels.truth[i];
    const double apart = d - g, relative = apart / g, inverse = relative / d, log = std::log(d / g);
    const double values[] = {std::abs(apart),     apart * apart, std::abs(relative), apart * relative,
                             relative * relative, std::abs(inverse), inverse * inverse, log,
                             std::abs(log),       log * log};
    for (size_t k = 0; k < std::size(values); ++k) sums[kAbsolute + k] += values[k];
    for (int k = 0; k < 3; ++k) sums[kBelow1 + k] += d < kDeltas[k] * g && g < kDeltas[k] * d;
  }
}

Sums measure(const Image& image, const Crop& crop, int64_t chunk, const Rules& rules, const Alignment& alignment) {
  Sums sums{};
  Pixels pixels(image, crop, chunk);
  sums[kCount] = static_cast<double>(pixels.count);
  if (pixels.count == 0) return sums;
  rules.in_disparity ? to_depth<true>(pixels, alignment, rules) : to_depth<false>(pixels, alignment, rules);
  if (!add_errors(pixels, pixels.pad(1, 1), sums)) add_odd_errors(pixels, sums);
  return sums;
}

// prediction, truth, valid (images, height, width); bounds (images, 2), the depths between which the truth counts; box
// top, bottom, left, right; given (images, 2) or null. Returns sums (images, kSums) and how each image was aligned,
// (images, kAlignment).
std::tuple<Tensor, Tensor> depth_sums(Tensor prediction, Tensor truth, Tensor valid, Tensor bounds,
                                      std::vector<int64_t> box, std::optional<Tensor> given, bool in_disparity,
                                      bool fit_positive, int64_t floor_kind, double floor, double low, double high) {
  const int64_t images = prediction.size(0);
  const Crop crop(prediction.size(1), prediction.size(2), box);
  const Rules rules{in_disparity, fit_positive, floor_kind, floor, static_cast<float>(low), static_cast<float>(high)};
  Tensor sums = make({images, kSums}, ScalarType::Double), aligned = make({images, kAlignment}, ScalarType::Double);
  auto* rows = reinterpret_cast<Sums*>(sums.mutable_data_ptr<double>());
  auto* alignments = reinterpret_cast<Alignment*>(aligned.mutable_data_ptr<double>());
  const float *p = prediction.const_data_ptr<float>(), *g = truth.const_data_ptr<float>();
  const float* limits = bounds.const_data_ptr<float>();
  const double* fits = given ? given->const_data_ptr<double>() : nullptr;
  const auto* kept = reinterpret_cast<const uint8_t*>(valid.const_data_ptr<bool>());

  // for_each(f) calls f(chunk) for every chunk.
  const auto score = [&](int64_t index, const auto& for_each) {
    const int64_t at = index * crop.pixels;
    const Image image{p + at, g + at, kept + at, limits[2 * index], limits[2 * index + 1]};
    std::vector<Part> parts(crop.chunks);
    for_each([&](int64_t chunk) { parts[chunk] = look_at(image, crop, chunk, rules, !fits); });
    Part whole;
    for (const Part& part : parts) whole.join(part);
    alignments[index] = align(whole, rules, fits ? fits + 2 * index : nullptr);
    std::vector<Sums> errors(crop.chunks);
    for_each([&](int64_t chunk) { errors[chunk] = measure(image, crop, chunk, rules, alignments[index]); });
    rows[index].fill(0);
    for (const Sums& part : errors) {
      for (int k = 0; k < kSums; ++k) rows[index][k] += part[k];
    }
  };
  if (images >= int64_t{torch::stable::get_num_threads()}) {
    // An image by one thread stays in its cache from the first to the second time that it is read.
    parallel_tasks(images, [&](int64_t index) {
      score(index, [&](const auto& f) {
        for (int64_t chunk = 0; chunk < crop.chunks; ++chunk) f(chunk);
      });
    });
  } else {
    for (int64_t index = 0; index < images; ++index) {
      score(index, [&](const auto& f) { parallel_tasks(crop.chunks, f, 4); });
    }
  }
  return std::make_tuple(sums, aligned);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CPU, m) { m.impl("depth_sums", TORCH_BOX(&depth_sums)); }

}  // namespace distilldepth
