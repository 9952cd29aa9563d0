/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filters of its own, two in the main thread and one more in another, which forbid much of what a
 * restore does: they are to be there afterwards, in their order, and not a moment before.
 */
#include "core_base.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static void forbid(int number, int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { 4, code };

	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void refused(long number, int error)
{
	errno = 0;
	long result = syscall(number, -1, -1, -1, -1, -1, -1);

	if (result != -1 || errno != error)
		bad("call %ld gives %ld, errno %d, not %d", number, result, errno, error);
}

static volatile int up, fine;

static void *body(void *unused)
{
	forbid(SYS_socketpair, 43);
	up = 1;
	await_go();
	refused(SYS_mremap, 42);
	refused(SYS_socketpair, 43);
	fine = 1;
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	begin(argv);
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	forbid(SYS_mremap, 42);
	CHECK(pthread_create(&thread, NULL, body, NULL) == 0);
	while (!up)
		rest(5);
	forbid(SYS_set_robust_list, 44);
	forbid(SYS_socket, 45);
	forbid(SYS_setsid, 46);
	forbid(SYS_setsid, 47); /* of two that forbid, the newer one's error is told */
	ready();
	await_go();
	refused(SYS_mremap, 42);
	refused(SYS_set_robust_list, 44);
	refused(SYS_socket, 45);
	refused(SYS_setsid, 47);
	errno = 0;
	CHECK(syscall(SYS_socketpair, -1, -1, -1, 0) == -1 && errno != 43);
	CHECK(pthread_join(thread, NULL) == 0 && fine);
	good();
	return 0;
}
