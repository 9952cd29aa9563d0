/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unmaps its vDSO (its code only, with a second argument), and tells what is left of it.
 *
 *     vdso_gone FOLDER [code]
 *
 * Writes before.json; when ask-N is there, after-N.json.  Nothing here may ask the time.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int special(const char *line)
{
	return strstr(line, "[vdso]") || strstr(line, "[vvar");
}

static void tell(const char *name)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r"), *out = fopen("answer.new", "w");
	int count = 0;

	fprintf(out, "{\"special\": [");
	while (fgets(line, sizeof(line), maps))
		if (special(line))
			fprintf(out, "%s\"%s\"", count++ ? ", " : "", strchr(line, '[')),
				fseek(out, -2, SEEK_CUR), fprintf(out, "\"");
	fprintf(out, "]}");
	fclose(maps);
	fclose(out);
	rename("answer.new", name);
}

int main(int argc, char **argv)
{
	unsigned long start[8], end[8];
	char line[512], ask[] = "ask-0", answer[] = "after-0.json";
	int count = 0;
	FILE *maps = fopen("/proc/self/maps", "r");

	if (chdir(argv[1]))
		return 2;
	while (fgets(line, sizeof(line), maps))
		if (argc > 2 ? !!strstr(line, "[vdso]") : special(line))
			sscanf(line, "%lx-%lx", &start[count], &end[count]), count++;
	fclose(maps);
	while (count--)
		if (munmap((void *)start[count], end[count] - start[count]))
			return 3;
	tell("before.json");
	for (int number = 1; number < 4; number++) {
		ask[4] = answer[6] = (char)('0' + number);
		while (access(ask, F_OK))
			usleep(10000);
		tell(answer);
	}
	return 0;
}
