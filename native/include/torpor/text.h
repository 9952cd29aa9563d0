/* SPDX-License-Identifier: Apache-2.0 */
/* Text for programs without a libc: bounded lines on stderr, numbers, comparison. */
#ifndef TORPOR_TEXT_H
#define TORPOR_TEXT_H

#include "torpor/sys.h"

#define LINE_BYTES 512

/* One line of output; what does not fit is cut off. */
struct line {
	size_t used;
	char text[LINE_BYTES];
};

static inline size_t text_length(const char *text)
{
	size_t length = 0;

	while (text[length])
		length++;
	return length;
}

static inline int text_equal(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

/* The last byte is kept for the newline of line_write. */
static inline void line_add_bytes(struct line *line, const char *bytes, size_t count)
{
	for (size_t i = 0; i < count && line->used + 1 < LINE_BYTES; i++)
		line->text[line->used++] = bytes[i];
}

static inline void line_add(struct line *line, const char *text)
{
	line_add_bytes(line, text, text_length(text));
}

static inline void line_add_number(struct line *line, long number)
{
	unsigned long rest = number < 0 ? -(unsigned long)number : (unsigned long)number;
	char digits[24];
	size_t at = sizeof(digits);

	do {
		digits[--at] = (char)('0' + rest % 10);
		rest /= 10;
	} while (rest);
	if (number < 0)
		digits[--at] = '-';
	line_add_bytes(line, digits + at, sizeof(digits) - at);
}

static inline void line_write(struct line *line, int fd)
{
	line->text[line->used++] = '\n';
	(void)sys_write(fd, line->text, line->used);
	line->used = 0;
}

/* A decimal number from 0 to limit and nothing else, or -1. */
static inline long text_number(const char *text, long limit)
{
	long number = 0;

	if (!*text)
		return -1;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return -1;
		number = number * 10 + (*text - '0');
		if (number > limit)
			return -1;
	}
	return number;
}

#endif
