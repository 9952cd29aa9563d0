/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that give EINTR because their task was stopped, whatever its signals (signal(7)). */
#ifndef TORPOR_INTERRUPTED_H
#define TORPOR_INTERRUPTED_H

#include <asm/unistd.h>

static inline int is_given_up_at_stops(long call)
{
	switch (call) {
#ifdef __NR_epoll_wait
	case __NR_epoll_wait:
#endif
	case __NR_epoll_pwait:
#ifdef __NR_epoll_pwait2
	case __NR_epoll_pwait2:
#endif
	case __NR_semop:
	case __NR_semtimedop:
	case __NR_rt_sigtimedwait:
	case __NR_io_getevents:
	case __NR_io_uring_enter:
	case __NR_read:
	case __NR_readv:
	case __NR_write:
	case __NR_writev:
	case __NR_recvfrom:
	case __NR_recvmsg:
	case __NR_sendto:
	case __NR_sendmsg:
	case __NR_accept:
	case __NR_accept4:
	case __NR_connect:
		return 1;
	default:
		return 0;
	}
}

#endif
