// One instruction set's copy of the kernels. This file is compiled once for each set, with its flags and its name as
// QK_ISA.
#include "attention.h"
#include "linear.h"
#include "pool.h"
#include "rows.h"
#include "table.h"

#define QK_NAME2(isa) #isa
#define QK_NAME(isa) QK_NAME2(isa)

namespace qk {
extern const Table QK_JOIN(table, QK_ISA);
const Table QK_JOIN(table, QK_ISA) = {
    QK_NAME(QK_ISA),
    QK_ISA::linear,
    QK_ISA::layer_norm,
    QK_ISA::rms_norm,
    QK_ISA::swiglu,
    QK_ISA::attention,
    QK_ISA::attention_by_modality,
    end_turn,
    was_starved,
};
}  // namespace qk
