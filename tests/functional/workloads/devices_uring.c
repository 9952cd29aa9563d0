/* SPDX-License-Identifier: Apache-2.0 */
/* io_uring: idle, with completions that nobody took, with a waiting thread; busy is refused. */
#include "core_base.h"
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct ring {
	int fd;
	struct io_uring_params p;
	char *rings;
	struct io_uring_sqe *requests;
	unsigned tail;
};

static volatile int woken;

static unsigned *at(struct ring *r, unsigned offset)
{
	return (unsigned *)(r->rings + offset);
}

static void set_up(struct ring *r, unsigned entries, unsigned flags)
{
	memset(r, 0, sizeof(*r));
	r->p.flags = flags;
	r->fd = syscall(SYS_io_uring_setup, entries, &r->p);
	if (r->fd < 0) {
		put("ready", "lacking: io_uring");
		await_go();
		_exit(0);
	}
	size_t size = r->p.sq_off.array + r->p.sq_entries * 4;

	r->rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd,
			IORING_OFF_SQ_RING);
	r->requests = mmap(NULL, r->p.sq_entries * 64, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES);
	CHECK(r->rings != MAP_FAILED && r->requests != MAP_FAILED);
}

static void submit(struct ring *r, struct io_uring_sqe one)
{
	unsigned slot = r->tail & *at(r, r->p.sq_off.ring_mask);

	r->requests[slot] = one;
	at(r, r->p.sq_off.array)[slot] = slot;
	__atomic_store_n(at(r, r->p.sq_off.tail), ++r->tail, __ATOMIC_RELEASE);
	SAME(syscall(SYS_io_uring_enter, r->fd, 1, 0, 0, NULL, 0), 1);
}

static void nop(struct ring *r, uint64_t data)
{
	submit(r, (struct io_uring_sqe){ .opcode = IORING_OP_NOP, .user_data = data });
}

static void take(struct ring *r, uint64_t wanted, int result)
{
	unsigned *head = at(r, r->p.cq_off.head), *tail = at(r, r->p.cq_off.tail);

	while (__atomic_load_n(tail, __ATOMIC_ACQUIRE) == *head)
		CHECK(syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) >= 0);
	struct io_uring_cqe *given = (void *)(r->rings + r->p.cq_off.cqes);
	struct io_uring_cqe one = given[*head & *at(r, r->p.cq_off.ring_mask)];

	SAME(one.user_data, wanted);
	SAME(one.res, result);
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
}

static void *waits(void *ring)
{
	take(ring, 77, 0);
	woken = 1;
	return NULL;
}

static void used(void)
{
	struct ring fresh, r, small;
	char path[4096], room[8];
	static char shared[8];
	struct pollfd one = { .events = POLLIN };
	pthread_t thread;

	set_up(&fresh, 4, 0);
	set_up(&r, 32, 0 | IORING_SETUP_COOP_TASKRUN);
	set_up(&small, 1, 0);
	snprintf(path, sizeof(path), "%s/data", folder);
	int fd = open(path, O_RDWR | O_CREAT, 0600);

	CHECK(fd >= 0 && write(fd, "somedata", 8) == 8);
	for (int i = 0; i < 5000; i++) {
		nop(&r, i);
		take(&r, i, 0);
	}
	for (int i = 0; i < 9; i++)
		nop(&r, 100 + i);
	nop(&small, 1);
	take(&small, 1, 0);
	CHECK(!pthread_create(&thread, NULL, waits, &fresh));
	ready();
	await_go();
	SAME(woken, 0);
	one.fd = r.fd;
	SAME(poll(&one, 1, 0), 1);
	for (int i = 0; i < 9; i++)
		take(&r, 100 + i, 0);
	SAME(poll(&one, 1, 0), 0);
	submit(&r, (struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = fd, .user_data = 5,
					  .addr = (uintptr_t)shared, .len = 8 });
	take(&r, 5, 8);
	CHECK(!memcmp(shared, "somedata", 8));
	for (int i = 0; i < 300; i++) {
		nop(&r, i);
		take(&r, i, 0);
		submit(&small, (struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = fd,
						      .user_data = i, .off = 4,
						      .addr = (uintptr_t)room, .len = 4 });
		take(&small, i, 4);
		CHECK(!memcmp(room, "data", 4));
	}
	nop(&fresh, 77);
	CHECK(!pthread_join(thread, NULL));
	SAME(woken, 1);
	good();
}

static void inherited(void)
{
	struct ring r;
	int status;

	set_up(&r, 8, 0);
	nop(&r, 3);
	pid_t child = fork();

	if (!child) {
		await_go();
		take(&r, 3, 0);
		_exit(0);
	}
	ready();
	await_go();
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	SAME(*at(&r, r.p.cq_off.head), 1);
	nop(&r, 4);
	take(&r, 4, 0);
	good();
}

static void busy(void)
{
	struct ring r;
	int ends[2];
	char room[4];

	set_up(&r, 8, 0);
	CHECK(!pipe(ends));
	submit(&r, (struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = ends[0], .user_data = 5,
					  .addr = (uintptr_t)room, .len = 4 });
	ready();
	await_go();
	CHECK(write(ends[1], "abcd", 4) == 4);
	take(&r, 5, 4);
	good();
}

static void registered(void)
{
	struct ring r;
	int fd = 0;

	set_up(&r, 8, 0);
	CHECK(!syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_FILES, &fd, 1));
	ready();
	await_go();
	good();
}

int main(int argc, char **argv)
{
	begin(argv);
	const char *state = argc > 2 ? argv[2] : "used";

	if (!strcmp(state, "used"))
		used();
	else if (!strcmp(state, "inherited"))
		inherited();
	else if (!strcmp(state, "busy"))
		busy();
	else
		registered();
	return 0;
}
