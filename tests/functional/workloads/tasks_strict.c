/* SPDX-License-Identifier: Apache-2.0 */
/* seccomp strict mode: of a whole child, and of one thread of another; each may only echo. */
#include "core_base.h"

#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static int questions[2][2], answers[2][2];

static void *echo(void *which)
{
	int me = (long)which;
	char letter;

	CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0));
	while (read(questions[me][0], &letter, 1) == 1 && letter != 'x')
		write(answers[me][1], &letter, 1);
	syscall(SYS_exit, 0);
	return 0;
}

static pid_t child(int me)
{
	CHECK(!pipe(questions[me]) && !pipe(answers[me]));
	pid_t pid = fork();
	pthread_t thread;

	if (pid)
		return pid;
	if (!me)
		echo(0);
	CHECK(!pthread_create(&thread, 0, echo, (void *)1) && !pthread_join(thread, 0));
	_exit(0);
}

int main(int argc, char **argv)
{
	pid_t pids[2];
	char letter;

	(void)argc;
	begin(argv);
	for (int i = 0; i < 2; i++)
		pids[i] = child(i);
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 2; i++) {
			CHECK(write(questions[i][1], "a", 1) == 1);
			CHECK(read(answers[i][0], &letter, 1) == 1 && letter == 'a');
		}
		if (!round) {
			ready();
			await_go();
		}
	}
	for (int i = 0; i < 2; i++) {
		int status;

		CHECK(write(questions[i][1], "x", 1) == 1);
		CHECK(waitpid(pids[i], &status, 0) == pids[i]);
		SAME(status, 0);
	}
	good();
	return 0;
}
