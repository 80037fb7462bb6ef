// Runs every kernel this processor has on cases from standard input, without the C++ library, so
// that it can be compiled for another processor in seconds.
//
// A case is eight int64 (codec, dim, rows, tokens, first column block, end, bytes of rows, 0), then
// rows, x [tokens, dim], h [tokens, rows], out [tokens, dim]. The answer to one, by each kernel: its
// name in 16 bytes; the dot products [tokens, rows] token by token, then of two, three, four tokens and
// one in turn, then with packed rows; out of the first token with rows added; the decoded columns; out
// of all tokens with rows added; h as it is activated by each function, with a threshold of 0.25.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cstdint>

#include "math/kernels.hpp"

namespace {

using namespace flash_llm;

// 64 bytes behind every buffer must stay as they are.
template <typename Value>
struct Buffer {
  static constexpr std::size_t kGuard = 64;
  std::size_t bytes;
  std::uint8_t* memory;

  explicit Buffer(std::size_t count)
      : bytes(count * sizeof(Value)),
        memory(static_cast<std::uint8_t*>(aligned_alloc(64, (bytes + 2 * kGuard) / 64 * 64))) {
    memset(memory, 0xA5, (bytes + 2 * kGuard) / 64 * 64);
  }
  ~Buffer() {
    for (std::size_t i = bytes; i < (bytes + 2 * kGuard) / 64 * 64; ++i) {
      if (memory[i] != 0xA5) {
        fprintf(stderr, "written behind the end of a buffer\n");
        abort();
      }
    }
    free(memory);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Value* data() { return reinterpret_cast<Value*>(memory); }
  void read() {
    if (fread(memory, 1, bytes, stdin) != bytes) {
      abort();
    }
  }
  void write() { fwrite(memory, 1, bytes, stdout); }
  void copy(Buffer& other) { memcpy(memory, other.memory, bytes); }
};

struct Case {
  RowFormat format;
  std::int64_t count;
  std::int64_t tokens;
  Columns columns;
};

void answer(const Kernels& kernels, const Case& made, const std::uint8_t* const* rows,
            const float* x, const float* h, Buffer<float>& before) {
  const RowFormat& format = made.format;
  const auto count = static_cast<std::size_t>(made.count);
  const auto tokens = static_cast<std::size_t>(made.tokens);
  char name[16] = {};
  strncpy(name, kernels.name, sizeof name - 1);
  fwrite(name, 1, sizeof name, stdout);

  const std::size_t stride = kernels.prepared_bytes(format);
  Buffer<std::uint8_t> prepared(stride * tokens);
  Buffer<float> dots(tokens * count);
  for (std::size_t t = 0; t < tokens; ++t) {
    kernels.prepare(format, x + t * static_cast<std::size_t>(format.dim),
                    prepared.data() + t * stride);
    kernels.dot_rows(format, rows, made.count, prepared.data() + t * stride, 1,
                     dots.data() + t * count);
  }
  dots.write();
  for (std::size_t t = 0, some = 2; t < tokens; t += some, some = some % kDotTokens + 1) {
    some = tokens - t < some ? tokens - t : some;
    kernels.dot_rows(format, rows, made.count, prepared.data() + t * stride,
                     static_cast<std::int64_t>(some), dots.data() + t * count);
  }
  dots.write();
  Buffer<std::uint8_t> packed(kernels.packed_bytes(format, made.count));
  kernels.pack_rows(format, rows, made.count, packed.data());
  Buffer<std::uint8_t> tile(kernels.tile_bytes(format));
  for (std::int64_t t = 0; t < made.tokens; t += kDotTokens) {
    const std::int64_t some = made.tokens - t < kDotTokens ? made.tokens - t : kDotTokens;
    kernels.prepare_tile(format, x + t * format.dim, format.dim, some, tile.data());
    kernels.packed_dot(format, packed.data(), made.count, tile.data(), some,
                       dots.data() + t * made.count, made.count);
  }
  dots.write();

  Buffer<float> first(static_cast<std::size_t>(format.dim));
  first.copy(before);
  kernels.add_rows(format, rows, h, made.count, made.columns, first.data());
  first.write();
  Buffer<float> decoded(count * static_cast<std::size_t>(made.columns.padded()));
  kernels.decode_rows(format, rows, made.count, made.columns, decoded.data());
  decoded.write();
  Buffer<float> all(tokens * static_cast<std::size_t>(format.dim));
  all.copy(before);
  kernels.tile_add(format, decoded.data(), made.count, made.columns, h, made.count, made.tokens,
                   all.data());
  all.write();

  constexpr Activation kFunctions[] = {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                                       Activation::kRelu, Activation::kRelu2,
                                       Activation::kClampedSwiglu};
  for (const Activation activation : kFunctions) {
    Buffer<float> activated(tokens * count);
    memcpy(activated.data(), h, activated.bytes);
    kernels.activate(activation, 0.25f, activated.data(), made.tokens * made.count);
    activated.write();
  }
}

}  // namespace

int main() {
  std::int64_t header[8];
  while (fread(header, sizeof header, 1, stdin) == 1) {
    const Case made{{static_cast<Codec>(header[0]), header[1]}, header[2], header[3],
                    {header[4], header[5]}};
    const auto count = static_cast<std::size_t>(made.count);
    const auto tokens = static_cast<std::size_t>(made.tokens);
    const auto dim = static_cast<std::size_t>(made.format.dim);
    Buffer<std::uint8_t> bytes(static_cast<std::size_t>(header[6]));
    Buffer<float> x(tokens * dim);
    Buffer<float> h(tokens * count);
    Buffer<float> before(tokens * dim);
    bytes.read();
    x.read();
    h.read();
    before.read();
    Buffer<const std::uint8_t*> rows(count);
    for (std::size_t i = 0; i < count; ++i) {
      rows.data()[i] = bytes.data() + i * made.format.row_bytes();
    }
    for (const Kernels* const* next = usable_kernels(); *next != nullptr; ++next) {
      answer(**next, made, rows.data(), x.data(), h.data(), before);
    }
  }
  return 0;
}
