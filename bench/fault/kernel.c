/* SPDX-License-Identifier: BSD-3-Clause */
/* kernel.c: the same load on memory that the kernel itself swaps. */
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int measure(const struct swap_setup *s, const struct guest_content *c, uint64_t bytes,
		   const struct guest_load *loads, unsigned int n, int tell)
{
	struct guest_ram ram = {.pages = bytes / GUEST_PAGE, .unit_bytes = GUEST_PAGE};
	uint64_t wrong;
	int r = swap_enter(s);

	if (r)
		return r;
	ram.at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ram.at == MAP_FAILED)
		return -errno;
	madvise(ram.at, bytes, MADV_NOHUGEPAGE);
	guest_fill(c, &ram);
	for (unsigned int i = 0; i < n; i++) {
		struct guest_figures f;

		r = guest_run(&ram, &loads[i], &f);
		if (r)
			return r;
		if (write(tell, &f, sizeof(f)) != (ssize_t)sizeof(f))
			return -EPIPE;
	}
	wrong = guest_wrong_pages(c, &ram);
	return write(tell, &wrong, sizeof(wrong)) == (ssize_t)sizeof(wrong) ? 0 : -EPIPE;
}

int kernel_run(const struct swap_setup *s, const struct guest_content *c, uint64_t bytes,
	       const struct guest_load *loads, unsigned int n, struct guest_figures *out,
	       uint64_t *wrong)
{
	int tell[2], status = 0, r = 0;
	pid_t pid;

	if (pipe2(tell, O_CLOEXEC))
		return -errno;
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(tell[0]);
		_exit(-measure(s, c, bytes, loads, n, tell[1]) & 0xff);
	}
	close(tell[1]);
	for (unsigned int i = 0; i < n && !r; i++)
		if (read(tell[0], &out[i], sizeof(out[i])) != (ssize_t)sizeof(out[i]))
			r = -ECANCELED;
	if (!r && read(tell[0], wrong, sizeof(*wrong)) != (ssize_t)sizeof(*wrong))
		r = -ECANCELED;
	close(tell[0]);
	if (pid > 0 && r)
		kill(pid, SIGKILL); /* a signal to us */
	if (pid > 0)
		waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status))
		r = -WEXITSTATUS(status);
	return pid < 0 ? -EAGAIN : r;
}
