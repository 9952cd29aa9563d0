/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counter [PORT [HEAP_MIB]]: a service whose state is in its memory only, so that a client can tell
 * a process that was moved from one that was started afresh.
 *
 * At its start it draws a random identity and fills its heap with a sequence that follows from it.
 * Every 10 ms it counts, and writes the count to the next page of the first half of the heap; once a
 * second it prints the count. A connection to PORT gets one line of JSON:
 *   counter   passes so far
 *   identity  drawn at the start: another one means another process
 *   checksum  of the second half of the heap, which is never written after the start
 *   intact    whether each page of the first half holds the last count that was written to it
 *   pid       as the process sees it
 *
 * counter --query [PORT]: prints what the service on the loopback address answers; status 0 if it is
 * intact. It is what a probe and `kubectl exec` run, because the image has no other program.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define TICK_MS 10
#define TICKS_A_SECOND (1000 / TICK_MS)
#define DEFAULT_PORT 8080
#define DEFAULT_HEAP_MIB 16

struct state {
	uint64_t identity;
	uint64_t counter;
	size_t page_count; /* of each half */
	unsigned char *counted;
	unsigned char *constant;
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* splitmix64, Steele, Lea and Flood, 2014 */
static uint64_t next(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static void start(struct state *state, size_t heap_mib)
{
	uint64_t seed, word;
	size_t i, bytes;

	if (getrandom(&state->identity, sizeof(state->identity), 0) != sizeof(state->identity))
		fail("getrandom");
	state->page_count = heap_mib * 1024 * 1024 / PAGE_BYTES / 2;
	bytes = state->page_count * PAGE_BYTES;
	state->counted = calloc(1, bytes);
	state->constant = malloc(bytes);
	if (!state->counted || !state->constant)
		fail("malloc");
	seed = state->identity;
	for (i = 0; i < bytes; i += sizeof(word)) {
		word = next(&seed);
		memcpy(state->constant + i, &word, sizeof(word));
	}
}

static void tick(struct state *state)
{
	size_t page;

	state->counter++;
	page = state->counter % state->page_count;
	memcpy(state->counted + page * PAGE_BYTES, &state->counter, sizeof(state->counter));
	if (state->counter % TICKS_A_SECOND == 0) {
		printf("count %llu\n", (unsigned long long)state->counter);
		fflush(stdout);
	}
}

/* FNV-1a over 64-bit words */
static uint64_t checksum(const struct state *state)
{
	uint64_t sum = 0xcbf29ce484222325ULL, word;
	size_t i;

	for (i = 0; i < state->page_count * PAGE_BYTES; i += sizeof(word)) {
		memcpy(&word, state->constant + i, sizeof(word));
		sum = (sum ^ word) * 0x100000001b3ULL;
	}
	return sum;
}

static int intact(const struct state *state)
{
	uint64_t held, expected, seed = state->identity, word;
	size_t page, i;

	for (page = 0; page < state->page_count; page++) {
		memcpy(&held, state->counted + page * PAGE_BYTES, sizeof(held));
		expected = state->counter - (state->counter + state->page_count - page) % state->page_count;
		if (state->counter < (state->counter + state->page_count - page) % state->page_count)
			expected = 0;
		if (held != expected)
			return 0;
	}
	for (i = 0; i < state->page_count * PAGE_BYTES; i += sizeof(word)) {
		memcpy(&word, state->constant + i, sizeof(word));
		if (word != next(&seed))
			return 0;
	}
	return 1;
}

static void answer(const struct state *state, int connection)
{
	char line[256];
	int length;

	length = snprintf(line, sizeof(line),
			  "{\"counter\": %llu, \"identity\": \"%016llx\", \"checksum\": \"%016llx\", "
			  "\"intact\": %s, \"pid\": %d}\n",
			  (unsigned long long)state->counter, (unsigned long long)state->identity,
			  (unsigned long long)checksum(state), intact(state) ? "true" : "false", getpid());
	if (send(connection, line, (size_t)length, MSG_NOSIGNAL) < 0)
		perror("send");
	close(connection);
}

static struct sockaddr_in address(uint32_t host, int port)
{
	struct sockaddr_in found = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(host),
		.sin_port = htons((uint16_t)port),
	};

	return found;
}

static int query(int port)
{
	struct sockaddr_in server = address(INADDR_LOOPBACK, port);
	char line[256];
	ssize_t length = 0, got;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof(server)))
		fail("connect");
	while ((got = read(fd, line + length, sizeof(line) - 1 - (size_t)length)) > 0)
		length += got;
	line[length] = '\0';
	fputs(line, stdout);
	return strstr(line, "\"intact\": true") ? 0 : 1;
}

static void finish(int number)
{
	(void)number;
	_exit(0);
}

int main(int argc, char **argv)
{
	int port = argc > 1 ? atoi(argv[1]) : DEFAULT_PORT;
	int one = 1, connection;
	struct state state = { 0 };
	struct sockaddr_in here;
	struct pollfd listener = { .events = POLLIN };

	if (argc > 1 && strcmp(argv[1], "--query") == 0)
		return query(argc > 2 ? atoi(argv[2]) : DEFAULT_PORT);
	signal(SIGTERM, finish);
	start(&state, argc > 2 ? strtoul(argv[2], NULL, 10) : DEFAULT_HEAP_MIB);
	listener.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	here = address(INADDR_ANY, port);
	setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener.fd, (struct sockaddr *)&here, sizeof(here)) || listen(listener.fd, 16))
		fail("listen");
	for (;;) {
		int ready = poll(&listener, 1, TICK_MS);

		if (ready < 0 && errno != EINTR)
			fail("poll");
		if (ready > 0) {
			connection = accept4(listener.fd, NULL, NULL, SOCK_CLOEXEC);
			if (connection >= 0)
				answer(&state, connection);
			continue;
		}
		tick(&state);
	}
}
