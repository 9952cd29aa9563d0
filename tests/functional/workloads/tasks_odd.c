/* SPDX-License-Identifier: Apache-2.0 */
/* Tasks and threads that are seldom seen: names, no libc, many threads, dead owners, moved areas. */
#include "core_base.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define MANY 300

static const char *mode;
static volatile int running, go_on, failed;
static pthread_mutex_t robust, inheriting;
static volatile long *raw_counter;

static int is(const char *name)
{
	return strcmp(mode, name) == 0;
}

static void comm_of(int tid, char *text)
{
	char path[64];
	int fd, got;

	snprintf(path, sizeof(path), "/proc/self/task/%d/comm", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	got = read(fd, text, 63);
	CHECK(fd >= 0 && got > 0);
	text[got] = 0;
	close(fd);
}

static const char *names[] = { "a b) (c", "line\nbreak", "b\\ack\tslash", "\xc3\xa4\xff", "", ")" };

static void *named(void *which)
{
	char mine[64], now[64];

	CHECK(!prctl(PR_SET_NAME, names[(long)which], 0, 0, 0));
	comm_of(syscall(SYS_gettid), mine);
	__atomic_fetch_add(&running, 1, __ATOMIC_SEQ_CST);
	while (!go_on)
		rest(5);
	comm_of(syscall(SYS_gettid), now);
	if (strcmp(mine, now))
		failed = 1;
	return 0;
}

static void *counting(void *which)
{
	int tid = syscall(SYS_gettid);
	volatile int local = (long)which;

	__atomic_fetch_add(&running, 1, __ATOMIC_SEQ_CST);
	while (!go_on)
		rest(20);
	if (local != (long)which || tid != syscall(SYS_gettid))
		failed = 1;
	return 0;
}

/* of clone itself: no TLS of its own, no rseq, no robust list, no place to clear */
static int raw(void *counter)
{
	volatile long *up = counter;

	for (;;) {
		struct timespec some = { 0, 2000000 };

		++*up;
		syscall(SYS_nanosleep, &some, 0);
	}
	return 0;
}

static void *holder(void *nothing)
{
	CHECK(!pthread_mutex_lock(&robust) && !pthread_mutex_lock(&inheriting));
	running = 1;
	while (!go_on)
		rest(5);
	return nothing; /* with both locks held */
}

static void raw_thread(void)
{
	char *stack = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(clone(raw, stack + 65536,
		    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
		    (void *)raw_counter) > 0);
	while (*raw_counter < 3)
		rest(2);
}

/* PR_SET_MM_MAP, which needs no right, with all but the arguments as they are in stat */
static void move_arguments(char *room)
{
	struct prctl_mm_map map = { 0 };
	char stat[2000] = "";
	unsigned long long n[60] = { 0 };
	int fd = open("/proc/self/stat", O_RDONLY), i = 3;

	CHECK(read(fd, stat, sizeof(stat) - 1) > 0);
	for (char *word = strtok(strrchr(stat, ')') + 2, " "); word; word = strtok(0, " "))
		n[i++] = strtoull(word, 0, 10);
	close(fd);
	map.start_code = n[26], map.end_code = n[27], map.start_stack = n[28];
	map.start_data = n[45], map.end_data = n[46], map.start_brk = n[47];
	map.brk = (unsigned long)sbrk(0);
	map.arg_start = (unsigned long)room, map.arg_end = (unsigned long)room + 16;
	map.env_start = n[50], map.env_end = n[51];
	map.exe_fd = -1;
	CHECK(!prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0));
}

static void moved_arguments(void)
{
	char *room = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	strcpy(room, "moved arguments");
	move_arguments(room);
}

static void check_arguments(void)
{
	char text[64] = "";
	int fd = open("/proc/self/cmdline", O_RDONLY);

	SAME(read(fd, text, sizeof(text)), 16);
	CHECK(!strcmp(text, "moved arguments"));
}

static void again(char **argv)
{
	char *empty[] = { 0 };
	char *huge = malloc(100000), *folder_text;

	if (getenv("SECOND"))
		return;
	memset(huge, 'x', 99999);
	memcpy(huge, "HUGE=", 5);
	huge[99999] = 0;
	CHECK(asprintf(&folder_text, "FOLDER=%s", argv[1]) > 0);
	char *environment[] = { huge, "SECOND=2", folder_text, 0 };

	execve("/proc/self/exe", empty, environment);
	bad("exec");
}

int main(int argc, char **argv)
{
	static pthread_t threads[MANY];
	pthread_mutexattr_t kind;
	int count = 0;

	if (argc < 3) { /* executed again, with an empty argument vector */
		mode = "no_arguments";
		folder = getenv("FOLDER");
		CHECK(folder && strlen(getenv("HUGE")) == 99994);
	} else {
		begin(argv);
		mode = argv[2];
		if (is("no_arguments"))
			again(argv);
	}
	raw_counter = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (is("names"))
		for (count = 0; count < 6; count++)
			CHECK(!pthread_create(&threads[count], 0, named, (void *)(long)count));
	else if (is("many_threads"))
		for (count = 0; count < MANY; count++)
			CHECK(!pthread_create(&threads[count], 0, counting, (void *)(long)count));
	else if (is("raw_clone"))
		raw_thread();
	else if (is("dead_owner")) {
		pthread_mutexattr_init(&kind);
		pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
		CHECK(!pthread_mutex_init(&robust, &kind));
		pthread_mutexattr_setprotocol(&kind, PTHREAD_PRIO_INHERIT);
		CHECK(!pthread_mutex_init(&inheriting, &kind));
		CHECK(!pthread_create(&threads[0], 0, holder, 0));
		while (!running)
			rest(1);
	} else if (is("moved_arguments"))
		moved_arguments();
	while (running < count)
		rest(1);
	ready();
	await_go();
	go_on = 1;
	for (int i = 0; i < count; i++)
		CHECK(!pthread_join(threads[i], 0));
	CHECK(!failed);
	if (is("raw_clone")) {
		long before = *raw_counter;

		while (*raw_counter < before + 3)
			rest(2);
	} else if (is("dead_owner")) {
		CHECK(!pthread_join(threads[0], 0));
		SAME(pthread_mutex_lock(&robust), EOWNERDEAD);
		SAME(pthread_mutex_lock(&inheriting), EOWNERDEAD);
	} else if (is("moved_arguments"))
		check_arguments();
	else if (is("no_arguments"))
		CHECK(argc <= 1 && strlen(getenv("HUGE")) == 99994);
	good();
	return 0;
}
