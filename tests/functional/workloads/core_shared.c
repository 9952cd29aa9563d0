/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tree of four tasks, two generations, that count in turn in anonymous shared memory under a
 * process-shared mutex; a second segment is mapped by the grandchild only in part.
 */
#include "core_base.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define TASKS 4
#define SIZE (16 * 4096)

struct common {
	pthread_mutex_t lock;
	uint64_t total, of[TASKS];
	int stop;
};

static struct common *common;
static char *second;

static void count(int task, const char *text)
{
	while (!__atomic_load_n(&common->stop, __ATOMIC_SEQ_CST)) {
		pthread_mutex_lock(&common->lock);
		uint64_t sum = 0;

		for (int i = 0; i < TASKS; i++)
			sum += common->of[i];
		if (sum != common->total)
			bad("task %d sees a sum of %llu, not %llu", task, (unsigned long long)sum,
			    (unsigned long long)common->total);
		common->of[task]++;
		common->total++;
		pthread_mutex_unlock(&common->lock);
		if (strcmp(second + 8 * 4096, text))
			bad("task %d sees %.20s", task, second + 8 * 4096);
		rest(2);
	}
}

int main(int argc, char **argv)
{
	pthread_mutexattr_t kind;

	begin(argv);
	common = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	second = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(common != MAP_FAILED && second != MAP_FAILED);
	pthread_mutexattr_init(&kind);
	pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&common->lock, &kind);
	strcpy(second + 8 * 4096, "in the middle");
	for (int task = 1; task <= 2; task++) {
		if (fork())
			continue;
		if (task == 2 && !fork()) {
			CHECK(munmap(second, 4 * 4096) == 0);
			count(3, "in the middle");
			_exit(0);
		}
		count(task, "in the middle");
		while (wait(NULL) > 0)
			;
		_exit(0);
	}
	ready();
	while (!asked()) {
		pthread_mutex_lock(&common->lock);
		common->of[0]++;
		common->total++;
		pthread_mutex_unlock(&common->lock);
		rest(2);
	}
	uint64_t before[TASKS];

	memcpy(before, common->of, sizeof(before));
	rest(300);
	for (int i = 1; i < TASKS; i++)
		if (common->of[i] <= before[i])
			bad("task %d no longer counts", i);
	__atomic_store_n(&common->stop, 1, __ATOMIC_SEQ_CST);
	for (int i = 0, status; i < 2; i++)
		CHECK(wait(&status) > 0 && status == 0);
	good();
	return 0;
}
