/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A busy tree that notices whatever is done to it: a parent and three children pass a number
 * round by pipes, each writes every number down, counts the ticks of two timers, and has a
 * thread that counts under one mutex of all.
 *
 *     busy_tree FOLDER
 *
 * FOLDER/status is shared memory (`struct status`), FOLDER/ticks-N the numbers that member N
 * has seen, FOLDER/result what it says at the end: `ok`, or the first thing that was wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MEMBERS = 4, BALLAST = 512, PERIOD_NS = 3000000, ALARM_US = 4700, PAUSE_NS = 100000 };
static const uint64_t LAST = UINT64_MAX;

/* The test reads the first three rows. */
struct status {
	volatile uint64_t laps[MEMBERS];
	volatile uint64_t counted[MEMBERS];
	volatile uint64_t alarms[MEMBERS];
	volatile uint64_t ready;
	volatile uint64_t stop;
	volatile uint64_t total;
	pthread_mutex_t lock;
};

static struct status *shared;
static char folder[4096];
static int me;
static volatile uint64_t ballast[BALLAST][4096 / sizeof(uint64_t)];
static volatile int thread_stops;
static volatile uint64_t periods;
static volatile uint64_t alarms;

static void say(const char *text)
{
	char name[4200];
	int fd;

	snprintf(name, sizeof(name), "%s/result", folder);
	fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
	if (fd >= 0 && write(fd, text, strlen(text)) < 0)
		_exit(4);
}

static void wrong(const char *format, ...)
{
	char text[300];
	va_list more;
	int at = snprintf(text, sizeof(text), "member %d: ", me);

	va_start(more, format);
	vsnprintf(text + at, sizeof(text) - at, format, more);
	va_end(more);
	say(text);
	kill(0, SIGKILL);
}

static void on_alarm(int number)
{
	(void)number;
	shared->alarms[me] = ++alarms;
}

static void on_period(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	periods += 1 + info->si_overrun;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* A timer that has to have gone off exactly once in each period since the returned instant. */
static uint64_t start_timers(void)
{
	struct sigaction alarm = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	struct sigaction period = { .sa_sigaction = on_period, .sa_flags = SA_RESTART | SA_SIGINFO };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	struct itimerval every = { { 0, ALARM_US }, { 0, ALARM_US } };
	uint64_t begin = now_ns(), first = begin + PERIOD_NS;
	struct itimerspec when = {
		{ 0, PERIOD_NS }, { first / 1000000000, first % 1000000000 }
	};
	timer_t timer;

	sigaction(SIGALRM, &alarm, NULL);
	sigaction(SIGRTMIN, &period, NULL);
	if (setitimer(ITIMER_REAL, &every, NULL) || timer_create(CLOCK_MONOTONIC, &event, &timer) ||
	    timer_settime(timer, TIMER_ABSTIME, &when, NULL))
		wrong("no timers: %s", strerror(errno));
	return begin;
}

static void check_timer(uint64_t begin)
{
	uint64_t before, expected = 0;

	for (int i = 0; i < 5000; i++) {
		before = periods;
		expected = (now_ns() - begin) / PERIOD_NS;
		if (periods == before && before == expected)
			return;
		if (before > expected)
			wrong("timer ticked %lu times in %lu periods", before, expected);
		usleep(100);
	}
	wrong("timer ticked %lu times in %lu periods", periods, expected);
}

/* Each page says when it was written last. */
static void tread(uint64_t step)
{
	uint64_t last = step > BALLAST ? step - BALLAST : 0;
	volatile uint64_t *page = ballast[step % BALLAST];

	if (page[0] != last || page[7] != last)
		wrong("a page says %lu, written was %lu", page[0], last);
	page[0] = page[7] = step;
}

static void *count(void *nothing)
{
	uint64_t own = 0;

	for (int i = 0; i < BALLAST; i++)
		ballast[i][1] = 1; /* there from the start */
	while (!thread_stops) {
		if (pthread_mutex_lock(&shared->lock))
			wrong("mutex: %s", strerror(errno));
		shared->total++;
		if (shared->counted[me] != own)
			wrong("thread counted %lu, memory says %lu", own, shared->counted[me]);
		shared->counted[me] = ++own;
		pthread_mutex_unlock(&shared->lock);
		tread(own);
		usleep(200);
	}
	return nothing;
}

static void pass_on(int from, int to)
{
	char name[4200];
	uint64_t number = 0, laps = 0;
	struct timespec pause = { 0, PAUSE_NS };

	snprintf(name, sizeof(name), "%s/ticks-%d", folder, me);
	int log = open(name, O_WRONLY | O_CREAT | O_APPEND, 0644);

	for (;; laps++) {
		if (me != 0 || laps != 0) {
			ssize_t got = read(from, &number, 8);

			if (got != 8)
				wrong("read gave %zd: %s", got, strerror(errno));
			if (number == LAST && me == 0)
				return;
		}
		if (number != LAST) {
			if (number != laps)
				wrong("number %lu in lap %lu", number, laps);
			if (write(log, &number, 8) != 8)
				wrong("log: %s", strerror(errno));
			shared->laps[me] = laps + 1;
		}
		if (me == 0) {
			nanosleep(&pause, NULL);
			number = shared->stop ? LAST : number;
		}
		if (me == MEMBERS - 1 && number != LAST)
			number++;
		if (write(to, &number, 8) != 8)
			wrong("write: %s", strerror(errno));
		if (number == LAST && me != 0)
			return;
	}
}

static void member(int from, int to)
{
	pthread_t thread;
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, count, NULL))
		wrong("no thread");
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	uint64_t begin = start_timers();

	__atomic_add_fetch(&shared->ready, 1, __ATOMIC_SEQ_CST);
	pass_on(from, to);
	thread_stops = 1;
	pthread_join(thread, NULL);
	check_timer(begin);
}

static void prepare(void)
{
	char name[4200], stack[65536];
	pthread_mutexattr_t kind;

	memset(stack, 1, sizeof(stack)); /* it shall not grow later */
	__asm__ volatile("" : : "r"(stack) : "memory");
	snprintf(name, sizeof(name), "%s/status", folder);
	int fd = open(name, O_RDWR | O_CREAT, 0644);

	if (fd < 0 || ftruncate(fd, 4096))
		exit(1);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	pthread_mutexattr_init(&kind);
	pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&shared->lock, &kind);
}

int main(int argc, char **argv)
{
	int ring[MEMBERS][2], status;
	uint64_t sum = 0;

	if (argc != 2)
		return 2;
	snprintf(folder, sizeof(folder), "%s", argv[1]);
	prepare();
	for (int i = 0; i < MEMBERS; i++)
		if (pipe(ring[i]))
			return 1;
	for (int i = 1; i < MEMBERS; i++)
		if (fork() == 0) {
			me = i;
			member(ring[i][0], ring[(i + 1) % MEMBERS][1]);
			_exit(0);
		}
	member(ring[0][0], ring[1][1]);
	for (int i = 1; i < MEMBERS; i++)
		while (wait(&status) < 0 || status != 0)
			if (errno != EINTR || status != 0)
				wrong("a child ended with %#x", status);
	for (int i = 0; i < MEMBERS; i++)
		sum += shared->counted[i];
	if (sum != shared->total)
		wrong("threads counted %lu, together %lu", sum, shared->total);
	say("ok");
	return 0;
}
