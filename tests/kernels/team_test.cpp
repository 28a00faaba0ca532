// Ops compute the same bits whatever team of threads OpenMP grants their parallel regions.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/basic/elementwise.h"
#include "kernels/cpu/onednn_matmul.h"
#include "kernels/decode/gather_attention.h"
#include "kernels/decode/select_top_k.h"
#include "kernels/linear/block_product.h"
#include "kernels/linear/matmul.h"
#include "kernels/optimizer/newton_schulz.h"
#include "kernels/optimizer/optimizer_step.h"
#include "tests/support/bf16_scope.h"
#include "tests/support/every_team.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::every_team;
using test::make_tensor;
using test::random_tensor;
using test::Stream;
using test::TeamCase;
using test::Tensor;
using test::to_floats;
using test::Workspace;

using Values = std::vector<float>;

Values joined(const std::vector<Values>& parts) {
  Values all;
  for (const Values& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

Shape stored(int64_t rows, int64_t cols, bool transposed) {
  return transposed ? Shape({cols, rows}) : Shape({rows, cols});
}

struct ProductSize {
  int64_t m, n, k;
};
// One block or several of c; of few terms and of so many that a library splits the sums.
constexpr ProductSize kProducts[] = {{1, 1, 1},     {33, 31, 257},   {16, 256, 1024},
                                     {64, 512, 32}, {256, 256, 256}, {300, 530, 600}};

// body(a, b, block) for all sizes and layouts; block is c = a b of one block.
void for_products(DType dtype,
                  const std::function<void(const Tensor&, const Tensor&, MatrixProduct)>& body) {
  for (const auto& [m, n, k] : kProducts) {
    for (const bool ta : {false, true}) {
      for (const bool tb : {false, true}) {
        const Tensor a = random_tensor(stored(m, k, ta), 1, dtype);
        const Tensor b = random_tensor(stored(k, n, tb), 2, dtype);
        body(a, b,
             {.m = m,
              .n = n,
              .k = k,
              .dtype = dtype,
              .a = {a.view().raw(), a.view().dim(1), ta ? Transpose::yes : Transpose::no},
              .b = {b.view().raw(), b.view().dim(1), tb ? Transpose::yes : Transpose::no},
              .c = nullptr,
              .c_stride = n,
              .c_dtype = DType::f32});
      }
    }
  }
}

Values whole_products(DType dtype) {
  std::vector<Values> results;
  for_products(dtype, [&](const Tensor& a, const Tensor& b, MatrixProduct p) {
    Stream stream;
    Tensor c({p.m, p.n}, DType::f32);
    matmul(stream, a, p.a.transpose, b, p.b.transpose, Accumulate::no, c);
    results.push_back(to_floats(c));
  });
  return joined(results);
}

// Blocks of products as loops over them compute them, but outside such a loop.
Values block_products(DType dtype, void (*compute)(const MatrixProduct&)) {
  std::vector<Values> results;
  for_products(dtype, [&](const Tensor&, const Tensor&, MatrixProduct p) {
    if (p.m > 256 || p.n > 512) return;
    Tensor c({p.m, p.n}, DType::f32);
    p.c = c.view().raw();
    compute(p);
    results.push_back(to_floats(c));
  });
  return joined(results);
}

Values grouped_products(DType dtype) {
  constexpr int64_t kIn = 256, kOut = 512;
  const std::vector<int64_t> row_offsets{0, 0, 300, 301, 557};
  const int64_t rows = row_offsets.back(), experts = std::ssize(row_offsets) - 1;
  Stream stream;
  const Tensor x = random_tensor({rows, kIn}, 1, dtype), dy = random_tensor({rows, kOut}, 2, dtype),
               weight = random_tensor({experts, kOut, kIn}, 3, dtype);
  Tensor y({rows, kOut}, dtype), dx({rows, kIn}, dtype), dweight({experts, kOut, kIn}, DType::f32);
  grouped_linear_forward(stream, x, weight, row_offsets, y);
  grouped_linear_backward_input(stream, dy, weight, row_offsets, dx);
  grouped_linear_backward_weight(stream, dy, x, row_offsets, Accumulate::yes, dweight);
  return joined({to_floats(y), to_floats(dx), to_floats(dweight)});
}

Values attention(DType dtype) {
  constexpr int64_t kBatch = 2, kHeads = 4, kKvHeads = 2, kLength = 600, kDim = 64;
  Stream stream;
  Workspace workspace;
  const Tensor q = random_tensor({kBatch, kHeads, kLength, kDim}, 1, dtype),
               k = random_tensor({kBatch, kKvHeads, kLength, kDim}, 2, dtype),
               v = random_tensor({kBatch, kKvHeads, kLength, kDim}, 3, dtype),
               dout = random_tensor({kBatch * kLength, kHeads * kDim}, 4, dtype);
  Tensor out(dout.shape(), dtype), lse({kBatch, kHeads, kLength}, DType::f32), dq(q.shape(), dtype),
      dk(k.shape(), dtype), dv(v.shape(), dtype);
  attention_forward(stream, workspace, q, k, v, {}, 0.125f, out, lse);
  attention_backward(stream, workspace, dout, q, k, v, out, lse, {}, 0.125f, dq, dk, dv);
  return joined({to_floats(out), to_floats(lse), to_floats(dq), to_floats(dk), to_floats(dv)});
}

// The numbers of elements are no multiple of any vector or team.
Values updates() {
  constexpr int64_t kElements = 100003;
  Stream stream;
  const Tensor grad = random_tensor({kElements}, 1);
  Tensor params = random_tensor({kElements}, 2), m = random_tensor({kElements}, 3),
         v({kElements}, DType::f32), direction({kElements}, DType::f32),
         rounded({kElements}, DType::bf16), x = random_tensor({300, 530}, 5);
  for (int64_t step = 1; step <= 3; ++step) {
    adamw_step(stream, {.lr = 1e-2f, .weight_decay = 0.1f, .step = step}, 0.3f, grad, params, m, v,
               rounded);
    sgd_step(stream, {.lr = 1e-2f, .momentum = 0.9f, .weight_decay = 0.1f}, 0.3f, grad, params, m,
             rounded);
    momentum_step(stream, {.momentum = 0.9f, .nesterov = true}, 0.3f, grad, m, direction);
  }
  Workspace workspace;
  newton_schulz(stream, workspace, 5, x);
  Tensor squares({1}, DType::f64);
  add_sum_of_squares(stream, grad, 1.0, squares);
  divide_by_norm(stream, squares, 1e-7, direction);
  return joined({to_floats(params),
                 to_floats(m),
                 to_floats(v),
                 to_floats(direction),
                 to_floats(rounded),
                 to_floats(x),
                 {static_cast<float>(squares.data<double>()[0])}});
}

Values choice_of_keys() {
  constexpr int64_t kLength = 3000, kKvHeads = 5, kDim = 32;
  Stream stream;
  Workspace workspace;
  const Tensor q = random_tensor({2, 2 * kKvHeads, kDim}, 1),
               k = random_tensor({2, kKvHeads, kLength, kDim}, 2),
               v = random_tensor({2, kKvHeads, kLength, kDim}, 3),
               scores = random_tensor({2, kKvHeads, kLength}, 4);
  const Tensor lengths = make_tensor<int32_t>({2}, {kLength, 2001}),
               counts = make_tensor<int32_t>({2}, {1200, 40});
  Tensor indices({2, kKvHeads, 1200}, DType::i32), chosen({2, 2 * kKvHeads * kDim}, DType::f32),
      dense(chosen.shape(), DType::f32);
  select_top_k(stream, workspace, scores, lengths, counts, 0, 0, indices);
  gather_attention(stream, workspace, q, k, v, indices, counts, {}, 0.2f, chosen);
  decode_attention(stream, workspace, q, k, v, lengths, 0.2f, dense);
  return joined({to_floats(chosen), to_floats(dense)});
}

struct OpCase {
  std::string name;
  std::function<Values()> run;
};

std::vector<OpCase> ops() {
  return {
      {"products_f32", [] { return whole_products(DType::f32); }},
      {"products_bf16", [] { return whole_products(DType::bf16); }},
      {"blocks_f32", [] { return block_products(DType::f32, compute_block); }},
      {"blocks_native_bf16", [] { return block_products(DType::bf16, compute_block_native_bf16); }},
      {"blocks_widened_bf16",
       [] { return block_products(DType::bf16, compute_block_widened_bf16); }},
      {"grouped_products_f32", [] { return grouped_products(DType::f32); }},
      {"grouped_products_bf16", [] { return grouped_products(DType::bf16); }},
      {"attention_f32", [] { return attention(DType::f32); }},
      {"attention_bf16", [] { return attention(DType::bf16); }},
      {"updates", updates},
      {"choice_of_keys", choice_of_keys}};
}

class TeamTest : public testing::TestWithParam<OpCase> {};

TEST_P(TeamTest, WhateverIsGrantedTheBitsAreTheSame) {
  SWITCHYARD_CPU_ONLY("OpenMP");
  if (GetParam().name == "blocks_native_bf16") {
    SWITCHYARD_NEEDS_METHOD(Bf16Method::native);
  }
  const std::vector<TeamCase> teams = every_team();
  Values expected;
  teams.front().run([&] { expected = GetParam().run(); });

  for (const TeamCase& team : teams) {
    int granted = 0;
    Values values;
    team.run([&] {
      granted = granted_team_size();
      values = GetParam().run();
    });

    EXPECT_EQ(granted, team.granted) << team.name;
    // Not EXPECT_EQ, which would print a million numbers.
    EXPECT_TRUE(values == expected) << team.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, TeamTest, testing::ValuesIn(ops()),
                         [](const auto& tested) { return tested.param.name; });

}  // namespace
}  // namespace switchyard
