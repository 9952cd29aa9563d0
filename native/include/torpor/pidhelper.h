/* SPDX-License-Identifier: Apache-2.0 */
/* What goes over the socket of the pid helper: one request and one reply a message. */
#ifndef TORPOR_PIDHELPER_H
#define TORPOR_PIDHELPER_H

#include <stddef.h>
#include <stdint.h>

#define PIDHELPER_VERSION 1
#define PIDHELPER_SOCKET "/run/torpor/pidhelper.sock"

/* The next task that is made in the pid namespace of `pid` gets the pid `want`. */
struct pidhelper_request {
	uint32_t version;
	int32_t pid;  /* a task of that namespace, as seen by the helper */
	int32_t want; /* from 2 on: an init cannot be made again */
};

struct pidhelper_reply {
	int32_t error; /* 0 or an errno */
};

_Static_assert(sizeof(struct pidhelper_request) == 12, "request");
_Static_assert(offsetof(struct pidhelper_request, want) == 8, "request");
_Static_assert(sizeof(struct pidhelper_reply) == 4, "reply");

#endif
