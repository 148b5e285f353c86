// Loss and gradient of a network of units h + W_n relu(W_{n-1} ... relu(W_1 h)), or without "h +", over all samples.
// Compiled for one width by resid/lab/_native.py, which says what goes in and out. A block of samples passes through
// the whole network, forward and back, before the next one, so that everything stays in the cache. Additions keep their
// order and NaN stays NaN: no -ffast-math.

#include <cstring>
#include <vector>

typedef REAL Vector __attribute__((vector_size(64)));
constexpr int LANES = 64 / sizeof(REAL);
constexpr int GROUPS = 4;
constexpr int BLOCK = LANES * GROUPS; // samples

struct Values {
  Vector of[WIDTH][GROUPS]; // behind a matrix
};
struct Sums {
  Vector of[WIDTH][WIDTH]; // of products over samples, lane by lane
};

static Vector load(const REAL *from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// out = weight * in, or its transpose * in
template <bool transposed> static void multiply(const REAL *weight, const Values &in, Values &out) {
  constexpr int row = transposed ? 1 : WIDTH, column = transposed ? WIDTH : 1;
  for (int g = 0; g < GROUPS; g++) {
    Vector x[WIDTH];
    for (int j = 0; j < WIDTH; j++)
      x[j] = in.of[j][g];
    for (int i = 0; i < WIDTH; i++) {
      Vector sum = weight[i * row] * x[0];
      for (int j = 1; j < WIDTH; j++)
        sum += weight[i * row + j * column] * x[j];
      out.of[i][g] = sum;
    }
  }
}

// sums += back * in^T
static void accumulate(const Values &back, const Values &in, Sums &sums) {
  for (int i = 0; i < WIDTH; i++) {
    Vector sum[WIDTH];
    for (int j = 0; j < WIDTH; j++)
      sum[j] = sums.of[i][j];
    for (int g = 0; g < GROUPS; g++)
      for (int j = 0; j < WIDTH; j++)
        sum[j] += back.of[i][g] * in.of[j][g];
    for (int j = 0; j < WIDTH; j++)
      sums.of[i][j] = sum[j];
  }
}

template <class F> static void each(F f) {
  for (int i = 0; i < WIDTH; i++)
    for (int g = 0; g < GROUPS; g++)
      f(i, g);
}

extern "C" {

long samples_in_a_block() { return BLOCK; }

// weights, gradient: (units, length, WIDTH, WIDTH). X, Y: (WIDTH, samples), whole blocks. Returns the sum of squares.
double squares_and_gradient(const REAL *weights, long units, long length, long shortcut, const REAL *X, const REAL *Y,
                            long samples, REAL *gradient) {
  const long matrices = units * length, size = WIDTH * WIDTH;
  const Vector zero = {};
  std::vector<Values> inputs(matrices + 1); // of each matrix; the last is the output
  std::vector<Sums> sums(matrices);         // zero
  Values v, back, turn[2];
  double squares = 0;
  for (long start = 0; start < samples; start += BLOCK) {
    each([&](int i, int g) { inputs[0].of[i][g] = load(X + i * samples + start + g * LANES); });
    for (long at = 0; at < matrices; at++) {
      const Values &h = inputs[at / length * length];
      Values &next = inputs[at + 1];
      if ((at + 1) % length) {
        multiply<false>(weights + at * size, inputs[at], next);
        each([&](int i, int g) { next.of[i][g] = next.of[i][g] < zero ? zero : next.of[i][g]; });
      } else if (shortcut) {
        multiply<false>(weights + at * size, inputs[at], v);
        each([&](int i, int g) { next.of[i][g] = h.of[i][g] + v.of[i][g]; });
      } else
        multiply<false>(weights + at * size, inputs[at], next);
    }
    Vector square = zero;
    each([&](int i, int g) {
      back.of[i][g] = inputs[matrices].of[i][g] - load(Y + i * samples + start + g * LANES);
      square += back.of[i][g] * back.of[i][g];
    });
    for (int lane = 0; lane < LANES; lane++)
      squares += square[lane];
    const Values *g = &back; // by the output of the matrix
    for (long at = matrices - 1; at >= 0; at--) {
      Values &out = turn[at % 2];
      accumulate(*g, inputs[at], sums[at]);
      multiply<true>(weights + at * size, *g, out);
      g = &out;
      if (at % length)
        each([&](int i, int k) { out.of[i][k] = inputs[at].of[i][k] > zero ? out.of[i][k] : zero; });
      else if (shortcut) {
        each([&](int i, int k) { back.of[i][k] += out.of[i][k]; });
        g = &back;
      }
    }
  }
  for (long k = 0; k < matrices * size; k++) {
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++)
      sum += sums[k / size].of[k % size / WIDTH][k % WIDTH][lane];
    gradient[k] = sum;
  }
  return squares;
}
}
