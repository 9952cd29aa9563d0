/* SPDX-License-Identifier: Apache-2.0 */
/* The one thing needed of the state that an OCI runtime hands to its hooks: "id". */
#ifndef TORPOR_STATEJSON_H
#define TORPOR_STATEJSON_H

#include <stddef.h>

/*
 * Finds the string of `key` in the outermost object of a JSON text.  Returns its
 * length and sets *value, or -1 when it is not there or has an escape in it (an
 * id never has).  Depth is counted, strings are stepped over, nothing is copied.
 */
static inline long state_string(const char *text, size_t length, const char *key, const char **value)
{
	int depth = 0, is_value = 0, is_match = 0;

	for (size_t i = 0; i < length; i++) {
		size_t start, k;

		switch (text[i]) {
		case '{':
		case '[':
			depth++;
			is_value = 0;
			continue;
		case '}':
		case ']':
			depth--;
			is_value = 0;
			continue;
		case ':':
			is_value = 1;
			continue;
		case ',':
			is_value = 0;
			continue;
		case '"':
			break;
		default:
			continue;
		}
		start = ++i;
		while (i < length && text[i] != '"') {
			if (text[i] == '\\') {
				if (depth == 1 && is_value && is_match)
					return -1;
				i++;
			}
			i++;
		}
		if (i >= length)
			return -1;
		if (depth != 1)
			continue;
		if (is_value && is_match) {
			*value = text + start;
			return (long)(i - start);
		}
		if (is_value)
			continue;
		for (k = 0; key[k] && start + k < i && text[start + k] == key[k]; k++)
			;
		is_match = !key[k] && start + k == i;
	}
	return -1;
}

#endif
