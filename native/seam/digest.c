// SPDX-License-Identifier: Apache-2.0
/*
 * Digests of pages files: XXH64 of each piece, then XXH64 of those numbers, in
 * little-endian order.  Against flipped bits and lost writes, not against people.
 * Source: xxHash fast digest algorithm, doc/xxhash_spec.md (0.8), XXH64, seed 0.
 */
#include "seam_internal.h"

#include <stdlib.h>
#include <string.h>

#define PRIME1 0x9E3779B185EBCA87ull
#define PRIME2 0xC2B2AE3D27D4EB4Full
#define PRIME3 0x165667B19E3779F9ull
#define PRIME4 0x85EBCA77C2B2AE63ull
#define PRIME5 0x27D4EB2F165667C5ull

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "lanes are read as they lie");

static uint64_t rotated(uint64_t value, int bits)
{
	return value << bits | value >> (64 - bits);
}

static uint64_t lane(const unsigned char *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

static uint64_t mixed(uint64_t sum, uint64_t input)
{
	return rotated(sum + input * PRIME2, 31) * PRIME1;
}

static uint64_t merged(uint64_t sum, uint64_t part)
{
	return (sum ^ mixed(0, part)) * PRIME1 + PRIME4;
}

static uint64_t ended(uint64_t sum, const unsigned char *at, size_t left)
{
	uint32_t half;

	for (; left >= 8; at += 8, left -= 8)
		sum = rotated(sum ^ mixed(0, lane(at)), 27) * PRIME1 + PRIME4;
	if (left >= 4) {
		memcpy(&half, at, sizeof(half));
		sum = rotated(sum ^ half * PRIME1, 23) * PRIME2 + PRIME3;
		at += 4;
		left -= 4;
	}
	for (; left; at++, left--)
		sum = rotated(sum ^ *at * PRIME5, 11) * PRIME1;
	sum = (sum ^ sum >> 33) * PRIME2;
	sum = (sum ^ sum >> 29) * PRIME3;
	return sum ^ sum >> 32;
}

uint64_t seam_xxh64(const void *data, size_t size)
{
	const unsigned char *at = data;
	size_t left = size;
	uint64_t sum = PRIME5;

	if (size >= 32) {
		uint64_t a = PRIME1 + PRIME2, b = PRIME2, c = 0, d = 0 - PRIME1;

		for (; left >= 32; at += 32, left -= 32) {
			a = mixed(a, lane(at));
			b = mixed(b, lane(at + 8));
			c = mixed(c, lane(at + 16));
			d = mixed(d, lane(at + 24));
		}
		sum = rotated(a, 1) + rotated(b, 7) + rotated(c, 12) + rotated(d, 18);
		sum = merged(merged(merged(merged(sum, a), b), c), d);
	}
	return ended(sum + size, at, left);
}

struct digest_job {
	const char *buffer; /* or NULL: the file */
	int fd;
	uint64_t size, *pieces;
	unsigned int threads;
	int errors[MAX_THREADS];
};

static void digest_share(void *argument, unsigned int index)
{
	struct digest_job *job = argument;
	char *room = job->buffer ? NULL : malloc(DIGEST_PIECE);
	uint64_t at;

	if (!job->buffer && !room)
		job->errors[index] = -ENOMEM;
	for (at = index * DIGEST_PIECE; at < job->size && !job->errors[index];
	     at += job->threads * DIGEST_PIECE) {
		uint64_t left = job->size - at, size = left < DIGEST_PIECE ? left : DIGEST_PIECE;

		if (room)
			job->errors[index] = read_file(job->fd, room, size, at);
		job->pieces[at / DIGEST_PIECE] = seam_xxh64(room ? room : job->buffer + at, size);
	}
	free(room);
}

/* Digest of `size` bytes at `buffer`, or of the file when that is NULL. */
int seam_digest(const void *buffer, int fd, uint64_t size, unsigned int threads, uint64_t *digest)
{
	struct digest_job job = { .buffer = buffer, .fd = fd, .size = size, .threads = threads };
	size_t count = (size + DIGEST_PIECE - 1) / DIGEST_PIECE;
	unsigned int i;
	int result;

	job.pieces = calloc(count + 1, sizeof(*job.pieces));
	if (!job.pieces)
		return -ENOMEM;
	result = run_threads(threads, digest_share, &job);
	for (i = 0; i < threads && !result; i++)
		result = job.errors[i];
	*digest = seam_xxh64(job.pieces, count * sizeof(*job.pieces));
	free(job.pieces);
	return result;
}
