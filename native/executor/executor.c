/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The executor: runs a program (torpor/program.h) inside a task being restored.
 *
 * It is mapped at any address, entered at its first byte with the address of a
 * struct program as only argument, on a stack of its own, and ends in a trap
 * which the tracer waits for.  The tracer then reads failed_index.
 *
 * Rules for editing: no libc, no globals, no relocations, no recursion, no
 * vector registers, no strings.  It decides nothing: what to do, in which order
 * and what to expect of each result is in the program.
 */
#include "torpor/program.h"
#include "torpor/sys.h"

static int64_t run_one(const struct op *op, const uint64_t *slots)
{
	uint64_t a[6];

	for (unsigned int i = 0; i < 6; i++)
		a[i] = (op->flags & OP_SLOT_ARGS) >> i & 1 ? slots[op->args[i]] : op->args[i];
	switch (op->number) {
	case OP_LOAD32:
		return *(const int32_t *)a[0];
	case OP_STORE64:
		*(uint64_t *)a[0] = a[1];
		return 0;
	default:
		return torpor_syscall6(op->number, (long)a[0], (long)a[1], (long)a[2], (long)a[3],
				       (long)a[4], (long)a[5]);
	}
}

static int as_expected(const struct op *op, int64_t result)
{
	switch (op->flags >> OP_EXPECT_SHIFT & OP_EXPECT_MASK) {
	case OP_EXPECT_ANY:
		return 1;
	case OP_EXPECT_EQUAL:
		return (uint64_t)result == op->want;
	default:
		return result < -4095 || result >= 0;
	}
}

__attribute__((section(".text.entry"), used, noreturn)) void torpor_executor(struct program *program);

void torpor_executor(struct program *program)
{
	const struct op *ops = (const struct op *)program->ops;
	uint64_t *slots = (uint64_t *)program->slots;

	program->failed_index = -1;
	for (uint64_t i = 0; i < program->count; i++) {
		int64_t result = run_one(&ops[i], slots);

		if (!as_expected(&ops[i], result)) {
			program->failed_index = (int64_t)i;
			program->failed_result = result;
			break;
		}
		if (ops[i].flags >> OP_YIELD_SHIFT)
			slots[(ops[i].flags >> OP_YIELD_SHIFT) - 1] = (uint64_t)result;
	}
	for (;;)
		torpor_trap();
}
