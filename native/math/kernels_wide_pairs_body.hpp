// Pairs of 16 bits in wide vectors.

struct Pairs {
  using Sum = I;

  static Sum zero() { return Ints::zero(); }
  static I load(const std::int8_t* from) { return Ints::widened(from); }
  static I load(const std::int16_t* from) { return Ints::load(from); }
  static I all(const std::int16_t* pair) {
    return Ints::all_four_bytes(reinterpret_cast<const std::uint8_t*>(pair));
  }
  static Sum add_dot(Sum sum, I pairs, I factors) {
    return Ints::add_pairs_dot(sum, pairs, factors);
  }
  static F to_float(Sum sum) { return Ints::to_float(sum); }
};
