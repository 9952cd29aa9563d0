/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program that the executor runs: written by engine/program/encode.py.
 *
 * All addresses are those of the task that runs it.  A program is a header, an
 * array of operations and an array of 64-bit slots for results.
 */
#ifndef TORPOR_PROGRAM_H
#define TORPOR_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

/* Operations that are not system calls. */
#define OP_LOAD32 0xf0000001u  /* result = *(s32 *)args[0] */
#define OP_STORE64 0xf0000002u /* *(u64 *)args[0] = args[1] */

/* op.flags: bit i (0..5): args[i] is the index of a slot. */
#define OP_SLOT_ARGS 0x3fu
#define OP_EXPECT_SHIFT 8 /* two bits */
#define OP_EXPECT_MASK 0x3u
#define OP_EXPECT_OK 0u
#define OP_EXPECT_ANY 1u
#define OP_EXPECT_EQUAL 2u
#define OP_YIELD_SHIFT 16 /* index of the slot for the result, plus one */

struct op {
	uint32_t number;
	uint32_t flags;
	uint64_t args[6];
	uint64_t want;
};

struct program {
	uint64_t ops;
	uint64_t count;
	uint64_t slots;
	int64_t failed_index;  /* -1: ran to the end */
	int64_t failed_result; /* what that operation gave */
};

_Static_assert(sizeof(struct op) == 64, "op");
_Static_assert(offsetof(struct op, args) == 8, "op.args");
_Static_assert(offsetof(struct op, want) == 56, "op.want");
_Static_assert(sizeof(struct program) == 40, "program");
_Static_assert(offsetof(struct program, failed_index) == 24, "program.failed_index");

#endif
