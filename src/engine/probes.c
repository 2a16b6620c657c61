/* SPDX-License-Identifier: BSD-3-Clause */
/* probes.c: finding out what takes time to find out, while faults are served already. */
#include <errno.h>
#include <stdio.h>

#include "base/log.h"
#include "engine/internal.h"

/*
 * Theory of operation
 *
 * Loading the folio probe and trying what other processes' page tables and huge pages allow takes
 * a tenth of a second of a CPU, several times that on a busy host, and after a crash the VMs wait.
 * Serving a fault needs none of it, so a thread of its own finds it out:
 *
 *   - a VM that is taken over is served at once. Until all is known nothing of it is evicted
 *     (SUSPEND_PROBING), and it has no tracker. Whatever decides on the guard looks at `suspended`
 *     first: where SUSPEND_PROBING is clear, `probe` and `features` are what they will stay.
 *   - whoever decides for good on what was found (a new block's kind), or reports it, waits
 *     (probes_wait). Nobody else's memory waits for these.
 *
 * A VM gets SUSPEND_PROBING before it looks whether the probes are done; they are done before their
 * thread goes through the VMs. So one of the two lifts it.
 */

/* What the probes found for one VM; any thread, more than once is fine. */
static void apply(struct vm *vm)
{
	struct engine *eng = vm->eng;

	if (!atomic_load(&eng->probe) && !eng->config.allow_quarantine)
		vm_suspend(vm, SUSPEND_NO_GUARD, true);
	if (!eng->features.collapse_safe && eng->features.shmem_thp)
		vm_suspend(vm, SUSPEND_COLLAPSE, true);
	vm_suspend(vm, SUSPEND_PROBING, false);
}

void probes_apply(struct vm *vm)
{
	atomic_fetch_or(&vm->suspended, SUSPEND_PROBING);
	if (probes_done(vm->eng))
		apply(vm);
}

static void open_probe(struct engine *eng)
{
	struct folio_probe *probe;
	struct error why;

	if (eng->config.no_probe) {
		snprintf(eng->probe_reason, sizeof(eng->probe_reason), "switched off");
	} else if (folio_probe_open(&probe, &why)) {
		snprintf(eng->probe_reason, sizeof(eng->probe_reason), "%.150s", why.desc);
		log_warning("no folio probe: %s", why.desc);
		if (!eng->config.allow_quarantine)
			log_warning("nothing will be evicted: without the probe that is the "
				    "operator's choice (quarantine)");
	} else {
		atomic_store(&eng->probe, probe);
	}
}

static void *probes_main(void *arg)
{
	struct engine *eng = arg;
	unsigned int n = 0;

	sys_features_probe_slow(&eng->features);
	for (int f = 0; f < SYS_FEATURES; f++)
		if (eng->features.why[f][0])
			log_info("without %s: %s", sys_feature_name((enum sys_feature)f),
				 eng->features.why[f]);
	open_probe(eng);
	pthread_mutex_lock(&eng->probes.lock);
	atomic_store(&eng->probes.done, true);
	pthread_cond_broadcast(&eng->probes.changed);
	pthread_mutex_unlock(&eng->probes.lock);
	pthread_mutex_lock(&eng->lock);
	for (struct vm *vm = eng->vms; vm; vm = vm->next, n++)
		apply(vm);
	pthread_mutex_unlock(&eng->lock);
	log_debug("the kernel is known now; %u VMs were there already", n);
	return NULL;
}

int probes_start(struct engine *eng)
{
	int r;

	pthread_mutex_init(&eng->probes.lock, NULL);
	pthread_cond_init(&eng->probes.changed, NULL);
	r = pthread_create(&eng->probes.thread, NULL, probes_main, eng);
	if (r)
		return -r;
	pthread_setname_np(eng->probes.thread, "ebb-probes");
	eng->probes.started = true;
	return 0;
}

void probes_wait(struct engine *eng)
{
	pthread_mutex_lock(&eng->probes.lock);
	while (!atomic_load(&eng->probes.done))
		pthread_cond_wait(&eng->probes.changed, &eng->probes.lock);
	pthread_mutex_unlock(&eng->probes.lock);
}

void probes_end(struct engine *eng)
{
	if (!eng->probes.started)
		return;
	pthread_join(eng->probes.thread, NULL);
	eng->probes.started = false;
}
