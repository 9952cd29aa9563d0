/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Never at rest: counts in general, vector and x87 registers and in thread-local memory, in
 * three threads; every step checks the one before, so a lost or repeated one is seen.
 */
#include "core_base.h"
#include <immintrin.h>
#include <pthread.h>

#define THREADS 3

static __thread uint64_t mine, also_mine = 0x5a5a5a5a;
static volatile uint64_t steps[THREADS];
static volatile int stop;

__attribute__((target("avx"))) static void vector(uint64_t from)
{
	/* held in registers across many instructions and, with luck, across the dump */
	__m256d a = _mm256_set1_pd((double)(from & 0xffff)), one = _mm256_set1_pd(1);
	long double x = from & 0xffff;

	for (int i = 0; i < 200000 && !stop; i++) {
		a = _mm256_add_pd(a, one);
		x += 1;
		__asm__ volatile("" : "+x"(a), "+t"(x));
	}
	double out[4];

	_mm256_storeu_pd(out, a);
	if (out[0] != out[3] || out[1] != out[2] || (!stop && out[0] != (double)x))
		bad("vector registers: %f %f %f %f, x87 %Lf", out[0], out[1], out[2], out[3], x);
}

static void *body(void *index)
{
	uint64_t *block = malloc(1 << 16), sum = 0;
	long at = (long)index;

	memset(block, 0, 1 << 16);
	while (!stop) {
		for (int i = 0; i < 8192; i++) {
			if (block[i] != mine)
				bad("block %d of thread %ld is %llu at step %llu", i, at,
				    (unsigned long long)block[i], (unsigned long long)mine);
			block[i]++;
			sum++;
		}
		mine++;
		if (also_mine != 0x5a5a5a5a || sum != mine * 8192 || steps[at] + 1 != mine)
			bad("thread %ld has lost count", at);
		steps[at] = mine;
		if (__builtin_cpu_supports("avx"))
			vector(mine);
	}
	free(block);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];

	begin(argv);
	for (long i = 0; i < THREADS; i++)
		CHECK(pthread_create(threads + i, NULL, body, (void *)i) == 0);
	rest(50);
	ready();
	await_go();
	uint64_t seen = steps[0];

	for (int i = 0; i < 500 && steps[0] == seen; i++)
		rest(10);
	CHECK(steps[0] > seen); /* it runs */
	stop = 1;
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	good();
	return 0;
}
