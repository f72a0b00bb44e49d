// distilldepth::crop_ssi on the CPU: a box of the prediction is resampled into a buffer that one thread reuses, compared
// with the target by normalise_cpu.h, and the gradient goes back through the transpose of the resampling.
//
// Sampled values are kept in double: in float32 two of them can become equal by rounding, and the gradient of a center
// would go to the wrong one.
#include "normalise_cpu.h"

#include <tuple>

namespace distilldepth {
namespace {

// Samples of one axis: positions first + (i + 0.5) * (last - first) / count - 0.5, clamped to [0, size - 1].
struct Axis {
  std::vector<int64_t> below, above;  // neighbours; the same where a sample falls on a pixel
  std::vector<double> share;          // of the neighbour above

  Axis(double first, double last, int64_t count, int64_t size) : below(count), above(count), share(count) {
    const double step = (last - first) / static_cast<double>(std::max<int64_t>(count, 1));
    for (int64_t i = 0; i < count; ++i) {
      const double position = first + (static_cast<double>(i) + 0.5) * step - 0.5;
      // Written so that NaN (boxes are looked at before, but not on every path) becomes 0 instead of an address.
      const double inside = position > 0 ? std::min(position, static_cast<double>(size - 1)) : 0;
      below[i] = static_cast<int64_t>(std::floor(inside));
      above[i] = static_cast<int64_t>(std::ceil(inside));
      share[i] = inside - std::floor(inside);
    }
  }
  int64_t first() const { return below.front(); }
  int64_t last() const { return above.back(); }
};

inline constexpr int64_t kRows = 16;  // rows per task

struct Crop {
  Axis rows, columns;
  int64_t height, width;  // of the crop

  // map: (H, map_width). crop: (height, width).
  template <class Element>
  void sample(const Element* map, int64_t map_width, double* crop, bool parallel) const {
    const int64_t first = columns.first(), extent = columns.last() - first + 1;
    run_tasks(parallel, (height + kRows - 1) / kRows, [&](int64_t task) {
      std::vector<double> line(extent);
      for (int64_t i = task * kRows; i < std::min((task + 1) * kRows, height); ++i) {
        const Element* top = map + rows.below[i] * map_width + first;
        const Element* bottom = map + rows.above[i] * map_width + first;
        const double share = rows.share[i];
        for (int64_t x = 0; x < extent; ++x) {
          line[x] = static_cast<double>(load(top[x])) * (1 - share) + static_cast<double>(load(bottom[x])) * share;
        }
        double* out = crop + i * width;
        for (int64_t j = 0; j < width; ++j) {
          out[j] = line[columns.below[j] - first] * (1 - columns.share[j]) +
                   line[columns.above[j] - first] * columns.share[j];
        }
      }
    });
  }

  // The transpose: adds what `slopes` (height, width), d loss / d crop, makes of every pixel of the map to `gradient`.
  template <class T>
  void sample_backward(const double* slopes, int64_t map_width, T* gradient, bool parallel) const {
    const int64_t first = rows.first(), extent = rows.last() - first + 1;
    run_tasks(parallel, (extent + kRows - 1) / kRows, [&](int64_t task) {
      std::vector<double> line(width);
      for (int64_t y = first + task * kRows; y < first + std::min((task + 1) * kRows, extent); ++y) {
        // The crop's rows that touch row y follow one another.
        const int64_t begin = std::lower_bound(rows.above.begin(), rows.above.end(), y) - rows.above.begin();
        const int64_t end = std::upper_bound(rows.below.begin(), rows.below.end(), y) - rows.below.begin();
        if (begin == end) continue;
        std::fill(line.begin(), line.end(), 0.0);
        for (int64_t i = begin; i < end; ++i) {
          const double below = rows.below[i] == y ? 1 - rows.share[i] : 0;
          const double weight = below + (rows.above[i] == y ? rows.share[i] : 0);
          const double* row = slopes + i * width;
          for (int64_t j = 0; j < width; ++j) line[j] += row[j] * weight;
        }
        T* out = gradient + y * map_width;
        for (int64_t j = 0; j < width; ++j) {
          out[columns.below[j]] += static_cast<T>(line[j] * (1 - columns.share[j]));
          out[columns.above[j]] += static_cast<T>(line[j] * columns.share[j]);
        }
      }
    });
  }
};

// prediction (B, H, W), targets (N, h, w) of one dtype; boxes (N, 4) float64; image_index (N,) int64; valid (N, h, w)
// bool. Returns the loss, its gradient (B, H, W) and the scale that this lacks: 1, for pixels are counted first.
std::tuple<Tensor, Tensor, Tensor> crop_ssi(
    Tensor prediction, Tensor targets, Tensor boxes, Tensor image_index, std::optional<Tensor> valid,
    std::vector<int64_t> segments, int64_t contexts, double spread_eps, bool need_gradient) {
  const int64_t images = prediction.size(0), map_height = prediction.size(1), map_width = prediction.size(2);
  const int64_t crops = targets.size(0), height = targets.size(1), width = targets.size(2);
  const int64_t map_pixels = map_height * map_width, pixels = height * width;
  const double* box = boxes.const_data_ptr<double>();
  const int64_t* image_of = image_index.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < crops; ++n) {
    STD_TORCH_CHECK(0 <= image_of[n] && image_of[n] < images, "crop_ssi: image_index must be from 0 to ", images - 1);
  }
  const NormaliseOptions options{std::move(segments), static_cast<Contexts>(contexts), spread_eps};
  return dispatch("crop_ssi", prediction.scalar_type(), [&]<class Element>() {
    using T = Accumulator<Element>;
    const ScalarType dtype = accumulator_dtype<Element>;
    Tensor gradient = need_gradient ? make({images, map_height, map_width}, dtype) : make({0}, dtype);
    const Element* maps = prediction.const_data_ptr<Element>();
    const Element* target = targets.const_data_ptr<Element>();
    const uint8_t* valids = valid_data(valid);
    T* gradients = need_gradient ? gradient.mutable_data_ptr<T>() : nullptr;
    if (gradients != nullptr) std::fill(gradients, gradients + images * map_pixels, T{0});
    const Tensor scale = make_scalar(1.0, dtype);
    if (pixels == 0 || map_pixels == 0) return std::make_tuple(make_scalar(0.0, dtype), gradient, scale);

    std::vector<int64_t> counts(crops, pixels);
    if (valids != nullptr) {
      parallel_tasks(crops, [&](int64_t n) {
        counts[n] = std::accumulate(valids + n * pixels, valids + (n + 1) * pixels, int64_t{0});
      });
    }
    const int64_t empty = std::count(counts.begin(), counts.end(), int64_t{0});
    const double used = static_cast<double>(std::max<int64_t>(crops - empty, 1));
    std::vector<std::vector<int64_t>> crops_of(images);
    for (int64_t n = 0; n < crops; ++n) {
      if (counts[n] > 0) crops_of[image_of[n]].push_back(n);
    }
    std::vector<double> losses(crops, 0);
    // All crops of an image in one thread, in order: they add to the same gradient.
    each_image<double>(options, images, [&](ImageNormaliser<double>& normaliser, int64_t image) {
      std::vector<double> sampled(crops_of[image].empty() ? 0 : pixels), slopes(gradients ? sampled.size() : 0);
      for (const int64_t n : crops_of[image]) {
        const double* edge = box + 4 * n;
        const Crop crop{
            Axis(edge[1], edge[3], height, map_height), Axis(edge[0], edge[2], width, map_width), height, width};
        crop.sample(maps + image * map_pixels, map_width, sampled.data(), normaliser.parallel());
        const double weight = 1 / (static_cast<double>(counts[n]) * used);
        losses[n] = weight * normaliser.run(
                                 sampled.data(), target + n * pixels, valids == nullptr ? nullptr : valids + n * pixels,
                                 height, width, weight, gradients ? slopes.data() : nullptr);
        if (gradients == nullptr) continue;
        crop.sample_backward(slopes.data(), map_width, gradients + image * map_pixels, normaliser.parallel());
      }
    });
    return std::make_tuple(make_scalar(std::accumulate(losses.begin(), losses.end(), 0.0), dtype), gradient, scale);
  });
}

}  // namespace
}  // namespace distilldepth

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CPU, m) { m.impl("crop_ssi", TORCH_BOX(&distilldepth::crop_ssi)); }
