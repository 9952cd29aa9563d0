/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the Python side calls in C: one section for each file of native/seam.
 *
 * cffi reads this page as it stands (lines that begin with # are left out), so
 * it holds plain declarations only.  Every function returns 0 or a value that
 * is not negative, or -errno.  No function decides, prints or keeps state.
 */
#ifndef TORPOR_SEAM_H
#define TORPOR_SEAM_H

#include <stddef.h>
#include <stdint.h>

/* ptrace.c: all calls for a task must come from the thread that seized it.
 * seize, set_options and stop_all always add PTRACE_O_TRACESYSGOOD: without it
 * a task whose tracer dies at a system call stop is killed by SIGTRAP. */
int seam_seize(int tid, uint64_t options);
int seam_interrupt(int tid);
int seam_kill(int tid);
int seam_set_options(int tid, uint64_t options);
int seam_resume(int request, int tid, int signal);
int seam_wait(int tid, int64_t timeout_ns, int *status);
int seam_stop_all(const int *tids, size_t count, uint64_t options, int64_t timeout_ns,
		  int *results);
int seam_await_event_stop(int tid, int64_t timeout_ns);
int seam_settle(int tid, int stopped, int64_t timeout_ns);
int seam_event_message(int tid, uint64_t *message);
int seam_get_regs(int tid, uint64_t *regs, size_t count);
int seam_set_regs(int tid, const uint64_t *regs, size_t count);
int seam_get_regset(int tid, unsigned int type, void *buffer, size_t size);
int seam_set_regset(int tid, unsigned int type, const void *buffer, size_t size);
int seam_get_sigmask(int tid, uint64_t *mask);
int seam_set_sigmask(int tid, uint64_t mask);
int seam_pending_signals(int tid, int shared, unsigned int first, void *siginfos, int count);
int seam_get_siginfo(int tid, void *siginfo);
int seam_rseq_config(int tid, uint64_t *values);
int seam_user_dispatch(int tid, uint64_t *values);
int seam_seccomp_filter(int tid, unsigned int index, void *instructions);
int seam_seccomp_flags(int tid, unsigned int index, uint64_t *flags);

int seam_release(int tid, const uint64_t *regs);
/* Of those whose result is 0: with the 27 words of theirs where `others` says so. */
void seam_release_all(const int *tids, size_t count, const uint64_t *regs,
		      const unsigned char *others, int *results);

/* facts.c: what is asked of many stopped threads at once. */
struct seam_facts {
	int tid;
	int error; /* out: of the first question without an answer */
	uint64_t regs[27], mask, dispatch;
	uint64_t rseq[4], rseq_cs;
	uint64_t robust[2];
	uint64_t affinity[128];
	int affinity_size, nice, policy, priority, ioprio;
	int code_size; /* 0: not readable */
	char code[34]; /* 32 bytes before rip, two behind */
	int xstate_room, xstate_size;
	char *xstate;
};
void seam_ask_facts(struct seam_facts *threads, size_t count);
void seam_get_regs_of(const int *tids, size_t count, uint64_t *regs, int *results);

/* Files read whole, each to its place in room (sizes: or -errno). -ENOBUFS: room is too small. */
int seam_read_texts(const char *const *paths, size_t count, char *room, size_t size,
		    unsigned int threads, int64_t *sizes, uint64_t *places);

/* remote.c: system calls run by a stopped task.  A call is 7 words: number and
 * six arguments.  base holds the registers for everything else. */
int seam_remote_calls(int tid, const uint64_t *base, const uint64_t *calls, size_t count,
		      int64_t timeout_ns, int64_t *results);

/* borrow.c: the same for many tasks at once, with their nets (engine/kernel/remote.py). A pattern
 * is all that nets of many threads have in common (engine/kernel/pattern.py): the bytes of a net,
 * and what is put in for each thread. */
struct seam_sum { /* a word is added to: multiples of the region's address and the ids */
	uint64_t at, region, process, thread;
};
struct seam_piece { /* bytes are put in: of registers 0, the mask 1, the XSAVE area 2 */
	int source, from, at, size;
};
struct seam_edit { /* a register is set: to a sum of a register before (-1: none) and a word */
	int64_t to, from;
	uint64_t plus, region; /* and a multiple of the region's address */
};
struct seam_pass { /* to the signal (kernel/chain.py) */
	uint64_t first, last; /* rsp, and rsp at the end, from the region's address on */
	uint64_t r10, r8, r8_region;
};
struct seam_pattern {
	const char *content;
	size_t size;
	const struct seam_sum *sums;
	size_t sum_count;
	const struct seam_piece *pieces;
	size_t piece_count;
	const struct seam_edit *armed, *base;
	size_t armed_count, base_count;
	const struct seam_pass *passes;
	size_t pass_count;
	size_t answer_at, answer_size; /* of the region, read after the calls */
};
/* The regions of one wave do not overlap, and waves follow each other in the table; none comes
 * after one with an error. Each task's error is its own. */
struct seam_borrow {
	int wave;
	int signal; /* not 0: the pattern's passes to this signal */
	int error; /* out */
	int spread; /* out: the task was touched */
	const struct seam_facts *facts; /* who, and how it stands */
	const struct seam_pattern *pattern;
	uint64_t region; /* where the net lies in the task */
	uint64_t process, thread; /* its ids as it sees them */
	const struct seam_edit *restart; /* of the registers in its frame */
	size_t restart_count;
	char *net, *saved; /* room for a net, and for what was there */
	const uint64_t *calls; /* 7 words each */
	size_t call_count;
	int64_t *results;
	char *answer;
};
int seam_arm(int tid, const uint64_t *armed);
int seam_disarm(int tid, uint64_t mask, const uint64_t *original);
void seam_borrow_all(struct seam_borrow *tasks, size_t count, int64_t timeout_ns);

/* task.c: what is asked about another task without stopping it. */
int seam_robust_list(int tid, uint64_t *head, uint64_t *length);
int seam_ioprio(int tid);
int seam_pidfd_open(int pid, int flags);
int seam_pidfd_getfd(int pidfd, int fd);
int seam_release_memory(int pid);
int seam_kcmp(int pid1, int pid2, int type, uint64_t index1, uint64_t index2);

/* fds.c: what /proc tells of descriptors: stat(2), and link and text of fdinfo one behind the other
 * in `room`.  Several threads share the work.  -ENOBUFS when there is not room for all.  With an
 * earlier answer, by ascending fd, it is said which are as they were. */
struct seam_fd {
	int fd; /* in */
	int link_size, info_size, error; /* out: -errno; `error` is stat's */
	int same; /* out: as before */
	uint64_t at; /* out: of the link */
	uint64_t mode, dev, ino, rdev, size, nlink, uid, gid, blksize;
};
struct seam_looked {
	const struct seam_fd *fds;
	size_t count;
	const char *room;
};
int seam_look_fds(int pid, struct seam_fd *fds, size_t count, char *room, size_t size,
		  unsigned int threads, const struct seam_looked *before);

/* ask.c: questions to copies of a task's descriptors.  For each an answer in `room`: what the call
 * gave (-errno), the number of bytes, the bytes; the next one at a multiple of 8 behind its room. */
struct seam_question {
	int call, first, second, size;
};
struct seam_asked {
	int fd, unclear; /* out: an answer is an error that means something, or too long */
	const struct seam_question *questions;
	size_t count;
	uint64_t at;
	const char *path; /* of its link, where that is asked for */
};
int seam_ask_fds(int pid, int pidfd, int root, struct seam_asked *rows, size_t count, char *room,
		 unsigned int threads);

/* Places of descriptors in kcmp's order of descriptions; the same one for the same description. */
int seam_order_files(const int *pids, const int *fds, size_t count, int *ranks);

/* Options of a socket, given as (level, number): values, and -errno or the size of each. */
void seam_int_options(int fd, const int *wanted, size_t count, int *values, int *sizes);

/* memory.c: runs are pairs (address, length) or triples (address, length,
 * offset in the file).  Several threads share the work. capture_forked is for memory that is
 * shared copy-on-write with other tasks, and leaves it so. */
int64_t seam_read_memory(int pid, uint64_t address, void *buffer, size_t size);
int64_t seam_write_memory(int pid, uint64_t address, const void *buffer, size_t size);
int64_t seam_capture_runs(int pid, const uint64_t *runs, size_t count, void *buffer,
			  unsigned int threads);
int64_t seam_capture_forked(int pid, const uint64_t *runs, size_t count, void *buffer,
			    unsigned int threads);
int64_t seam_compare_runs(int pid, const uint64_t *runs, size_t count, int fd,
			  uint64_t *different, size_t room);
int seam_punch(int fd, int64_t offset, int64_t size); /* a hole in a file; its length stays */

/* fill.c: what runs of a file hold, written to memory of a task; returns the bytes of the runs.
 * The size is that of the file when a digest (see seam_digest) is wanted, else where runs end. */
struct seam_fill {
	int pid, fd;
	const uint64_t *runs; /* triples as above, by offset in the file and not overlapping there */
	size_t count;
	const uint64_t *ranges; /* triples by address: address, length, address in a staging area; */
	size_t range_count; /* multiples of 2 MiB, but where the last is 0: not to be staged */
	uint64_t staging; /* where that area begins */
	unsigned char *places; /* answer for each huge page: 1 in the staging area, 2 in place */
	int uffd; /* all ranges are registered with it, and nothing is there; or -1 */
	uint64_t size;
	unsigned int threads;
	int with_digest;
	uint64_t digest; /* answer */
};
int64_t seam_fill(struct seam_fill *asked);

/* lazy.c: pages of a file by UFFDIO_COPY; bytes that are there now (before, too), and why no more. */
uint64_t seam_copy_pages(int uffd, uint64_t target, int fd, uint64_t offset, uint64_t size,
			 int *error);
/* The same, of pages that we have. */
uint64_t seam_put_pages(int uffd, uint64_t target, const void *pages, uint64_t size, int *error);

/* digest.c: of a buffer, or of a file when that is NULL. */
uint64_t seam_xxh64(const void *data, size_t size);
int seam_digest(const void *buffer, int fd, uint64_t size, unsigned int threads,
		uint64_t *digest);

/* buffer.c: room of our own, of huge pages where there are any. */
int seam_buffer_map(size_t size, void **buffer);
int seam_buffer_populate(void *buffer, size_t size, unsigned int threads);
int seam_buffer_unmap(void *buffer, size_t size);

/* pages.c: pages that lie one behind the other in an image, and where each part of them is:
 * origin 0 at an address of ours, 1 in the task `number`, 2 in the file `number`, where an
 * address is an offset. */
struct seam_extent {
	uint32_t origin;
	int32_t number;
	uint64_t address, size;
};
/* Bytes from start, a multiple of 1 MiB, to the same place of a file; digests has room for one
 * of each 256 KiB of the whole. failed_call: 0 reading, 1 writing. Lenient has zeros for what a
 * task has no more. */
int seam_write_pages(const struct seam_extent *extents, size_t count, int fd,
		     unsigned int threads, int lenient, uint64_t start, uint64_t size,
		     uint64_t *digests, int *failed_call);
int seam_read_pages(const struct seam_extent *extents, size_t count, uint64_t offset,
		    uint64_t size, char *room);
/* Runs are triples: offset in the pages, bytes, offset in the file; all whole pages. same[N] is
 * set to 1 where page N is in the file already. */
int seam_same_pages(const struct seam_extent *extents, size_t count, int fd, const uint64_t *runs,
		    size_t run_count, unsigned char *same);

/* pagemap.c: found ranges are triples (start, end, categories). */
int64_t seam_scan_pages(int pagemap_fd, uint64_t *position, uint64_t end, const uint64_t *masks,
			uint64_t flags, uint64_t *ranges, size_t room);

/* spawn.c */
struct seam_spawn {
	const char *path;
	const char *const *argv;
	const char *const *envp;
	int set_tid; /* 0: the kernel chooses */
	int stdio[3]; /* -1: as ours */
	const int *kept; /* open in the child as 3, 4, ... */
	int kept_count;
	int new_session;
	int dies_with; /* pid of the parent that it does not outlive; 0: it may */
	uint64_t flags; /* CLONE_NEW*, ... */
	const char *clocks; /* of a time namespace of its own, for timens_offsets; or NULL */
	int clocks_size;
	int time_namespace; /* one to enter instead, as a descriptor; -1: none */
	int failed_call; /* out: 0 clone3, 1 execve or what prepared it */
};
int seam_spawn_seed(struct seam_spawn *spawn);

/* cpu.c: this processor, and its XSAVE area. */
void seam_cpuid(unsigned int leaf, unsigned int subleaf, unsigned int *answer);
int seam_xsave_component(unsigned int number, unsigned int *offset, unsigned int *size);
unsigned int seam_xsave_size(uint64_t *features);

#endif
