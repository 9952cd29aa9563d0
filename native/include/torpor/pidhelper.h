/* SPDX-License-Identifier: Apache-2.0 */
/* What goes over the socket of the pid helper: one request and one reply a message. */
#ifndef TORPOR_PIDHELPER_H
#define TORPOR_PIDHELPER_H

#include <stddef.h>
#include <stdint.h>

#define PIDHELPER_SOCKET "/run/torpor/pidhelper.sock"

enum pidhelper_what {
	/* The next task that is made in the pid namespace of `pid` gets the pid `number`,
	   from 2 on: an init cannot be made again. */
	PIDHELPER_CHOOSE = 1,
	/* The seccomp filter `number` of the thread `pid`, the one installed first is 0. */
	PIDHELPER_FILTER = 2,
};

struct pidhelper_request {
	uint32_t what;
	int32_t pid; /* as seen by the helper */
	int32_t number;
};

struct pidhelper_reply {
	int32_t error; /* 0 or an errno */
};

#define PIDHELPER_INSTRUCTIONS 4096 /* BPF_MAXINSNS */

/* Of a filter that could be read: as many instructions as there are. */
struct pidhelper_filter {
	int32_t error;
	uint32_t count;
	uint64_t flags; /* SECCOMP_FILTER_FLAG_* */
	uint64_t instructions[PIDHELPER_INSTRUCTIONS]; /* struct sock_filter */
};

_Static_assert(sizeof(struct pidhelper_request) == 12, "request");
_Static_assert(offsetof(struct pidhelper_request, number) == 8, "request");
_Static_assert(sizeof(struct pidhelper_reply) == 4, "reply");
_Static_assert(offsetof(struct pidhelper_filter, instructions) == 16, "filter");

#endif
