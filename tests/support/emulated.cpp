// What tests/support/emulated.py runs under an emulator, linked with the kernels for another CPU: a call's number on stdin, its
// arguments in a file that both sides map, pointers as offsets in it; an answer on stdout once the results are there.
//
//     program INSTRUCTION_SET [FILE THREADS]      "" is the best one; prints which, an empty line where it does not run
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>

#include "table.h"

extern "C" const qk::Table* qk_table(const char* name);
extern "C" void qk_set_threads(int count);

namespace {

char* base;

template <class T>
void place(T*& offset) {
  if (offset) offset = reinterpret_cast<T*>(base + reinterpret_cast<intptr_t>(offset));
}

template <class... T>
void place_all(T*&... offsets) {
  (place(offsets), ...);
}

// The arguments of all functions that take no struct.
struct Row {
  const float *x, *gain, *bias;
  double eps;
  int64_t rows, width;
  float* out;
};

void linear(const qk::Table& table, qk::Linear a) {
  place_all(a.x, a.weight, a.scale, a.groups, a.bias, a.residual, a.out);
  table.linear(a);
}

void attention(const qk::Table& table, qk::Attention a) {
  place_all(a.q, a.k, a.v, a.out);
  table.attention(a);
}

void attention_by_modality(const qk::Table& table, qk::AttentionByModality a) {
  place_all(a.q, a.kv_visual, a.kv_text, a.prefix_kv, a.turns, a.out);
  table.attention_by_modality(a);
}

void by_row(const qk::Table& table, int function, Row r) {
  place_all(r.x, r.gain, r.bias, r.out);
  const float eps = static_cast<float>(r.eps);
  if (function == '1') table.layer_norm(r.x, r.gain, r.bias, eps, r.rows, r.width, r.out);
  if (function == '2') table.rms_norm(r.x, r.gain, eps, r.rows, r.width, r.out);
  if (function == '3') table.swiglu(r.x, r.rows, r.width, r.out);
}

// Functions are numbered as the table has them.
void call(const qk::Table& table, int function) {
  if (function == '0') return linear(table, *reinterpret_cast<qk::Linear*>(base));
  if (function == '4') return attention(table, *reinterpret_cast<qk::Attention*>(base));
  if (function == '5') return attention_by_modality(table, *reinterpret_cast<qk::AttentionByModality*>(base));
  by_row(table, function, *reinterpret_cast<Row*>(base));
}

char* map(const char* path) {
  const int file = open(path, O_RDWR);
  struct stat size;
  if (file < 0 || fstat(file, &size)) return nullptr;
  void* at = mmap(nullptr, size.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return at == MAP_FAILED ? nullptr : static_cast<char*>(at);
}

void answer(const char* line) {
  std::puts(line);
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  const qk::Table* table = qk_table(*arguments[1] ? arguments[1] : nullptr);
  answer(table ? table->name : "");
  if (!table || count < 4) return 0;
  if (!(base = map(arguments[2]))) return 1;
  qk_set_threads(std::atoi(arguments[3]));
  for (int function; (function = std::getchar()) != EOF;) {
    call(*table, function);
    answer("");
  }
}
