// Hybrid normalisation loss on a GPU: the two maps as they are.
#include "normalise_cuda.cuh"

namespace distilldepth {
namespace {

template <typename Map>
struct Maps {
  using Value = acc_t<Map>;
  static constexpr int kBatch = 4;
  const Map* prediction_;  // (images, pixels)
  const Map* target_;      // (images, pixels)
  const bool* valid_;      // (images, pixels) or null
  int64_t pixels;

  __device__ __forceinline__ bool valid(int64_t image, int pixel) const {
    return valid_ == nullptr || valid_[image * pixels + pixel];
  }
  __device__ __forceinline__ Value prediction(int64_t image, int pixel) const {
    return normalise::one_zero(load(prediction_, image * pixels + pixel));
  }
  __device__ __forceinline__ Value target(int64_t image, int pixel) const {
    return normalise::one_zero(load(target_, image * pixels + pixel));
  }
};

// Loss, gradient over scale, scale.
std::tuple<Tensor, Tensor, Tensor> hybrid_norm(
    const Tensor& prediction, const Tensor& target, const std::optional<Tensor>& valid, std::vector<int64_t> segments,
    int64_t contexts, double spread_eps, bool need_gradient) {
  constexpr const char* op = "hybrid_norm";
  const DeviceGuard guard(prediction);
  const normalise::Call call{op, prediction, current_stream(prediction)};
  const int64_t images = prediction.size(0), height = prediction.size(1), width = prediction.size(2);
  const ScalarType acc = acc_dtype(prediction.scalar_type());
  const Tensor loss = new_empty(prediction, {}, acc), scale = new_empty(prediction, {}, acc);
  const Tensor gradient =
      need_gradient ? new_empty(prediction, {images, height, width}, acc) : new_empty(prediction, {0}, acc);
  const normalise::Plan plan =
      normalise::make_plan(op, images, height, width, segments, contexts, spread_eps, /*mean_per_image=*/false);
  if (prediction.numel() == 0) return {new_zeros(prediction, {}, acc), gradient, new_zeros(prediction, {}, acc)};
  dispatch(prediction.scalar_type(), op, [&](auto tag) {
    using Map = typename decltype(tag)::type;
    using Value = acc_t<Map>;
    const Maps<Map> maps{
        const_data<Map>(prediction), const_data<Map>(target), const_data<bool>(valid), height * width};
    const normalise::Results<Value> results{
        mutable_data<Value>(loss), mutable_data<Value>(scale), need_gradient ? mutable_data<Value>(gradient) : nullptr};
    normalise::run(call, plan, maps, results);
  });
  return {loss, gradient, scale};
}

}  // namespace
}  // namespace distilldepth

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CUDA, m) { m.impl("hybrid_norm", TORCH_BOX(&distilldepth::hybrid_norm)); }
