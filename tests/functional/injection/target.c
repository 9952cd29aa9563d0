/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that notices when somebody disturbs it.
 *
 *     target MODE FILE
 *
 * FILE holds five counters: rounds, errors, signals taken, last error's detail,
 * and how often epoll_wait gave EINTR.
 * Every mode does rounds for ever and counts an error when anything is not as
 * it would be without a tracer: a wrong register, EINTR, an early wake-up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t *page;
static int pipe_fds[2], epoll_fd;

static void error(uint64_t detail)
{
	__atomic_add_fetch(&page[1], 1, __ATOMIC_SEQ_CST);
	page[3] = detail;
}

static void on_alarm(int signal, siginfo_t *info, void *context)
{
	char here[256];

	memset(here, signal, sizeof(here));
	if (info->si_signo != SIGALRM || here[255] != SIGALRM || !context)
		error(1);
	page[2]++;
}

static void take_alarms(int on_stack, int interval_us)
{
	struct sigaction action = { .sa_sigaction = on_alarm,
				    .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerval often = { { 0, interval_us }, { 0, interval_us } };
	stack_t stack = { .ss_size = 65536 };

	if (on_stack) {
		stack.ss_sp = malloc(stack.ss_size);
		sigaltstack(&stack, NULL);
		action.sa_flags |= SA_ONSTACK;
	}
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
}

/* One million additions in vector and general registers must agree. */
static void count_round(void)
{
	double sum = 0;
	uint64_t whole = 0, i;

	for (i = 0; i < 200000; i++) {
		sum += 1.0;
		whole += 1;
		__asm__ volatile("" : "+x"(sum), "+r"(whole));
	}
	if ((uint64_t)sum != whole || whole != 200000)
		error(2);
}

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

#define WAIT_US 3000

static void check_wait(uint64_t begin, long result, long wanted)
{
	if (result != wanted)
		error(result < 0 ? 100 + (uint64_t)errno : 90);
	else if (now_us() - begin + 200 < WAIT_US)
		error(80);
}

static void sleep_round(void)
{
	struct timespec time = { 0, WAIT_US * 1000 };
	uint64_t begin = now_us();

	check_wait(begin, nanosleep(&time, NULL), 0);
}

static void poll_round(void)
{
	struct pollfd none = { pipe_fds[0], POLLIN, 0 };
	uint64_t begin = now_us();

	check_wait(begin, poll(&none, 1, WAIT_US / 1000), 0);
}

static void epoll_round(void)
{
	struct epoll_event event;
	uint64_t begin = now_us();

	long result = epoll_wait(epoll_fd, &event, 1, WAIT_US / 1000);

	if (result < 0 && errno == EINTR)
		page[4]++; /* what the kernel itself gives at a stop: signal(7) */
	else
		check_wait(begin, result, 0);
}

static void futex_round(void)
{
	static int word;
	struct timespec time = { 0, WAIT_US * 1000 };
	uint64_t begin = now_us();
	long result = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &time, NULL, 0);

	if (result != -1 || errno != ETIMEDOUT)
		error(100 + (uint64_t)errno);
	else if (now_us() - begin + 200 < WAIT_US)
		error(80);
}

/* A thread feeds the pipe; what comes out must be every number once, in order. */
static void *feed(void *unused)
{
	struct timespec time = { 0, WAIT_US * 1000 };
	uint64_t number = 0;

	for (;; number++) {
		if (write(pipe_fds[1], &number, sizeof(number)) != sizeof(number))
			error(50);
		if (nanosleep(&time, NULL))
			error(51);
	}
	return unused;
}

static void read_round(void)
{
	static uint64_t expected;
	uint64_t number;

	if (read(pipe_fds[0], &number, sizeof(number)) != sizeof(number))
		error(100 + (uint64_t)errno);
	else if (number != expected++)
		error(60);
}

#define COUNTING_THREADS 3

/* The rounds are those of the slowest thread. */
static void *count_for_ever(void *mine)
{
	volatile uint64_t *rounds = mine;

	for (;;) {
		uint64_t least = ~0ull;
		int i;

		count_round();
		rounds[0]++;
		for (i = 0; i < COUNTING_THREADS; i++)
			if (page[8 + i] < least)
				least = page[8 + i];
		page[0] = least;
	}
	return NULL;
}

static void deep_round(void);

/* Uses the stack down to its present end, so that there is no room below. */
static void __attribute__((noinline)) deeper(int level)
{
	volatile char room[4096];

	memset((char *)room, level, sizeof(room));
	if (level > 0)
		deeper(level - 1);
	else
		while (!page[7])
			deep_round();
	if (room[5] != (char)level)
		error(70);
}

static void deep_round(void)
{
	count_round();
	page[0]++;
}

struct mode {
	const char *name;
	void (*round)(void);
};

static const struct mode modes[] = {
	{ "busy", count_round },   { "alarm", count_round }, { "altstack", count_round },
	{ "sleep", sleep_round },  { "poll", poll_round },   { "epoll", epoll_round },
	{ "futex", futex_round },  { "read", read_round },   { "threads", NULL },
	{ "deep", deep_round },
};

int main(int argc, char **argv)
{
	const struct mode *mode = modes;
	pthread_t thread;
	int fd, i;

	if (argc != 3 || (fd = open(argv[2], O_RDWR)) < 0)
		return 2;
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED || pipe(pipe_fds))
		return 3;
	epoll_fd = epoll_create1(0);
	while (strcmp(mode->name, argv[1]))
		if (++mode == modes + sizeof(modes) / sizeof(*modes))
			return 4;
	if (!strcmp(mode->name, "alarm"))
		take_alarms(0, 700);
	if (!strcmp(mode->name, "altstack"))
		take_alarms(1, 300);
	if (!strcmp(mode->name, "read"))
		pthread_create(&thread, NULL, feed, NULL);
	if (!strcmp(mode->name, "deep"))
		deeper(100);
	if (!mode->round) {
		for (i = 0; i < COUNTING_THREADS; i++)
			pthread_create(&thread, NULL, count_for_ever, (void *)(page + 8 + i));
		pthread_join(thread, NULL);
	}
	for (;;) {
		mode->round();
		page[0]++;
	}
}
