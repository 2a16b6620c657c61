/* SPDX-License-Identifier: BSD-3-Clause */
/* vm.c: stands in for a VMM: guest RAM in a memfd, every page of it known. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "attach/native.h"

#define PAGE 4096

/* Half of each page differs from all others, half is text that compresses. */
static void page_fill(unsigned char *page, uint64_t number)
{
	uint64_t x = number * 0x9e3779b97f4a7c15u + 1;

	memset(page, 'e', PAGE);
	for (size_t i = 0; i < PAGE / 2; i += sizeof(x)) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(page + i, &x, sizeof(x));
	}
}

static size_t pages_wrong(const unsigned char *ram, size_t pages)
{
	unsigned char want[PAGE];
	size_t wrong = 0;

	for (size_t i = 0; i < pages; i++) {
		page_fill(want, i);
		wrong += memcmp(ram + i * PAGE, want, PAGE) != 0;
	}
	return wrong;
}

/* Without the library, and keeping nothing for the daemon but the userfaultfd. */
static bool attach_plainly(const char *socket, const char *name, const struct native_ram *mem)
{
	struct native *client;

	if (native_open(socket, &client))
		return false;
	if (!native_attach(client, name, mem, 1, 0))
		return true;
	fprintf(stderr, "%s\n", native_error(client));
	return false;
}

/*
 * vm MEBIBYTES [SOCKET NAME]: attaches by itself if it is told where, prints "ready", then answers
 * each line of its input: "resident" with the KiB that the memfd holds, "check" with the number of
 * pages whose content is wrong.
 */
int main(int argc, char **argv)
{
	size_t bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 64) << 20;
	struct native_ram mem;
	unsigned char *ram;
	struct stat st;
	char line[64];

	if (native_ram_make(&mem, "guest-ram", bytes, NATIVE_SHMEM))
		return 1;
	ram = mem.addr;
	for (size_t i = 0; i < bytes / PAGE; i++)
		page_fill(ram + i * PAGE, i);
	if (argc > 3 && !attach_plainly(argv[2], argv[3], &mem))
		return 1;
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "check\n"))
			printf("%zu\n", pages_wrong(ram, bytes / PAGE));
		else if (!strcmp(line, "resident\n") && !fstat(mem.memfd, &st))
			printf("%lld\n", (long long)st.st_blocks / 2);
		fflush(stdout);
	}
	return 0;
}
