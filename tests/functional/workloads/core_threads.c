/* SPDX-License-Identifier: Apache-2.0 */
/* 500 threads with names, thread-local memory, and masks of their own; held by a robust mutex. */
#include "core_base.h"
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define THREADS 500

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, robust;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int go, up, fine;
static __thread long number, tid;

static void *body(void *index)
{
	char name[16], now[16];
	sigset_t mask, seen;

	number = (long)index;
	tid = syscall(SYS_gettid);
	snprintf(name, sizeof(name), "number %ld", number);
	prctl(PR_SET_NAME, name);
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + number % 20);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pthread_mutex_lock(&lock);
	up++;
	while (!go)
		pthread_cond_wait(&wake, &lock);
	pthread_mutex_unlock(&lock);
	prctl(PR_GET_NAME, now);
	pthread_sigmask(SIG_BLOCK, NULL, &seen);
	CHECK(!strcmp(name, now) && number == (long)index && tid == syscall(SYS_gettid));
	for (int i = 0; i < 20; i++)
		SAME(sigismember(&seen, SIGRTMIN + i), i == number % 20);
	__atomic_add_fetch(&fine, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *holder(void *unused)
{
	CHECK(pthread_mutex_lock(&robust) == 0);
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	await_go();
	return unused; /* ends with the mutex held: the kernel's robust list tells the next */
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS], last;
	pthread_mutexattr_t kind;
	pthread_attr_t small;

	begin(argv);
	pthread_mutexattr_init(&kind);
	pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &kind);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (long i = 0; i < THREADS; i++)
		CHECK(pthread_create(threads + i, &small, body, (void *)i) == 0);
	CHECK(pthread_create(&last, NULL, holder, NULL) == 0);
	while (__atomic_load_n(&up, __ATOMIC_SEQ_CST) <= THREADS)
		rest(5);
	rest(100);
	ready();
	await_go();
	pthread_mutex_lock(&lock);
	go = 1;
	pthread_cond_broadcast(&wake);
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(pthread_join(last, NULL) == 0);
	SAME(fine, THREADS);
	SAME(pthread_mutex_lock(&robust), EOWNERDEAD);
	good();
	return 0;
}
