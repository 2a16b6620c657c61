/* SPDX-License-Identifier: BSD-3-Clause */
/* zram.c: a zram device as swap, for a while. */
#include "zram.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL "/sys/class/zram-control"

int file_get(const char *path, char *buf, unsigned int size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, buf, size - 1);
	if (n < 0)
		n = -errno;
	close(fd);
	if (n < 0)
		return (int)n;
	buf[n] = 0;
	buf[strcspn(buf, "\n")] = 0;
	return 0;
}

int file_put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), r = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		r = -errno;
	close(fd);
	return r;
}

static int zram_put(const struct zram *z, const char *name, const char *text)
{
	char path[96];

	snprintf(path, sizeof(path), "/sys/block/zram%d/%s", z->id, name);
	return file_put(path, text);
}

static int zram_get(const struct zram *z, const char *name, char *buf, unsigned int size)
{
	char path[96];

	snprintf(path, sizeof(path), "/sys/block/zram%d/%s", z->id, name);
	return file_get(path, buf, size);
}

static int modprobe(const char *option)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		int null = open("/dev/null", O_RDWR);

		dup2(null, 1);
		dup2(null, 2);
		execlp("modprobe", "modprobe", option, "zram", (char *)NULL);
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 ? 0 : -1;
}

static bool other_swap(void)
{
	char buf[512];
	FILE *f = fopen("/proc/swaps", "re");
	int lines = 0;

	while (f && fgets(buf, sizeof(buf), f))
		lines++;
	if (f)
		fclose(f);
	return lines > 1;
}

/* A device without a size is in nobody's use. */
static int find(struct zram *z)
{
	char buf[64];

	if (access(CONTROL, F_OK) && modprobe("-q") == 0)
		z->loaded = true;
	for (z->id = 0; z->id < 16; z->id++)
		if (zram_get(z, "disksize", buf, sizeof(buf)) == 0 && strcmp(buf, "0") == 0)
			return 0;
	z->id = -1;
	if (file_get(CONTROL "/hot_add", buf, sizeof(buf)))
		return -1;
	z->id = atoi(buf);
	z->made = true;
	return 0;
}

/* The header that mkswap(8) writes: version 1, the last page's number, the magic at its end. */
static int write_header(const char *path, uint64_t bytes)
{
	uint32_t page[1024] = {0};
	int fd = open(path, O_WRONLY | O_CLOEXEC), r = 0;

	if (fd < 0)
		return -errno;
	page[1024 / 4] = 1;
	page[1024 / 4 + 1] = (uint32_t)(bytes / sizeof(page) - 1);
	memcpy((char *)page + sizeof(page) - 10, "SWAPSPACE2", 10);
	if (write(fd, page, sizeof(page)) != (ssize_t)sizeof(page) || fsync(fd))
		r = errno ? -errno : -EIO;
	close(fd);
	return r;
}

static void remember_codec(struct zram *z)
{
	char buf[256], *open_, *close_;

	if (zram_get(z, "comp_algorithm", buf, sizeof(buf)))
		return;
	open_ = strchr(buf, '[');
	close_ = open_ ? strchr(open_, ']') : NULL;
	if (close_)
		snprintf(z->codec, sizeof(z->codec), "%.*s", (int)(close_ - open_ - 1), open_ + 1);
}

int zram_on(struct zram *z, uint64_t bytes, char *why, unsigned int size)
{
	char path[64], text[32];

	*z = (struct zram){.id = -1};
	if (other_swap()) {
		snprintf(why, size, "this machine swaps already");
		return -1;
	}
	if (find(z)) {
		snprintf(why, size, "no zram device (module zram, and root)");
		return -1;
	}
	remember_codec(z);
	snprintf(path, sizeof(path), "/dev/zram%d", z->id);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)bytes);
	if (zram_put(z, "comp_algorithm", "lz4")) {
		snprintf(why, size, "this kernel's zram has no lz4");
		return -1;
	}
	if (zram_put(z, "disksize", text) || write_header(path, bytes) ||
	    swapon(path, SWAP_FLAG_PREFER)) {
		snprintf(why, size, "cannot swap to %s: %s", path, strerror(errno));
		return -1;
	}
	z->swapping = true;
	return 0;
}

int zram_off(struct zram *z, char *why, unsigned int size)
{
	char path[64], text[32];

	if (z->id < 0)
		return 0;
	snprintf(path, sizeof(path), "/dev/zram%d", z->id);
	if (z->swapping && swapoff(path)) {
		snprintf(why, size, "swapoff %s: %s", path, strerror(errno));
		return -1;
	}
	/* Busy while udev looks at it. */
	for (int i = 0; zram_put(z, "reset", "1") && i < 50; i++)
		usleep(20000);
	if (z->codec[0])
		zram_put(z, "comp_algorithm", z->codec);
	snprintf(text, sizeof(text), "%d", z->id);
	if (z->made)
		file_put(CONTROL "/hot_remove", text);
	if (z->loaded)
		modprobe("-r");
	return 0;
}
