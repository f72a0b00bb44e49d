// The backward of the normalising losses on a GPU: their gradient is known up to a scale and to that of the loss, and one
// pass multiplies it with both and rounds it to the type of the maps.
#include "cuda.cuh"

namespace distilldepth {
namespace {

constexpr int kThreads = 256;

// `vectors`: both maps may be moved in packs of kItems; a thread has one pack.
template <typename Map>
__global__ void __launch_bounds__(kThreads)
scale_maps(const acc_t<Map>* gradient /* (count,) */, const acc_t<Map>* scale /* () */,
           const acc_t<Map>* grad_loss /* () */, int64_t count, bool vectors, Map* scaled /* (count,) */) {
  using Acc = acc_t<Map>;
  constexpr int kItems = 16 / sizeof(Acc);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kItems;
  const Acc factor = *scale * *grad_loss;
  if (vectors && first + kItems <= count) {
    const auto from = load_pack<kItems>(gradient, first);
    Pack<Map, kItems> to;
#pragma unroll
    for (int k = 0; k < kItems; ++k) to.x[k] = from_acc<Map>(from.x[k] * factor);
    store_pack<kItems>(scaled, first, to);
  } else {
    for (int64_t i = first; i < min(first + kItems, count); ++i) store(scaled, i, gradient[i] * factor);
  }
}

template <typename Map>
void launch(const Tensor& gradient, const Tensor& scale, const Tensor& grad_loss, const Tensor& scaled) {
  using Acc = acc_t<Map>;
  constexpr int kItems = 16 / sizeof(Acc);
  const int64_t count = gradient.numel(), blocks = ceil_div(count, int64_t{kThreads} * kItems);
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, "scale_gradient: the batch is too large for one call");
  const Acc* from = const_data<Acc>(gradient);
  Map* to = mutable_data<Map>(scaled);
  scale_maps<Map><<<static_cast<unsigned>(blocks), kThreads, 0, current_stream(gradient)>>>(
      from, const_data<Acc>(scale), const_data<Acc>(grad_loss), count, aligned(from, kItems) && aligned(to, kItems), to);
  check_launch("scale_gradient");
}

Tensor scale_gradient(const Tensor& gradient, const Tensor& scale, const Tensor& grad_loss, ScalarType dtype) {
  const DeviceGuard guard(gradient);
  const Tensor scaled = new_empty(gradient, {gradient.size(0), gradient.size(1), gradient.size(2)}, dtype);
  if (gradient.numel() == 0) return scaled;
  dispatch(dtype, "scale_gradient", [&](auto tag) {
    launch<typename decltype(tag)::type>(gradient, scale, grad_loss, scaled);
  });
  return scaled;
}

}  // namespace
}  // namespace distilldepth

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CUDA, m) { m.impl("scale_gradient", TORCH_BOX(&distilldepth::scale_gradient)); }
