/* SPDX-License-Identifier: Apache-2.0 */
/* Files, descriptors, locks and memory that are made, changed and forgotten all the time. */
#include "motion_base.h"
#include <dirent.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/uio.h>

static void here(char *path, size_t size, const char *name, int number)
{
	snprintf(path, size, "%s/%s%d", folder, name, number);
}

/* Made, written, renamed, linked, read under the new name, unlinked while open. */
static void names(int number)
{
	char one[4200], other[4200], third[4200];

	here(one, sizeof(one), "one", number);
	here(other, sizeof(other), "other", number);
	here(third, sizeof(third), "third", number);
	for (uint64_t i = 0; going(); i++) {
		uint64_t word = 0;
		int fd = open(one, O_RDWR | O_CREAT | O_EXCL, 0600);

		CHECK(fd >= 0);
		SAME(write(fd, &i, sizeof(i)), sizeof(i));
		CHECK(rename(one, other) == 0);
		CHECK(access(one, F_OK) < 0 && errno == ENOENT);
		CHECK(link(other, third) == 0);
		CHECK(unlink(other) == 0);
		int again = open(third, O_RDONLY | O_CLOEXEC);

		CHECK(again >= 0 && unlink(third) == 0);
		SAME(pread(again, &word, sizeof(word), 0), sizeof(word));
		SAME(word, i);
		word = ~i;
		SAME(pwrite(fd, &word, sizeof(word), 8), sizeof(word));
		SAME(lseek(again, 8, SEEK_SET), 8);
		SAME(read(again, &word, sizeof(word)), sizeof(word));
		SAME(word, ~i);
		SAME(lseek(fd, 0, SEEK_CUR), 8);
		CHECK(close(fd) == 0 && close(again) == 0);
		tick(number);
	}
}

/* Files that never had a name, or have none any more. */
static void nameless(int number)
{
	char path[4200];

	here(path, sizeof(path), "nameless", number);
	for (uint64_t i = 0; going(); i++) {
		int fd = i % 2 ? open(folder, O_RDWR | O_TMPFILE, 0600) :
				 open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
		uint64_t words[64], got[64];

		CHECK(fd >= 0 && (i % 2 || unlink(path) == 0));
		for (int j = 0; j < 64; j++)
			words[j] = i * 64 + j;
		for (int j = 0; j < 20; j++)
			SAME(write(fd, words, sizeof(words)), sizeof(words));
		for (int j = 0; j < 20; j++) {
			SAME(pread(fd, got, sizeof(got), j * sizeof(got)), sizeof(got));
			SAME(memcmp(got, words, sizeof(got)), 0);
		}
		struct stat facts;

		CHECK(fstat(fd, &facts) == 0);
		SAME(facts.st_size, 20 * sizeof(words));
		SAME(facts.st_nlink, 0);
		CHECK(close(fd) == 0);
		tick(number);
	}
}

/* Descriptors of a table that threads share. */
static void descriptors(int number)
{
	while (going()) {
		int ends[2], high;
		char byte = 'x';

		CHECK(pipe2(ends, O_CLOEXEC) == 0);
		high = fcntl(ends[0], F_DUPFD, 100 + number * 10);
		CHECK(high >= 100 && fcntl(high, F_GETFD) == 0);
		CHECK(fcntl(ends[0], F_GETFD) == FD_CLOEXEC);
		CHECK(close(ends[0]) == 0);
		CHECK(write(ends[1], &byte, 1) == 1);
		CHECK(dup3(ends[1], 60 + number, O_CLOEXEC) == 60 + number && close(ends[1]) == 0);
		byte = 0;
		CHECK(read(high, &byte, 1) == 1 && byte == 'x');
		CHECK(close(60 + number) == 0);
		CHECK(read(high, &byte, 1) == 0);
		CHECK(close(high) == 0);
		tick(number);
	}
}

static void four_tables(int number)
{
	pthread_t threads[3];

	for (int i = 0; i < 3; i++)
		threads[i] = start_thread(number + 1 + i, descriptors);
	descriptors(number);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

/* Locks of three sorts, with others that wait for them. */
static struct guarded {
	volatile uint64_t inside[3], count[3];
} *guarded;

static void take(int fd, int sort, int type)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = 5, .l_len = 10 };
	int result;

	if (sort == 0)
		result = fcntl(fd, F_SETLKW, &lock);
	else if (sort == 1)
		result = fcntl(fd, F_OFD_SETLKW, &lock);
	else
		result = flock(fd, type == F_UNLCK ? LOCK_UN : LOCK_EX);
	if (result)
		bad("lock %d, %d gives %d (errno %d)", sort, type, result, errno);
}

static void locks(int number)
{
	char path[4200];
	int fds[3];

	for (int sort = 0; sort < 3; sort++) {
		here(path, sizeof(path), "locked", sort);
		fds[sort] = open(path, O_RDWR | O_CREAT, 0600);
		CHECK(fds[sort] >= 0);
	}
	for (int i = 0; going(); i++) {
		int sort = i % 3;

		take(fds[sort], sort, F_WRLCK);
		SAME(guarded->inside[sort], 0);
		guarded->inside[sort] = number + 1;
		for (volatile int j = 0; j < 500; j++)
			;
		guarded->count[sort]++;
		SAME(guarded->inside[sort], number + 1);
		guarded->inside[sort] = 0;
		take(fds[sort], sort, F_UNLCK);
		tick(number);
	}
}

static void run_locks(void)
{
	guarded = mmap(NULL, sizeof(*guarded), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	start_workers(3, locks);
	finish();
}

/* Directories that are read and removed. */
static void directories(int number)
{
	char path[4200], file[4300];

	here(path, sizeof(path), "directory", number);
	while (going()) {
		CHECK(mkdir(path, 0700) == 0);
		for (int i = 0; i < 5; i++) {
			snprintf(file, sizeof(file), "%s/%d", path, i);
			int fd = open(file, O_CREAT | O_WRONLY, 0600);

			CHECK(fd >= 0 && close(fd) == 0);
		}
		DIR *listing = opendir(path);
		int seen = 0;

		CHECK(listing);
		for (struct dirent *entry; (entry = readdir(listing));)
			if (entry->d_name[0] != '.') {
				CHECK(unlinkat(dirfd(listing), entry->d_name, 0) == 0);
				seen++;
			}
		SAME(seen, 5);
		CHECK(chdir(path) == 0 && rmdir(path) == 0 && chdir("/") == 0);
		CHECK(closedir(listing) == 0);
		tick(number);
	}
}

/* Memory: areas of all sorts, brk, mremap, memfds and files that are mapped. */
static void areas(int number)
{
	char path[4200];

	here(path, sizeof(path), "mapped", number);
	for (uint64_t i = 0; going(); i++) {
		size_t size = (1 + i % 50) * 4096;
		int fd = i % 2 ? memfd_create("motion", MFD_CLOEXEC) :
				 open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

		CHECK(fd >= 0 && ftruncate(fd, size) == 0);
		uint64_t *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		uint64_t *mine = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0), word;

		CHECK(shared != MAP_FAILED && mine != MAP_FAILED);
		for (size_t at = 0; at < size / 8; at += 512)
			shared[at] = i + at;
		mine[0] = ~i;
		SAME(pread(fd, &word, 8, 0), 8);
		SAME(word, i);
		CHECK(close(fd) == 0);
		shared = mremap(shared, size, size + 4096, MREMAP_MAYMOVE);
		CHECK(shared != MAP_FAILED);
		for (size_t at = 0; at < size / 8; at += 512)
			SAME(shared[at], i + at);
		CHECK(mprotect(mine, 4096, PROT_READ) == 0);
		SAME(mine[0], ~i);
		CHECK(munmap(mine, size) == 0 && munmap(shared, size + 4096) == 0);
		char *end = sbrk(0);

		CHECK(sbrk(40960) == end);
		end[0] = end[40959] = (char)i;
		SAME(end[0], end[40959]);
		CHECK(sbrk(-40960) == end + 40960 && sbrk(0) == end);
		char *zeros = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		CHECK(madvise(zeros, 1 << 20, i % 3 ? MADV_HUGEPAGE : MADV_DONTFORK) == 0);
		memset(zeros, 7, 1 << 20);
		CHECK(madvise(zeros + 4096, 8192, MADV_DONTNEED) == 0);
		SAME(zeros[4095], 7);
		SAME(zeros[4096], 0);
		SAME(zeros[12288], 7);
		CHECK(munmap(zeros, 1 << 20) == 0);
		tick(number);
	}
}

/* Requests of io_submit: what was asked comes, once. */
static void requests(int number)
{
	aio_context_t context = 0;
	char path[4200];
	static char out[16][512], in[16][512];

	here(path, sizeof(path), "asked", number);
	int fd = open(path, O_RDWR | O_CREAT, 0600);

	CHECK(fd >= 0 && syscall(SYS_io_setup, 16, &context) == 0);
	for (uint64_t i = 0; going(); i++) {
		for (int is_read = 0; is_read < 2; is_read++) {
			struct iocb asked[16], *all[16];
			struct io_event came[16];
			int seen = 0;

			for (int j = 0; j < 16; j++) {
				if (!is_read)
					memset(out[j], (int)(i + j), 512);
				asked[j] = (struct iocb){
					.aio_data = i * 16 + j,
					.aio_lio_opcode = is_read ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE,
					.aio_fildes = fd,
					.aio_buf = (uint64_t)(is_read ? in[j] : out[j]),
					.aio_nbytes = 512,
					.aio_offset = j * 512,
				};
				all[j] = asked + j;
			}
			SAME(syscall(SYS_io_submit, context, 16, all), 16);
			while (seen < 16) {
				long got = syscall(SYS_io_getevents, context, 1, 16, came, NULL);

				CHECK(got > 0);
				for (long j = 0; j < got; j++) {
					SAME(came[j].res, 512);
					SAME(came[j].data / 16, i);
				}
				seen += got;
			}
			SAME(seen, 16);
		}
		SAME(memcmp(in, out, sizeof(in)), 0);
		tick(number);
	}
	CHECK(syscall(SYS_io_destroy, context) == 0);
}

/* io_uring: a write, a read and a timeout in turn. */
static void ring(int number)
{
	struct io_uring_params params = { 0 };
	int uring = syscall(SYS_io_uring_setup, 8, &params), ends[2];

	CHECK(uring >= 0 && pipe(ends) == 0);
	size_t size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);

	if (size < params.sq_off.array + params.sq_entries * sizeof(unsigned))
		size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
	char *rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, uring,
			   IORING_OFF_SQ_RING);
	struct io_uring_sqe *entries = mmap(NULL, params.sq_entries * sizeof(*entries),
					    PROT_READ | PROT_WRITE, MAP_SHARED, uring,
					    IORING_OFF_SQES);

	CHECK(rings != MAP_FAILED && entries != MAP_FAILED);
	CHECK(params.features & IORING_FEAT_SINGLE_MMAP);
	volatile unsigned *sq_tail = (void *)(rings + params.sq_off.tail);
	volatile unsigned *cq_head = (void *)(rings + params.cq_off.head);
	volatile unsigned *cq_tail = (void *)(rings + params.cq_off.tail);
	unsigned *array = (void *)(rings + params.sq_off.array);
	unsigned mask = params.sq_entries - 1, cq_mask = params.cq_entries - 1;
	struct io_uring_cqe *done = (void *)(rings + params.cq_off.cqes);

	for (uint64_t i = 0; going(); i++) {
		uint64_t came = 0;

		for (int j = 0; j < 2; j++) {
			unsigned at = *sq_tail & mask;

			entries[at] = (struct io_uring_sqe){ .opcode = j ? IORING_OP_READ :
									   IORING_OP_WRITE,
							     .fd = ends[!j],
							     .addr = (uint64_t)(j ? &came : &i),
							     .len = 8,
							     .user_data = 2 * i + j };
			array[at] = at;
			__atomic_store_n(sq_tail, *sq_tail + 1, __ATOMIC_RELEASE);
			SAME(syscall(SYS_io_uring_enter, uring, 1, 1, IORING_ENTER_GETEVENTS, NULL,
				     0), 1);
			while (__atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) == *cq_head)
				syscall(SYS_io_uring_enter, uring, 0, 1, IORING_ENTER_GETEVENTS,
					NULL, 0);
			SAME(done[*cq_head & cq_mask].user_data, 2 * i + j);
			SAME(done[*cq_head & cq_mask].res, 8);
			__atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
		}
		SAME(came, i);
		tick(number);
		if (i % 64 == 0)
			usleep(1000);
	}
}

#define RUN(name, count, body, workers_)               \
	static void run_##name(void)                   \
	{                                              \
		start_workers(count, body);            \
		board->workers = workers_;             \
		finish();                              \
	}
RUN(names, 2, names, 2)
RUN(nameless, 2, nameless, 2)
RUN(descriptors, 1, four_tables, 4)
RUN(directories, 2, directories, 2)
RUN(areas, 2, areas, 2)
RUN(requests, 2, requests, 2)
RUN(ring, 2, ring, 2)

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "names", run_names },
		{ "nameless", run_nameless },
		{ "descriptors", run_descriptors },
		{ "locks", run_locks },
		{ "directories", run_directories },
		{ "areas", run_areas },
		{ "requests", run_requests },
		{ "ring", run_ring },
		{ NULL, NULL },
	};

	CHECK(argc > 2);
	return run_mode(argv, modes);
}
