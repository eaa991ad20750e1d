// What Python calls to get the best copy of the kernels that this CPU and system run, or another copy by its name.
#include <cstring>
#include <new>

#include "pool.h"
#include "table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace qk {
extern const Table table_portable;

namespace {

bool anywhere() { return true; }

#if defined(__x86_64__)
struct Features {
  unsigned a = 0, b = 0, c = 0, d = 0;

  explicit Features(unsigned part) { __get_cpuid_count(7, part, &a, &b, &c, &d); }
};

bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  __get_cpuid(1, &a, &b, &c, &d);
  const bool f16c = c >> 29 & 1;  // clang 12 has no name for it
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}

// GCC 12 has no name for this feature.
bool has_avxvnni() { return has_avx2() && Features(1).a >> 4 & 1; }

bool has_avx512vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512bf16() { return has_avx512vnni() && __builtin_cpu_supports("avx512bf16"); }

bool has_amx() {
#if defined(__linux__)
  constexpr long kAskForState = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  const unsigned d = Features(0).d;
  const bool bf16 = d >> 22 & 1, tile = d >> 24 & 1, int8 = d >> 25 & 1;
  return has_avx512bf16() && bf16 && tile && int8 && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}
#elif defined(__aarch64__)
#if defined(__linux__)
// Linux's bits by number: older headers have no names for them.
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return has_dotprod() && getauxval(AT_HWCAP2) >> 13 & 1; }
bool has_bf16() { return has_i8mm() && getauxval(AT_HWCAP2) >> 14 & 1; }
#elif defined(__APPLE__)
bool has(const char* feature) {
  int there = 0;
  size_t size = sizeof there;
  return sysctlbyname(feature, &there, &size, nullptr, 0) == 0 && there;
}

bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dotprod() && has("hw.optional.arm.FEAT_I8MM"); }
bool has_bf16() { return has_i8mm() && has("hw.optional.arm.FEAT_BF16"); }
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
bool has_bf16() { return false; }
#endif
#endif

}  // namespace

#if defined(__x86_64__)
extern const Table table_avx2, table_avxvnni, table_avx512vnni, table_avx512bf16, table_amx;
#elif defined(__aarch64__)
extern const Table table_neon_dotprod, table_neon_i8mm, table_neon_bf16;
#endif

// A function of a table that notes that there was no memory: no exception may reach C or Python.
template <const Table& raw, auto member>
struct Guard;

template <const Table& raw, class... A, void (*Table::*member)(A...)>
struct Guard<raw, member> {
  static void call(A... a) {
    try {
      (raw.*member)(a...);
    } catch (const std::bad_alloc&) {
      note_starved();
    }
  }
};

template <const Table& raw>
const Table guarded = {
    raw.name,
    Guard<raw, &Table::linear>::call,
    Guard<raw, &Table::layer_norm>::call,
    Guard<raw, &Table::rms_norm>::call,
    Guard<raw, &Table::swiglu>::call,
    Guard<raw, &Table::attention>::call,
    Guard<raw, &Table::attention_by_modality>::call,
    end_turn,
    was_starved,
};

struct Copy {
  const Table* table;
  bool (*runs)();
};

// Best first.
const Copy kCopies[] = {
#if defined(__x86_64__)
    {&guarded<table_amx>, has_amx},
    {&guarded<table_avx512bf16>, has_avx512bf16},
    {&guarded<table_avx512vnni>, has_avx512vnni},
    {&guarded<table_avxvnni>, has_avxvnni},
    {&guarded<table_avx2>, has_avx2},
#elif defined(__aarch64__)
    {&guarded<table_neon_bf16>, has_bf16},
    {&guarded<table_neon_i8mm>, has_i8mm},
    {&guarded<table_neon_dotprod>, has_dotprod},
#endif
    {&guarded<table_portable>, anywhere},
};

}  // namespace qk

// The table called `name`, or the best one where `name` is null. Null where this CPU does not run that copy.
extern "C" __attribute__((visibility("default"))) const qk::Table* qk_table(const char* name) {
  for (const qk::Copy& copy : qk::kCopies)
    if ((!name || std::strcmp(name, copy.table->name) == 0) && copy.runs()) return copy.table;
  return nullptr;
}
