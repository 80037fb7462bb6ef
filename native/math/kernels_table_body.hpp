// The kernels by codec: dots of fp16 rows in float, of others in integers.

std::size_t prepared_bytes(const RowFormat& format) {
  switch (format.codec) {
    case Codec::kInt8: return prepared_ints_bytes<Int8Dot>(format);
    case Codec::kInt4: return prepared_ints_bytes<Int4Dot>(format);
    case Codec::kMxfp4: return prepared_ints_bytes<Mxfp4Dot>(format);
    default: return prepared_half_bytes(format);
  }
}

void prepare(const RowFormat& format, const float* x, std::uint8_t* prepared) {
  switch (format.codec) {
    case Codec::kInt8: return prepare_ints<Int8Dot>(format, x, prepared);
    case Codec::kInt4: return prepare_ints<Int4Dot>(format, x, prepared);
    case Codec::kMxfp4: return prepare_ints<Mxfp4Dot>(format, x, prepared);
    case Codec::kFp16: return prepare_half(format, x, prepared);
  }
}

template <typename Dot>
inline void dot_int_rows(const RowFormat& format, const std::uint8_t* const* rows,
                         std::int64_t count, const std::uint8_t* prepared, std::int64_t tokens,
                         float* out) {
  switch (tokens) {
    case 1: return dot_tokens<Dot, 1>(format, rows, count, prepared, out);
    case 2: return dot_tokens<Dot, 2>(format, rows, count, prepared, out);
    case 3: return dot_tokens<Dot, 3>(format, rows, count, prepared, out);
    default: return dot_tokens<Dot, kDotTokens>(format, rows, count, prepared, out);
  }
}

void dot_rows(const RowFormat& format, const std::uint8_t* const* rows, std::int64_t count,
              const std::uint8_t* prepared, std::int64_t tokens, float* out) {
  switch (format.codec) {
    case Codec::kInt8: return dot_int_rows<Int8Dot>(format, rows, count, prepared, tokens, out);
    case Codec::kInt4: return dot_int_rows<Int4Dot>(format, rows, count, prepared, tokens, out);
    case Codec::kMxfp4: return dot_int_rows<Mxfp4Dot>(format, rows, count, prepared, tokens, out);
    case Codec::kFp16: return dot_half_rows(format, rows, count, prepared, tokens, out);
  }
}

std::size_t tile_bytes(const RowFormat& format) {
  switch (format.codec) {
    case Codec::kInt8: return tile_ints_bytes<Int8Dot>(format);
    case Codec::kInt4: return tile_ints_bytes<Int4Dot>(format);
    case Codec::kMxfp4: return tile_ints_bytes<Mxfp4Dot>(format);
    default: return kDotTokens * prepared_half_bytes(format);
  }
}

void prepare_tile(const RowFormat& format, const float* x, std::int64_t x_stride,
                  std::int64_t tokens, std::uint8_t* tile) {
  switch (format.codec) {
    case Codec::kInt8: return prepare_ints_tile<Int8Dot>(format, x, x_stride, tokens, tile);
    case Codec::kInt4: return prepare_ints_tile<Int4Dot>(format, x, x_stride, tokens, tile);
    case Codec::kMxfp4: return prepare_ints_tile<Mxfp4Dot>(format, x, x_stride, tokens, tile);
    case Codec::kFp16: return prepare_half_tile(format, x, x_stride, tokens, tile);
  }
}

std::size_t packed_bytes(const RowFormat& format, std::int64_t count) {
  switch (format.codec) {
    case Codec::kInt8: return packed_ints_bytes<Int8Dot>(format, count);
    case Codec::kInt4: return packed_ints_bytes<Int4Dot>(format, count);
    case Codec::kMxfp4: return packed_ints_bytes<Mxfp4Dot>(format, count);
    default: return packed_half_bytes(format, count);
  }
}

void pack_rows(const RowFormat& format, const std::uint8_t* const* rows, std::int64_t count,
               std::uint8_t* packed) {
  switch (format.codec) {
    case Codec::kInt8: return pack_int_rows<Int8Dot>(format, rows, count, packed);
    case Codec::kInt4: return pack_int_rows<Int4Dot>(format, rows, count, packed);
    case Codec::kMxfp4: return pack_int_rows<Mxfp4Dot>(format, rows, count, packed);
    case Codec::kFp16: return pack_half_rows(format, rows, count, packed);
  }
}

void packed_dot(const RowFormat& format, const std::uint8_t* packed, std::int64_t count,
                const std::uint8_t* tile, std::int64_t tokens, float* out,
                std::int64_t out_stride) {
  switch (format.codec) {
    case Codec::kInt8:
      return packed_dot_ints<Int8Dot>(format, packed, count, tile, tokens, out, out_stride);
    case Codec::kInt4:
      return packed_dot_ints<Int4Dot>(format, packed, count, tile, tokens, out, out_stride);
    case Codec::kMxfp4:
      return packed_dot_ints<Mxfp4Dot>(format, packed, count, tile, tokens, out, out_stride);
    case Codec::kFp16:
      return packed_dot_half(format, packed, count, tile, tokens, out, out_stride);
  }
}

constexpr Kernels kernels_named(const char* name) {
  return {name,         prepared_bytes, prepare,    dot_rows, tile_bytes,  prepare_tile,
          packed_bytes, pack_rows,      packed_dot, add_rows, decode_rows, tile_add,
          attend,       activate};
}
