// From an operator's one function to its entry in the table.
#pragma once

#include "common/run.cuh"

namespace megalodon::cuda {

template <auto F>
struct EntryOf;

template <class Op, class Shape, void (*F)(const Op&, const Shape&, Run&)>
struct EntryOf<F> {
  static constexpr Entry<Op, Shape> entry = {
      [](const Op& op, const Shape& shape) {
        Run dry;
        F(op, shape, dry);
        return dry.workspace_bytes();
      },
      [](const Op& op, const Shape& shape, Stream stream, Workspace workspace) {
        Run run(stream, workspace);
        F(op, shape, run);
      }};
};

template <auto F>
inline constexpr auto entry = EntryOf<F>::entry;

}  // namespace megalodon::cuda
