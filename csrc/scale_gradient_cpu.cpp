// distilldepth::scale_gradient on the CPU: one pass, where torch would make one to multiply and one to round.
#include "cpu.h"

namespace distilldepth {
namespace {

inline constexpr int64_t kPixels = 16384;  // per task

// gradient (B, H, W); scale () and grad_loss () of its type. Returns (B, H, W) of `dtype`.
Tensor scale_gradient(Tensor gradient, Tensor scale, Tensor grad_loss, ScalarType dtype) {
  Tensor scaled = make({gradient.size(0), gradient.size(1), gradient.size(2)}, dtype);
  const int64_t count = gradient.numel();
  dispatch("scale_gradient", dtype, [&]<class Element>() {
    using Value = Accumulator<Element>;
    const Value factor = *scale.const_data_ptr<Value>() * *grad_loss.const_data_ptr<Value>();
    const Value* from = gradient.const_data_ptr<Value>();
    Element* to = scaled.mutable_data_ptr<Element>();
    parallel_tasks((count + kPixels - 1) / kPixels, [&](int64_t task) {
      const int64_t end = std::min(count, (task + 1) * kPixels);
      for (int64_t i = task * kPixels; i < end; ++i) to[i] = store_as(from[i] * factor, Element{});
    });
  });
  return scaled;
}

}  // namespace
}  // namespace distilldepth

STABLE_TORCH_LIBRARY_IMPL(distilldepth, CPU, m) { m.impl("scale_gradient", TORCH_BOX(&distilldepth::scale_gradient)); }
