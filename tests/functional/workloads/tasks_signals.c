/* SPDX-License-Identifier: Apache-2.0 */
/* Signals: long queues, siginfo of all shapes, flags of actions, handlers that are running. */
#include "core_base.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif
#define LONG 300

static const char *mode;
static volatile int inside, leave, count, bad_stack;
static char stack[65536] __attribute__((aligned(64)));
static volatile int thread_tid;

struct kernel_action {
	void *handler;
	unsigned long flags, restorer, mask;
};

static int is(const char *name)
{
	return strcmp(mode, name) == 0;
}

static void block_all(void)
{
	sigset_t all;

	sigfillset(&all);
	CHECK(!pthread_sigmask(SIG_BLOCK, &all, 0));
}

/* any siginfo may be sent to oneself */
static void send(int signal, int code, int fill, int tid)
{
	unsigned char raw[128];

	memset(raw, 0, sizeof(raw));
	for (int i = 16; i < 48; i++)
		raw[i] = fill + i;
	memcpy(raw, &signal, 4);
	memcpy(raw + 8, &code, 4);
	if (tid)
		CHECK(!syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, signal, raw));
	else
		CHECK(!syscall(SYS_rt_sigqueueinfo, getpid(), signal, raw));
}

static void receive(int signal, int code, int fill)
{
	unsigned char raw[128] = { 0 };
	uint64_t mask = 1ull << (signal - 1);
	struct timespec none = { 0, 0 };
	int number;

	SAME(syscall(SYS_rt_sigtimedwait, &mask, raw, &none, 8), signal);
	memcpy(&number, raw + 8, 4);
	SAME(number, code);
	for (int i = 16; i < 28; i++)
		SAME(raw[i], (unsigned char)(fill + i));
}

static const struct {
	int signal, code;
} shapes[] = { { SIGUSR1, SI_QUEUE }, { SIGUSR2, SI_TKILL }, { 40, SI_MESGQ },
	       { SIGIO, SI_SIGIO }, { SIGCHLD, CLD_EXITED }, { SIGSEGV, SEGV_MAPERR },
	       { SIGBUS, BUS_ADRERR }, { SIGFPE, FPE_INTDIV }, { 41, SI_ASYNCIO },
	       { SIGURG, 0 } };

static void all_shapes(int check, int tid)
{
	for (unsigned i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
		if (check)
			receive(shapes[i].signal, shapes[i].code, i);
		else
			send(shapes[i].signal, shapes[i].code, i, tid);
	}
}

static void long_queue(int check)
{
	for (int i = 0; i < LONG; i++) {
		if (check)
			receive(SIGRTMIN + 7, SI_QUEUE, i);
		else
			send(SIGRTMIN + 7, SI_QUEUE, i, 0);
	}
}

static void flags(int check)
{
	static const unsigned long every[] = {
		SA_RESTART, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_NOCLDWAIT, SA_NOCLDSTOP,
		SA_SIGINFO, SA_RESTART | SA_SIGINFO | SA_NODEFER | SA_ONSTACK, 0x400 /* tag bits */,
		0x04000000 /* SA_RESTORER alone */, 0,
	};
	struct kernel_action one;

	for (int signal = 1; signal <= 64; signal++) {
		struct kernel_action wanted = { (void *)(long)(0x1000 + signal),
						every[signal % 11] | 0x04000000, 0x2000 + signal,
						1ull << (signal % 60) };

		if (signal == SIGKILL || signal == SIGSTOP || signal == SIGUSR1)
			continue;
		if (signal % 9 == 0)
			wanted.handler = SIG_IGN;
		if (signal % 10 == 0)
			wanted.handler = SIG_DFL;
		if (!check) {
			CHECK(!syscall(SYS_rt_sigaction, signal, &wanted, 0, 8));
			CHECK(!syscall(SYS_rt_sigaction, signal, 0, &one, 8));
			continue;
		}
		CHECK(!syscall(SYS_rt_sigaction, signal, 0, &one, 8));
		CHECK(one.handler == wanted.handler);
		if (one.handler != SIG_DFL) {
			SAME(one.restorer, wanted.restorer);
			SAME(one.flags & ~0x400, wanted.flags & ~0x400);
		}
	}
}

static void stay(int number)
{
	char here;

	(void)number;
	if (!is("nested") && (&here < stack || &here > stack + sizeof(stack)))
		bad_stack = 1;
	count++;
	if (inside++ == 0 && is("nested"))
		raise(SIGUSR1);
	while (!leave)
		rest(5);
}

static void *in_handler(void *nothing)
{
	stack_t mine = { .ss_sp = stack, .ss_size = sizeof(stack) };
	stack_t now;

	if (is("autodisarm"))
		mine.ss_flags = SS_AUTODISARM;
	CHECK(!sigaltstack(&mine, 0));
	thread_tid = syscall(SYS_gettid);
	raise(SIGUSR1);
	CHECK(!sigaltstack(0, &now));
	CHECK(now.ss_sp == stack && now.ss_size == sizeof(stack));
	SAME(now.ss_flags & SS_AUTODISARM, mine.ss_flags & SS_AUTODISARM);
	return nothing;
}

static void *receiver(void *nothing)
{
	block_all();
	all_shapes(0, syscall(SYS_gettid)); /* only the thread itself may say that the kernel sent it */
	thread_tid = syscall(SYS_gettid);
	while (!leave)
		rest(5);
	all_shapes(1, 0);
	return nothing;
}

static void reaping(void)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(0);
	SAME(waitpid(pid, &status, 0), -1);
	SAME(errno, ECHILD);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = stay, .sa_flags = SA_ONSTACK | SA_NODEFER };
	pthread_t thread = 0;

	begin(argv);
	CHECK(argc == 3);
	mode = argv[2];
	if (is("shapes")) {
		block_all();
		all_shapes(0, 0);
	} else if (is("shapes_of_thread")) {
		block_all();
		CHECK(!pthread_create(&thread, 0, receiver, 0));
		while (!thread_tid)
			rest(1);
	} else if (is("queue")) {
		block_all();
		long_queue(0);
	} else if (is("flags"))
		flags(0);
	else if (is("altstack") || is("autodisarm") || is("nested")) {
		CHECK(!sigaction(SIGUSR1, &action, 0));
		CHECK(!pthread_create(&thread, 0, in_handler, 0));
		while (inside < (is("nested") ? 2 : 1))
			rest(2);
	} else if (is("no_zombies")) {
		action.sa_handler = SIG_DFL;
		action.sa_flags = SA_NOCLDWAIT;
		CHECK(!sigaction(SIGCHLD, &action, 0));
	} else if (is("ignored_children"))
		signal(SIGCHLD, SIG_IGN);
	else
		bad("no such mode");
	ready();
	await_go();
	leave = 1;
	if (is("shapes"))
		all_shapes(1, 0);
	else if (is("queue"))
		long_queue(1);
	else if (is("flags"))
		flags(1);
	else if (is("no_zombies") || is("ignored_children"))
		reaping();
	if (thread)
		CHECK(!pthread_join(thread, 0));
	CHECK(!bad_stack);
	if (is("nested"))
		SAME(count, 2);
	good();
	return 0;
}
