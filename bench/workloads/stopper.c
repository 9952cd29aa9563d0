/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stopper PID: milliseconds from the first stop to the last letting go of all threads of a process
 * and of its children, each of them seized, stopped, and asked for its registers and signal mask.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

#define MOST 4096

static int tasks[MOST], count;

static double now_ms(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static void add_threads(int pid)
{
	char path[64];
	struct dirent *entry;
	DIR *directory;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	directory = opendir(path);
	while (directory && (entry = readdir(directory)))
		if (entry->d_name[0] != '.' && count < MOST)
			tasks[count++] = atoi(entry->d_name);
	if (directory)
		closedir(directory);
}

static void add_children(int pid)
{
	char path[64];
	FILE *file;
	int child;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	file = fopen(path, "r");
	while (file && fscanf(file, "%d", &child) == 1)
		add_threads(child);
	if (file)
		fclose(file);
}

int main(int argc, char **argv)
{
	int pid = argc > 1 ? atoi(argv[1]) : 0, status;
	double begin;

	add_threads(pid);
	add_children(pid);
	begin = now_ms();
	for (int i = 0; i < count; i++)
		if (ptrace(PTRACE_SEIZE, tasks[i], 0, 0) || ptrace(PTRACE_INTERRUPT, tasks[i], 0, 0))
			return 1;
	for (int i = 0; i < count; i++) {
		struct user_regs_struct registers;
		struct iovec room = { &registers, sizeof(registers) };
		uint64_t mask;

		if (waitpid(tasks[i], &status, __WALL) != tasks[i] ||
		    ptrace(PTRACE_GETREGSET, tasks[i], NT_PRSTATUS, &room) ||
		    ptrace(PTRACE_GETSIGMASK, tasks[i], sizeof(mask), &mask))
			return 1;
	}
	for (int i = 0; i < count; i++)
		ptrace(PTRACE_DETACH, tasks[i], 0, 0);
	printf("%.3f\n", now_ms() - begin);
}
