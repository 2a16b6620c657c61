/* SPDX-License-Identifier: BSD-3-Clause */
/* vm.c: stands in for a VMM: guest RAM in a memfd, every page of it known. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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

/*
 * vm MEBIBYTES: prints "ready", then answers each line of its input: "resident" with the KiB that
 * the memfd holds, "check" with the number of pages whose content is wrong.
 */
int main(int argc, char **argv)
{
	size_t bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 64) << 20;
	int fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	unsigned char *ram;
	struct stat st;
	char line[64];

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		return 1;
	ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ram == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < bytes / PAGE; i++)
		page_fill(ram + i * PAGE, i);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "check\n"))
			printf("%zu\n", pages_wrong(ram, bytes / PAGE));
		else if (!strcmp(line, "resident\n") && !fstat(fd, &st))
			printf("%lld\n", (long long)st.st_blocks / 2);
		fflush(stdout);
	}
	return 0;
}
