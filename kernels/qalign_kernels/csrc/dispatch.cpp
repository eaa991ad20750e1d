// What Python calls: the best copy of the kernels that this CPU and system run, or a lesser one by name.
#include <cstring>

#include "table.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qk {
extern const Table table_portable;
#if defined(__x86_64__)
extern const Table table_avx2, table_avx512vnni, table_avx512bf16, table_amx;

namespace {

bool has_amx() {
#if defined(__linux__)
  constexpr long kAskForState = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "+b"(b), "+c"(c), "+d"(d));
  const bool bf16 = d >> 22 & 1, tile = d >> 24 & 1, int8 = d >> 25 & 1;
  return bf16 && tile && int8 && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}

bool runs(const Table* table) {
  if (table == &table_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  if (table == &table_avx512vnni) return vnni;
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  return table == &table_avx512bf16 ? bf16 : bf16 && has_amx();
}

}  // namespace
#endif

// Best first.
const Table* const kTables[] = {
#if defined(__x86_64__)
    &table_amx,      &table_avx512bf16, &table_avx512vnni, &table_avx2,
#endif
    &table_portable,
};

}  // namespace qk

// The table called `name`, or the best one for a null; null where this CPU does not run it.
extern "C" __attribute__((visibility("default"))) const qk::Table* qk_table(const char* name) {
  for (const qk::Table* table : qk::kTables) {
    if (name && std::strcmp(name, table->name)) continue;
#if defined(__x86_64__)
    if (table != &qk::table_portable && !qk::runs(table)) continue;
#endif
    return table;
  }
  return nullptr;
}
