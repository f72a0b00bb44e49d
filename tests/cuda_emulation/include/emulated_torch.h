// What the host code asks of torch's tensors: here they lie on the CPU, and what the kernels write has guard pages.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "emulator.h"

namespace cuda_emulation {

inline int device_index(const torch::stable::Tensor&) { return current_device(); }

inline torch::stable::Tensor new_empty(
    const torch::stable::Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
    torch::headeronly::ScalarType dtype) {
  const auto plain = torch::stable::new_empty(like, shape, dtype);
  const size_t bytes = plain.numel() * plain.element_size();
  if (bytes == 0) return plain;
#if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_11_0
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return torch::stable::from_blob(
      allocate_guarded(bytes), shape, {strides.data(), strides.size()}, plain.device(), plain.scalar_type(),
      [](void* data) { free_guarded(data); });
#else
  memset(plain.mutable_data_ptr(), 0xff, bytes);
  return plain;
#endif
}

inline torch::stable::Tensor new_zeros(
    const torch::stable::Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
    torch::headeronly::ScalarType dtype) {
  auto tensor = cuda_emulation::new_empty(like, shape, dtype);
  count_memset(tensor.numel() * tensor.element_size());
  if (tensor.numel() != 0) memset(tensor.mutable_data_ptr(), 0, tensor.numel() * tensor.element_size());
  return tensor;
}

}  // namespace cuda_emulation
