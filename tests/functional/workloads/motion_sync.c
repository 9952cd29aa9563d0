/* SPDX-License-Identifier: Apache-2.0 */
/* Locks, conditions, semaphores and queues that are handed over all the time; and registers. */
#include "motion_base.h"
#include <immintrin.h>
#include <linux/futex.h>
#include <linux/rseq.h>
#include <mqueue.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

/* What several tasks share; ``mine`` tells who is inside of a lock. */
struct common {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_barrier_t barrier;
	pthread_rwlock_t rwlock;
	sem_t here, there;
	volatile uint64_t turn, inside, count, other;
	volatile uint64_t dead;
};

static struct common *common;

static void make_common(int shared, int protocol, int robust)
{
	pthread_mutexattr_t mutex;
	pthread_condattr_t condition;
	pthread_barrierattr_t barrier;
	pthread_rwlockattr_t rw;

	common = mmap(NULL, sizeof(*common), PROT_READ | PROT_WRITE,
		      (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_init(&mutex);
	pthread_condattr_init(&condition);
	pthread_barrierattr_init(&barrier);
	pthread_rwlockattr_init(&rw);
	pthread_mutexattr_setpshared(&mutex, shared);
	pthread_condattr_setpshared(&condition, shared);
	pthread_barrierattr_setpshared(&barrier, shared);
	pthread_rwlockattr_setpshared(&rw, shared);
	pthread_condattr_setclock(&condition, CLOCK_MONOTONIC);
	SAME(pthread_mutexattr_setprotocol(&mutex, protocol), 0);
	SAME(pthread_mutexattr_setrobust(&mutex, robust), 0);
	SAME(pthread_mutex_init(&common->lock, &mutex), 0);
	SAME(pthread_cond_init(&common->changed, &condition), 0);
	SAME(pthread_barrier_init(&common->barrier, &barrier, 3), 0);
	SAME(pthread_rwlock_init(&common->rwlock, &rw), 0);
	SAME(sem_init(&common->here, shared, 0) | sem_init(&common->there, shared, 0), 0);
}

static void in_threads(int number, int count, work body)
{
	pthread_t threads[8];

	for (int i = 1; i < count; i++)
		threads[i] = start_thread(number + i, body);
	body(number);
	for (int i = 1; i < count; i++)
		SAME(pthread_join(threads[i], NULL), 0);
}

static void contend(int number)
{
	while (going()) {
		SAME(pthread_mutex_lock(&common->lock), 0);
		uint64_t before = common->count;

		SAME(common->inside, 0);
		common->inside = 1 + number;
		for (int i = 0; i < 50; i++)
			common->other++;
		SAME(common->inside, 1 + number);
		SAME(common->count, before);
		common->count++;
		common->inside = 0;
		SAME(common->other, common->count * 50);
		SAME(pthread_mutex_unlock(&common->lock), 0);
		tick(number);
		for (volatile int i = 0; i < 2000; i++)
			;
	}
}

static void three_contend(int number)
{
	in_threads(number, 3, contend);
}

static void conditions(int number)
{
	uint64_t mine = number % 3;

	while (going()) {
		SAME(pthread_mutex_lock(&common->lock), 0);
		while (common->turn % 3 != mine && going()) {
			struct timespec until;

			clock_gettime(CLOCK_MONOTONIC, &until);
			until.tv_sec++;
			int error = common->turn % 2 ? pthread_cond_wait(&common->changed, &common->lock) :
				    pthread_cond_timedwait(&common->changed, &common->lock, &until);

			CHECK(error == 0 || error == ETIMEDOUT);
		}
		common->turn++;
		SAME(pthread_cond_broadcast(&common->changed), 0);
		SAME(pthread_mutex_unlock(&common->lock), 0);
		tick(number);
	}
	pthread_mutex_lock(&common->lock);
	pthread_cond_broadcast(&common->changed);
	pthread_mutex_unlock(&common->lock);
}

static void three_conditions(int number)
{
	in_threads(number, 3, conditions);
}

static void semaphores(int number)
{
	int first = number % 2 == 0;

	while (going()) {
		if (first)
			SAME(sem_post(&common->here), 0);
		SAME(sem_wait(first ? &common->there : &common->here), 0);
		if (!first)
			SAME(sem_post(&common->there), 0);
		tick(number);
	}
	sem_post(&common->here);
	sem_post(&common->there);
}

static void barriers(int number)
{
	uint64_t round = 0;

	for (;;) {
		uint64_t is_over;
		int serial = pthread_barrier_wait(&common->barrier);

		CHECK(serial == 0 || serial == PTHREAD_BARRIER_SERIAL_THREAD);
		if (serial)
			common->turn = ++common->count, common->dead = !going();
		pthread_barrier_wait(&common->barrier);
		SAME(common->turn, ++round);
		is_over = common->dead;
		tick(number);
		if (is_over)
			return;
	}
}

/* Owners that die with the lock in their hands. */
static void robust(int number)
{
	while (going()) {
		pid_t child = fork();

		if (child == 0) {
			int error = pthread_mutex_lock(&common->lock);

			if (error == EOWNERDEAD)
				error = pthread_mutex_consistent(&common->lock);
			if (error)
				_exit(70);
			common->count++;
			_exit(6); /* with the lock */
		}
		ended_with(child, 6);
		int error = pthread_mutex_lock(&common->lock);

		if (error == EOWNERDEAD)
			error = pthread_mutex_consistent(&common->lock);
		SAME(error, 0);
		SAME(pthread_mutex_unlock(&common->lock), 0);
		tick(number);
	}
}

#define SHARED_BY(name, shared, protocol, robust_, count, body)                                \
	static void run_##name(void)                                                           \
	{                                                                                      \
		make_common(shared, protocol, robust_);                                        \
		start_workers(count, body);                                                    \
		if (!(shared))                                                                 \
			board->workers = 3;                                                    \
		finish();                                                                      \
	}
SHARED_BY(mutex, 0, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_STALLED, 1, three_contend)
SHARED_BY(mutex_pi, 0, PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_STALLED, 1, three_contend)
SHARED_BY(mutex_shared, 1, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_STALLED, 3, contend)
SHARED_BY(mutex_pi_shared, 1, PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_ROBUST, 3, contend)
SHARED_BY(condition, 0, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_STALLED, 1, three_conditions)
SHARED_BY(condition_shared, 1, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_STALLED, 3, conditions)
SHARED_BY(semaphore, 1, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_STALLED, 2, semaphores)
SHARED_BY(barrier, 1, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_STALLED, 3, barriers)
SHARED_BY(robust, 1, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_ROBUST, 2, robust)
SHARED_BY(robust_pi, 1, PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_ROBUST, 2, robust)

/* Counters of processors, added to in restartable sequences by threads that are moved about. */
static uint64_t per_cpu[1024][8];

static struct rseq *my_rseq(void)
{
	extern const ptrdiff_t __rseq_offset;

	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/* 0, or -1 when it was interrupted: nothing was added then. */
static int add_here(void)
{
	struct rseq *area = my_rseq();
	uint32_t cpu = *(volatile uint32_t *)&area->cpu_id_start;

	__asm__ goto(".pushsection __rseq_cs, \"aw\"\n"
		     ".balign 32\n"
		     "3: .long 0, 0\n"
		     ".quad 1f, 2f - 1f, 4f\n"
		     ".popsection\n"
		     "lea 3b(%%rip), %%rax\n"
		     "mov %%rax, %[pointer]\n"
		     "1: cmp %[now], %[cpu]\n"
		     "jne %l[moved]\n"
		     "mov (%[counter]), %%rax\n"
		     "mov $60, %%ecx\n"
		     "5: dec %%ecx\n"
		     "jnz 5b\n"
		     "inc %%rax\n"
		     "mov %%rax, (%[counter])\n"
		     "2:\n"
		     ".pushsection __rseq_failure, \"ax\"\n"
		     ".byte 0x0f, 0xb9, 0x3d\n"
		     ".long 0x53053053\n"
		     "4: jmp %l[moved]\n"
		     ".popsection\n"
		     :
		     : [pointer] "m"(area->rseq_cs), [now] "m"(area->cpu_id), [cpu] "r"(cpu),
		       [counter] "r"(per_cpu[cpu])
		     : "memory", "cc", "rax", "rcx"
		     : moved);
	return 0;
moved:
	return -1;
}

static void sequences(int number)
{
	uint64_t added = 0;

	while (going()) {
		for (int i = 0; i < 1000; i++)
			added += !add_here();
		tick(number);
	}
	__atomic_add_fetch(&per_cpu[1023][0], added, __ATOMIC_SEQ_CST);
}

static void all_sequences(int number)
{
	uint64_t sum = 0;

	in_threads(number, 4, sequences);
	for (int i = 0; i < 1023; i++)
		sum += per_cpu[i][0];
	SAME(sum, per_cpu[1023][0]);
	CHECK(sum > 0);
}

static void run_rseq(void)
{
	start_workers(1, all_sequences);
	board->workers = 4;
	finish();
}

/* Registers of all sorts, in use without a call in between. */
__attribute__((target("avx2"))) static void vectors(int number)
{
	__m256i a = _mm256_set1_epi64x(number + 1), b = _mm256_set1_epi64x(3), out;
	__m256d f = _mm256_set1_pd(1.0);
	long double x = 1;
	uint64_t plain = number + 1;

	while (going()) {
		for (int i = 0; i < 20000; i++) {
			a = _mm256_add_epi64(_mm256_slli_epi64(a, 1), b);
			a = _mm256_xor_si256(a, _mm256_srli_epi64(a, 7));
			plain = (plain << 1) + 3;
			plain ^= plain >> 7;
			f = _mm256_add_pd(f, _mm256_set1_pd(0.25));
			x += 0.25L;
			__asm__ volatile("" : "+x"(a), "+r"(plain), "+x"(f));
		}
		out = a;
		double g[4];

		_mm256_storeu_pd(g, f);
		for (int i = 0; i < 4; i++) {
			SAME(((uint64_t *)&out)[i], plain);
			if (g[i] != (double)x)
				bad("thread %d: %f, %Lf", number, g[i], x);
		}
		if (x > 1e9)
			x = 1, f = _mm256_set1_pd(1.0);
		tick(number);
	}
}

static void all_vectors(int number)
{
	CHECK(__builtin_cpu_supports("avx2"));
	in_threads(number, 4, vectors);
}

static void run_vectors(void)
{
	start_workers(1, all_vectors);
	board->workers = 4;
	finish();
}

/* System V: semaphores with undo, queues, segments that come and go. */
static int set, queue;

static void undone(int number)
{
	struct sembuf take = { 0, -1, SEM_UNDO }, give = { 0, 1, SEM_UNDO };

	while (going()) {
		SAME(semop(set, &take, 1), 0);
		SAME(common->inside, 0);
		common->inside = 1 + number;
		for (volatile int i = 0; i < 300; i++)
			;
		SAME(common->inside, 1 + number);
		common->inside = 0;
		if (common->count++ % 64 == 0) {
			pid_t child = fork(); /* dies with another that it has taken */

			if (child == 0) {
				struct sembuf other = { 1, -1, SEM_UNDO };

				_exit(semop(set, &other, 1) ? 71 : 8);
			}
			ended_with(child, 8);
		}
		SAME(semop(set, &give, 1), 0);
		tick(number);
	}
}

static void run_sysv_semaphores(void)
{
	make_common(1, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_STALLED);
	set = semget(IPC_PRIVATE, 2, 0600 | IPC_CREAT);
	CHECK(set >= 0 && semctl(set, 0, SETVAL, 1) == 0 && semctl(set, 1, SETVAL, 4) == 0);
	start_workers(3, undone);
	ready();
	await_go();
	end_workers();
	SAME(semctl(set, 0, GETVAL), 1);
	SAME(semctl(set, 1, GETVAL), 4);
	CHECK(semctl(set, 0, IPC_RMID) == 0);
	good();
}

struct letter {
	long type;
	uint64_t number;
};

static void letters(int number)
{
	for (uint64_t i = 0; going(); i++) {
		struct letter letter = { 1 + number, i }, came;

		SAME(msgsnd(queue, &letter, 8, 0), 0);
		ssize_t got = msgrcv(queue, &came, 8, 2 - number, 0);

		if (got != 8)
			bad("msgrcv gives %zd (errno %d)", got, errno);
		SAME(came.number, i);
		tick(number);
	}
	for (;;)
		pause();
}

static void run_sysv_queue(void)
{
	queue = msgget(IPC_PRIVATE, 0600 | IPC_CREAT);
	CHECK(queue >= 0);
	start_workers(2, letters);
	ready();
	await_go();
	board->stop = 1;
	rest(50);
	for (int i = 0; i < 2; i++)
		kill(worker_pids[i], SIGKILL), waitpid(worker_pids[i], NULL, 0);
	CHECK(msgctl(queue, IPC_RMID, NULL) == 0);
	if (!complained())
		good();
}

static void segments(int number)
{
	for (uint64_t i = 0; going(); i++) {
		int segment = shmget(IPC_PRIVATE, 65536, 0600 | IPC_CREAT);
		volatile uint64_t *words = shmat(segment, NULL, 0);

		CHECK(words != (void *)-1 && shmctl(segment, IPC_RMID, NULL) == 0);
		words[number] = i;
		pid_t child = fork();

		if (child == 0) {
			words[100] = words[number] + 1;
			_exit(shmdt((void *)words) ? 72 : 2);
		}
		ended_with(child, 2);
		SAME(words[100], i + 1);
		CHECK(shmdt((void *)words) == 0);
		tick(number);
	}
}

static void run_sysv_segments(void)
{
	start_workers(2, segments);
	finish();
}

/* POSIX message queues, by name, with priorities. */
#define END UINT64_MAX

static char queue_name[2][64];

static void mails(int number)
{
	mqd_t mine = mq_open(queue_name[number], O_RDONLY), other = mq_open(queue_name[!number], O_WRONLY);

	CHECK(mine >= 0 && other >= 0);
	for (uint64_t i = 0;; i++) {
		uint64_t words[] = { 2 * i, 2 * i + 1, END }, came;
		unsigned int priority;
		struct timespec until;

		if (number == 0)
			for (int j = 0; j < 2; j++)
				SAME(mq_send(other, (char *)&words[going() ? j : 2], 8, 1 + j), 0);
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += 100;
		for (int j = 1; j >= 0; j--) {
			ssize_t got = j ? mq_receive(mine, (char *)&came, 8, &priority) :
					  mq_timedreceive(mine, (char *)&came, 8, &priority, &until);

			SAME(got, 8);
			CHECK(came == END || came == 2 * i || came == 2 * i + 1);
			words[came == END || came % 2] = came;
		}
		if (number == 1)
			for (int j = 0; j < 2; j++)
				SAME(mq_send(other, (char *)&words[j], 8, 1 + j), 0);
		if (words[1] == END)
			return;
		CHECK(words[0] == 2 * i && words[1] == 2 * i + 1);
		tick(number);
	}
}

static void run_mails(void)
{
	struct mq_attr size = { .mq_maxmsg = 8, .mq_msgsize = 8 };

	for (int i = 0; i < 2; i++) {
		snprintf(queue_name[i], sizeof(queue_name[i]), "/motion-%d-%d", getpid(), i);
		mqd_t made = mq_open(queue_name[i], O_CREAT | O_EXCL | O_RDWR, 0600, &size);

		CHECK(made >= 0 && mq_close(made) == 0);
	}
	start_workers(2, mails);
	ready();
	await_go();
	end_workers();
	for (int i = 0; i < 2; i++)
		CHECK(mq_unlink(queue_name[i]) == 0);
	good();
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "mutex", run_mutex },
		{ "mutex_pi", run_mutex_pi },
		{ "mutex_shared", run_mutex_shared },
		{ "mutex_pi_shared", run_mutex_pi_shared },
		{ "condition", run_condition },
		{ "condition_shared", run_condition_shared },
		{ "semaphore", run_semaphore },
		{ "barrier", run_barrier },
		{ "robust", run_robust },
		{ "robust_pi", run_robust_pi },
		{ "rseq", run_rseq },
		{ "vectors", run_vectors },
		{ "sysv_semaphores", run_sysv_semaphores },
		{ "sysv_queue", run_sysv_queue },
		{ "sysv_segments", run_sysv_segments },
		{ "mails", run_mails },
		{ NULL, NULL },
	};

	CHECK(argc > 2);
	return run_mode(argv, modes);
}
