// An LD_PRELOAD library: every library of the process sees an x86-64 CPU without AVX512, AVX-VNNI and AMX.
//
// It makes CPUID fault (arch_prctl ARCH_SET_CPUID, Linux on an Intel CPU that has `cpuid_fault` in /proc/cpuinfo). The
// handler runs CPUID, hides the features and goes on behind it. Child processes see the same CPU, for they inherit
// LD_PRELOAD. The dynamic loader and the C library chose their own string functions before this library was loaded.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { kSetCpuid = 0x1012 };  // ARCH_SET_CPUID

typedef int (*SetAction)(int, const struct sigaction*, struct sigaction*);

static struct sigaction before;  // the handler of all faults but CPUID's

static int allow(unsigned long on) { return (int)syscall(SYS_arch_prctl, kSetCpuid, on); }

static int set_action(int signal, const struct sigaction* action, struct sigaction* old) {
  return ((SetAction)dlsym(RTLD_NEXT, "sigaction"))(signal, action, old);
}

// Python's faulthandler, which pytest turns on, and GCC would replace our handler.
int sigaction(int signal, const struct sigaction* action, struct sigaction* old) {
  if (signal != SIGSEGV) return set_action(signal, action, old);
  if (old) *old = before;
  if (action) before = *action;
  return 0;
}

sighandler_t signal(int signal, sighandler_t handler) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
  return sigaction(signal, &action, &old) ? SIG_ERR : old.sa_handler;
}

static unsigned without(unsigned word, const char* bits) {
  for (const char* bit = bits; *bit;) word &= ~(1u << strtoul(bit, (char**)&bit, 10));
  return word;
}

static void on_fault(int signal, siginfo_t* info, void* context) {
  greg_t* r = ((ucontext_t*)context)->uc_mcontext.gregs;
  const unsigned char* code = (const unsigned char*)r[REG_RIP];
  (void)signal, (void)info;
  if (code[0] != 0x0f || code[1] != 0xa2) {  // a real fault: it comes again, for the other handler
    set_action(SIGSEGV, &before, NULL);
    return;
  }
  const unsigned leaf = (unsigned)r[REG_RAX], part = (unsigned)r[REG_RCX];
  unsigned a = leaf, b, c = part, d;
  allow(1);
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  allow(0);
  if (leaf == 7 && part == 0) {
    b = without(b, "16 17 21 26 27 28 30 31");  // AVX512 F, DQ, IFMA, PF, ER, CD, BW, VL
    c = without(c, "1 6 11 12 14");             // AVX512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ
    d = without(d, "2 3 8 22 23 24 25");        // AVX512 4VNNIW, 4FMAPS, VP2INTERSECT; AMX BF16; AVX512 FP16; AMX
  }
  if (leaf == 7 && part == 1) a = without(a, "4 5"), d = 0;  // AVX-VNNI, AVX512 BF16; AVX-VNNI-INT8 and the like
  if (leaf == 13 && part == 0) a &= 7;                       // registers to save: x87, SSE, AVX
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
  set_action(SIGSEGV, &action, &before);
  if (allow(0)) fprintf(stderr, "CPUID cannot be hidden here: it takes Linux on an Intel CPU with cpuid_fault\n"), _exit(1);
}
