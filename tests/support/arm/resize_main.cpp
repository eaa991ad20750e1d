// A resize on another CPU: what tests/kernels/test_resize_native.py packs from stdin,
// the CPU's best isa and the pixels out.

#include <cstdio>
#include <vector>

#include "../../../kernels/qalign_kernels/cpu/csrc/resize.cpp"

using Bytes = std::vector<uint8_t>;

Bytes read() {
  int64_t size = 0;
  if (std::fread(&size, 8, 1, stdin) != 1) return {};
  Bytes bytes(size);
  bytes.resize(std::fread(bytes.data(), 1, size, stdin));
  return bytes;
}

int main() {
  const Bytes isa = read(), head = read(), pixels = read();
  Resize r;
  std::memcpy(&r, head.data(), sizeof r);
  Bytes tables[6];
  for (auto &each : tables) each = read();
  for (int i = 0; i < 2; ++i) {
    Axis &axis = i ? r.rows : r.columns;
    axis.first = reinterpret_cast<const int32_t *>(tables[3 * i].data());
    axis.limbs = tables[3 * i + 1].data();
    axis.base = reinterpret_cast<const int32_t *>(tables[3 * i + 2].data());
  }
  Bytes work(qk_resize_work(&r, isa[0]) + 63), out(3 * r.side * r.side + 64);
  uint8_t *aligned = work.data() + (64 - reinterpret_cast<uintptr_t>(work.data()) % 64) % 64;
  qk_resize_rows(&r, isa[0], pixels.data(), r.width * r.channels, 0, r.height, aligned, out.data());
  std::putchar(qk_resize_isa());
  std::fwrite(out.data(), 1, 3 * r.side * r.side, stdout);
}
