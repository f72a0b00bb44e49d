// distilldepth::hybrid_norm on the CPU; see normalise_cpu.h for how.
#include "normalise_cpu.h"

#include <tuple>

namespace distilldepth {
namespace {

// prediction, target (B, H, W) of one dtype; valid (B, H, W) bool. Returns the loss, its gradient (B, H, W) and the
// scale that this lacks: 1, for pixels are counted first.
std::tuple<Tensor, Tensor, Tensor> hybrid_norm(
    Tensor prediction, Tensor target, std::optional<Tensor> valid, std::vector<int64_t> segments, int64_t contexts,
    double spread_eps, bool need_gradient) {
  const int64_t images = prediction.size(0), height = prediction.size(1), width = prediction.size(2);
  const int64_t pixels = height * width;
  const NormaliseOptions options{std::move(segments), static_cast<Contexts>(contexts), spread_eps};
  return dispatch("hybrid_norm", prediction.scalar_type(), [&]<class Element>() {
    using T = Accumulator<Element>;
    const ScalarType dtype = accumulator_dtype<Element>;
    Tensor gradient = need_gradient ? make({images, height, width}, dtype) : make({0}, dtype);
    const Element* predictions = prediction.const_data_ptr<Element>();
    const Element* targets = target.const_data_ptr<Element>();
    const uint8_t* valids = valid_data(valid);
    T* gradients = need_gradient ? gradient.mutable_data_ptr<T>() : nullptr;

    std::vector<int64_t> counts(images, pixels);
    if (valids != nullptr) {
      parallel_tasks(images, [&](int64_t image) {
        counts[image] = std::accumulate(valids + image * pixels, valids + (image + 1) * pixels, int64_t{0});
      });
    }
    const int64_t count = std::max<int64_t>(std::accumulate(counts.begin(), counts.end(), int64_t{0}), 1);
    std::vector<double> losses(images, 0);
    each_image<T>(options, images, [&](ImageNormaliser<T>& normaliser, int64_t image) {
      const int64_t first = image * pixels;
      losses[image] = normaliser.run(
          predictions + first, targets + first, valids == nullptr ? nullptr : valids + first, height, width,
          1.0 / static_cast<double>(count), gradients == nullptr ? nullptr : gradients + first);
    });
    const double loss = std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(count);
    return std::make_tuple(make_scalar(loss, dtype), gradient, make_scalar(1.0, dtype));
  });
}

}  // namespace
}  // namespace distilldepth

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CPU, m) { m.impl("hybrid_norm", TORCH_BOX(&distilldepth::hybrid_norm)); }
