/* SPDX-License-Identifier: BSD-3-Clause */
/* handover.c: all VMs of a living daemon, given to its successor. */
#include "engine/handover.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "engine/internal.h"
#include "engine/shelf.h"
#include "engine/vm_record.h"
#include "sys/memfd.h"

/*
 * Theory of operation
 *
 * The engine stands still (pause.c), so every entry of every table is at rest and nothing has to
 * be repaired: tables and stores go along as descriptors, and what the daemon knew of them as
 * JSON, which docs/upgrade.md describes. Nothing is copied that grows with the RAM. Numbers that
 * entries contain stay as they are: a backend has the same tier there.
 *
 * The successor builds its VMs while the old daemon could still go on: until
 * engine_take_over() it changes nothing that is shared (tables, stores, userfaultfds). If it
 * fails before, it just ends.
 *
 * Left behind: what only costs time (the refault ring, hints of faults, prefetches asked for).
 */

/* ---- small things ---- */

static json_t *integer(uint64_t n)
{
	return json_integer((json_int_t)n);
}

static json_t *words(const _Atomic uint64_t *w, uint64_t n)
{
	json_t *list = json_array();

	for (uint64_t i = 0; i < n; i++)
		json_array_append_new(list, integer(atomic_load(&w[i])));
	return list;
}

static uint64_t number(const json_t *obj, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(obj, name));
}

static const char *text(const json_t *obj, const char *name)
{
	const char *t = json_string_value(json_object_get(obj, name));

	return t ? t : "";
}

static int copy_text(const json_t *obj, const char *name, char *out, size_t room)
{
	const char *t = text(obj, name);

	if (strlen(t) >= room)
		return -ENAMETOOLONG;
	strcpy(out, t);
	return 0;
}

static const json_t *list(const json_t *obj, const char *name)
{
	return json_object_get(obj, name);
}

/* ---- what is prepared ahead: backends and policies ---- */

json_t *handover_plugins(struct engine *eng)
{
	json_t *backends = json_array(), *policies = json_array();

	pthread_mutex_lock(&eng->lock);
	for (unsigned int t = 1; t < PE_TIERS; t++) {
		struct backend_slot *slot = &eng->slots[t];
		struct backend *be = atomic_load(&slot->backend);

		if (!be)
			continue;
		json_array_append_new(backends,
				      json_pack("{s:i, s:s, s:s, s:b, s:O}", "tier", (int)t, "name",
						slot->name, "driver", slot->driver, "exclusive",
						(backend_caps(be) & EBB_BACKEND_EXCLUSIVE) != 0,
						"options", slot->options));
	}
	for (struct policy_slot *s = eng->policies; s; s = s->next)
		json_array_append_new(policies,
				      json_pack("{s:s, s:s}", "name", policy_name(s->policy),
						"file", policy_file(s->policy)));
	pthread_mutex_unlock(&eng->lock);
	return json_pack("{s:o, s:o}", "backends", backends, "policies", policies);
}

static int add_backend(struct engine *eng, const json_t *b, struct error *e)
{
	struct ebb_option opts[64];
	uint32_t n = 0;
	const char *name;
	json_t *value;

	json_object_foreach(json_object_get(b, "options"), name, value) {
		if (n == sizeof(opts) / sizeof(opts[0]) || !json_is_string(value))
			return error_set(e, EINVAL, ERROR_ARGUMENT, "backend %s: bad options",
					 text(b, "name"));
		opts[n++] = (struct ebb_option){name, json_string_value(value)};
	}
	return backends_add_at(eng, (unsigned int)number(b, "tier"), text(b, "name"),
			       text(b, "driver"), opts, n, e);
}

int handover_open_plugins(struct engine *eng, const json_t *plugins, bool exclusive,
			  struct error *e)
{
	struct error ignored;
	json_t *item;
	size_t i;
	int r;

	if (!exclusive)
		probes_wait(eng); /* it would be without eviction for so long */

	json_array_foreach(json_object_get(plugins, "backends"), i, item) {
		if (json_is_true(json_object_get(item, "exclusive")) != exclusive)
			continue;
		r = add_backend(eng, item, e);
		if (r)
			return r;
	}
	if (exclusive)
		return 0;
	json_array_foreach(json_object_get(plugins, "policies"), i, item) {
		/* This version's own of that name, else the file that the old daemon had. */
		if (engine_policy_load(eng, text(item, "name"), NULL, &ignored))
			r = engine_policy_load(eng, text(item, "name"), text(item, "file"), e);
		else
			r = 0;
		if (r)
			return r;
	}
	return 0;
}

int handover_quiesce(struct engine *eng, struct error *e)
{
	for (unsigned int t = 1; t < PE_TIERS; t++) {
		struct backend *be = atomic_load(&eng->slots[t].backend);
		int r = be ? backend_quiesce(be) : 0;

		if (r)
			return error_set(e, -r, ERROR_GENERIC,
					 "backend %s cannot be handed over: %s", eng->slots[t].name,
					 error_text(r));
	}
	return 0;
}

void handover_resume(struct engine *eng)
{
	for (unsigned int t = 1; t < PE_TIERS; t++) {
		struct backend *be = atomic_load(&eng->slots[t].backend);
		int r = be ? backend_resume(be) : 0;

		if (r)
			log_error("backend %s cannot go on: %s", eng->slots[t].name, error_text(r));
	}
}

/* ---- policies' own state ---- */

#define POLICY_STATE_MAX (UINT64_C(64) << 20)

static json_t *export_policy(struct vm *vm, struct vm_policy *p, struct parcel *out)
{
	struct policy_instance *i = atomic_load(&p->instance);
	json_t *j;
	void *buf;
	int64_t n;
	int fd;

	if (!i)
		return NULL;
	j = json_pack("{s:s, s:O}", "name", p->name, "options", p->options);
	buf = malloc(POLICY_STATE_MAX);
	n = buf ? policy_save(i, buf, POLICY_STATE_MAX) : -ENOMEM;
	fd = n > 0 ? memfd_make("ebb:policy-state", (uint64_t)n) : -1;
	/* Without it the policy starts cold there. */
	if (fd >= 0 && pwrite(fd, buf, (size_t)n, 0) == n) {
		json_object_set_new(j, "state", parcel_add_fd(out, fd));
		json_object_set_new(j, "state-bytes", json_integer(n));
		json_object_set_new(j, "state-version", json_integer(policy_state_version(i)));
		p->saved_fd = fd;
	} else if (fd >= 0) {
		close(fd);
	}
	free(buf);
	(void)vm;
	return j;
}

static void import_policy(struct vm *vm, uint32_t role, struct vm_policy *p, const json_t *j,
			  struct parcel *in)
{
	struct ebb_policy_option opts[64];
	uint64_t bytes = number(j, "state-bytes");
	uint32_t n = 0;
	const char *name;
	json_t *value;
	struct error e;
	void *buf = NULL;
	int fd = parcel_take_fd(in, json_object_get(j, "state"));

	json_object_foreach(json_object_get(j, "options"), name, value)
		if (n < sizeof(opts) / sizeof(opts[0]) && json_is_string(value))
			opts[n++] = (struct ebb_policy_option){name, json_string_value(value)};
	if (policies_give(vm, role, text(j, "name"), opts, n, &e)) {
		log_warning("VM %s goes on without policy %s: %s", vm->name, text(j, "name"),
			    e.desc);
		goto out;
	}
	if (fd < 0 || !bytes || bytes > POLICY_STATE_MAX)
		goto out;
	buf = malloc(bytes);
	if (!buf || pread(fd, buf, bytes, 0) != (ssize_t)bytes)
		goto out;
	pthread_mutex_lock(&vm->policy_lock);
	if (policy_restore(atomic_load(&p->instance), buf, bytes,
			   (uint32_t)number(j, "state-version")))
		log_info("VM %s: policy %s starts cold", vm->name, text(j, "name"));
	pthread_mutex_unlock(&vm->policy_lock);
out:
	free(buf);
	fd_close(&fd);
}

/* ---- one VM out ---- */

static json_t *export_hist(const struct hist *h)
{
	json_t *buckets = json_array();

	for (unsigned int i = 0; i < HIST_BUCKETS; i++)
		if (h->bucket[i])
			json_array_append_new(
				buckets, json_pack("[i, I]", (int)i, (json_int_t)h->bucket[i]));
	return json_pack("{s:I, s:I, s:I, s:o}", "count", (json_int_t)h->count, "sum",
			 (json_int_t)h->sum, "max", (json_int_t)h->max, "buckets", buckets);
}

static json_t *export_counters(const struct vm *vm)
{
	json_t *j = json_object();

#define COUNTER(name, json_name, help) \
	json_object_set_new(j, json_name, integer(atomic_load(&vm->counter[COUNTER_##name])));
#include "engine/counters.def"
#undef COUNTER
	return j;
}

static json_t *export_accounts(const struct vm *vm)
{
	json_t *tiers = json_array(), *moved = json_array();

	for (unsigned int t = 0; t < PE_TIERS; t++) {
		json_array_append_new(tiers, json_integer(atomic_load(&vm->tier_units[t])));
		json_array_append_new(moved,
				      json_integer((json_int_t)atomic_load(&vm->moved_out[t])));
	}
	return json_pack(
		"{s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "resident",
		(json_int_t)atomic_load(&vm->resident), "evicted",
		(json_int_t)atomic_load(&vm->evicted), "zero", (json_int_t)atomic_load(&vm->zero),
		"lost", (json_int_t)atomic_load(&vm->lost), "copies",
		(json_int_t)atomic_load(&vm->copies), "evicted-ever",
		(json_int_t)atomic_load(&vm->evicted_ever), "tiers", tiers, "moved", moved);
}

static json_t *export_stores(const struct vm *vm, struct parcel *out)
{
	json_t *j = json_array();

	for (unsigned int i = 0; i < vm->n_stores; i++) {
		const struct store_memory *s = &vm->stores[i];

		if (s->name[0])
			json_array_append_new(j, json_pack("{s:s, s:o, s:I, s:b}", "name", s->name,
							   "fd", parcel_add_fd(out, s->fd), "bytes",
							   (json_int_t)s->bytes, "kept", s->kept));
	}
	return j;
}

static json_t *export_block(struct block *b, struct parcel *out)
{
	json_t *pins = json_array(), *j;

	for (unsigned int i = 0; i < atomic_load(&b->n_pins); i++)
		json_array_append_new(pins, json_pack("[I, I, i]", (json_int_t)b->pins[i].first,
						      (json_int_t)b->pins[i].count,
						      (int)b->pins[i].nest));
	j = json_pack("{s:s, s:i, s:b, s:o, s:I, s:I, s:I, s:I, s:I, s:s, s:o}", "id", b->id,
		      "kind", (int)b->kind, "minor", b->minor, "fd", parcel_add_fd(out, b->memfd),
		      "device", (json_int_t)b->dev, "inode", (json_int_t)b->ino, "offset",
		      (json_int_t)b->memfd_offset, "bytes", (json_int_t)b->bytes, "first-unit",
		      (json_int_t)b->first_unit, "table", b->table_name, "pins", pins);
	json_object_set_new(j, "guest-addr", integer(b->guest_addr));
	if (b->split)
		json_object_set_new(j, "split", words(b->split, (block_extents(b) + 63) / 64));
	return j;
}

static json_t *export_attachment(struct vm *vm, struct attachment *att, struct parcel *out)
{
	json_t *maps = json_array();

	for (unsigned int i = 0; i < atomic_load(&att->n_mappings); i++) {
		struct mapping *m = atomic_load(&att->mappings[i]);

		if (m)
			json_array_append_new(maps,
					      json_pack("{s:s, s:s, s:I, s:I, s:I, s:b}", "id",
							m->id, "block", m->block->id, "host-addr",
							(json_int_t)m->host_addr, "first-unit",
							(json_int_t)m->first_unit, "units",
							(json_int_t)m->units, "primary",
							atomic_load(&m->block->mappings[0]) == m));
	}
	(void)vm;
	return json_pack("{s:I, s:o, s:o, s:i, s:I, s:b, s:o}", "serial", (json_int_t)att->serial,
			 "uffd", parcel_add_fd(out, att->uffd), "pidfd",
			 parcel_add_fd(out, att->pidfd), "pid", (int)att->pid, "uid",
			 (json_int_t)att->uid, "secondary", att->secondary, "mappings", maps);
}

/* A space's secret, as numbers. It stays between two processes of the daemon's user. */
static json_t *export_key(const uint8_t key[SPACE_KEY_BYTES])
{
	json_t *list = json_array();
	uint64_t word;

	for (size_t i = 0; i < SPACE_KEY_BYTES; i += sizeof(word)) {
		memcpy(&word, key + i, sizeof(word));
		json_array_append_new(list, integer(word));
	}
	return list;
}

static void import_key(const json_t *list, uint8_t key[SPACE_KEY_BYTES])
{
	json_t *item;
	uint64_t word;
	size_t i;

	json_array_foreach(list, i, item) {
		word = (uint64_t)json_integer_value(item);
		if (i < SPACE_KEY_BYTES / sizeof(word))
			memcpy(key + i * sizeof(word), &word, sizeof(word));
	}
}

static json_t *export_settings(const struct vm *vm)
{
	json_t *tiers = json_array(), *spaces = json_array(), *marks = json_array(), *j;

	for (unsigned int i = 0; i < vm->n_tiers; i++) {
		unsigned int t = vm->tiers[i];

		json_array_append_new(tiers, json_integer(t));
		json_array_append_new(marks, json_pack("[I, I]",
						       (json_int_t)atomic_load(&vm->tier_high[t]),
						       (json_int_t)atomic_load(&vm->tier_low[t])));
	}
	for (unsigned int t = 1; t < PE_TIERS; t++)
		if (atomic_load(&vm->spaces[t]))
			json_array_append_new(
				spaces, json_pack("{s:i, s:I, s:o}", "tier", (int)t, "ram-bytes",
						  (json_int_t)vm->space_ram_bytes[t], "key",
						  export_key(vm->space_key[t])));
	j = json_pack("{s:I, s:I, s:i, s:s, s:o, s:o}", "limit",
		      (json_int_t)atomic_load(&vm->limit_bytes), "floor",
		      (json_int_t)atomic_load(&vm->floor_bytes), "weight",
		      (int)atomic_load(&vm->weight), "granularity", vm->granularity, "tiers", tiers,
		      "spaces", spaces);
	json_object_set_new(j, "tier-marks", marks);
	return j;
}

static json_t *export_vm(struct vm *vm, json_t *policies, struct parcel *out)
{
	json_t *blocks = json_array(), *atts = json_array(), *peers = json_array(),
	       *unkeep = json_array(), *reserve = json_array(), *j;

	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b)
			json_array_append_new(blocks, export_block(b, out));
	}
	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_load(&vm->attachments[i]);

		/* A stand-in is this process's own: the successor makes one. */
		if (att && !att->stand_in && !atomic_load(&att->dead))
			json_array_append_new(atts, export_attachment(vm, att, out));
	}
	for (unsigned int i = 0; i < HUGE_RESERVE_MAX; i++)
		if (huge_reserve_fd(vm, i) >= 0)
			json_array_append_new(reserve, parcel_add_fd(out, huge_reserve_fd(vm, i)));
	for (unsigned int i = 0; i < vm->n_peers; i++)
		json_array_append_new(peers, json_integer(vm->peers[i]));
	for (unsigned int i = 0; i < vm->n_unkeep; i++)
		json_array_append_new(unkeep, json_string(vm->unkeep[i]));
	j = json_pack("{s:s, s:s, s:I, s:I, s:i, s:b, s:I, s:I}", "name", vm->name, "uuid",
		      vm->uuid, "uid", (json_int_t)vm->uid, "units",
		      (json_int_t)atomic_load(&vm->units), "tables-made", (int)vm->tables_made,
		      "keep", vm->keep, "suspended", (json_int_t)atomic_load(&vm->suspended),
		      "sweep-hand", (json_int_t)vm->sweep_hand);
	json_object_set_new(j, "orphaned", json_boolean(atomic_load(&vm->orphaned)));
	if (!j)
		return NULL;
	json_object_set_new(j, "settings", export_settings(vm));
	json_object_set_new(j, "accounts", export_accounts(vm));
	json_object_set_new(j, "counters", export_counters(vm));
	json_object_set_new(j, "fault-latency", export_hist(&vm->fault_latency));
	json_object_set_new(j, "stores", export_stores(vm, out));
	json_object_set_new(j, "blocks", blocks);
	json_object_set_new(j, "attachments", atts);
	json_object_set_new(j, "peers", peers);
	json_object_set_new(j, "unkeep", unkeep);
	json_object_set_new(j, "huge-reserve", reserve);
	if (vm->shelf)
		json_object_set_new(j, "shelf", shelf_export(vm->shelf));
	json_object_set(j, "policies", policies);
	return j;
}

void handover_save_policies(struct engine *eng, struct parcel *out)
{
	json_t *all = json_object();

	for (struct vm *vm = eng->vms; vm; vm = vm->next) {
		json_t *j = json_object(), *one;

		one = export_policy(vm, &vm->reclaim, out);
		if (one)
			json_object_set_new(j, "reclaim", one);
		one = export_policy(vm, &vm->prefetch, out);
		if (one)
			json_object_set_new(j, "prefetch", one);
		json_object_set_new(all, vm->name, j);
	}
	json_object_set_new(out->body, "policies", all);
}

void handover_saved_drop(struct engine *eng)
{
	for (struct vm *vm = eng->vms; vm; vm = vm->next) {
		fd_close(&vm->reclaim.saved_fd);
		fd_close(&vm->prefetch.saved_fd);
	}
}

int handover_export(struct engine *eng, struct parcel *out, struct error *e)
{
	json_t *vms = json_array();

	for (struct vm *vm = eng->vms; vm; vm = vm->next) {
		json_t *j;

		if (atomic_load(&vm->dead))
			continue;
		j = export_vm(vm, json_object_get(json_object_get(out->body, "policies"), vm->name),
			      out);
		if (!j || json_array_append_new(vms, j)) {
			json_decref(vms);
			return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
		}
	}
	json_object_set_new(out->body, "vms", vms);
	json_object_set_new(out->body, "serial", integer(atomic_load(&eng->serial)));
	return 0;
}

/* ---- one VM in ---- */

static int bad(struct error *e, const char *vm, const char *what)
{
	return error_set(e, EUCLEAN, ERROR_ARGUMENT, "VM %s: %s", vm, what);
}

static int import_stores(struct vm *vm, const json_t *j, struct parcel *in, struct error *e)
{
	json_t *item;
	size_t i;

	json_array_foreach(list(j, "stores"), i, item) {
		int fd = parcel_take_fd(in, json_object_get(item, "fd"));
		int r = vm_store_inherit(vm, text(item, "name"), fd, number(item, "bytes"),
					 json_is_true(json_object_get(item, "kept")));

		if (r)
			return error_set(e, -r, ERROR_ARGUMENT, "VM %s: store %s: %s", vm->name,
					 text(item, "name"), error_text(r));
	}
	json_array_foreach(list(j, "unkeep"), i, item)
		if (vm->n_unkeep < VM_STORES_MAX)
			snprintf(vm->unkeep[vm->n_unkeep++], STORE_NAME_MAX, "%s",
				 json_string_value(item));
	return 0;
}

static int import_pins(struct block *b, const json_t *pins)
{
	json_t *item;
	size_t i;

	json_array_foreach(pins, i, item) {
		json_int_t first, count;
		int nest;

		if (i >= BLOCK_PINS_MAX || json_unpack(item, "[I, I, i]", &first, &count, &nest))
			return -EUCLEAN;
		b->pins[i] = (struct pin){(uint64_t)first, (uint64_t)count, (unsigned int)nest};
		atomic_store(&b->n_pins, (unsigned int)i + 1);
	}
	return 0;
}

static int import_split(struct block *b, const json_t *split)
{
	uint64_t splits = 0;
	json_t *item;
	size_t i;

	if (!b->split)
		return 0;
	if (json_array_size(split) != (block_extents(b) + 63) / 64)
		return -EUCLEAN;
	json_array_foreach(split, i, item) {
		uint64_t w = (uint64_t)json_integer_value(item);

		atomic_store(&b->split[i], w);
		splits += (uint64_t)__builtin_popcountll(w);
	}
	atomic_store(&b->splits, splits);
	return 0;
}

static int import_block(struct vm *vm, const json_t *j, struct parcel *in, struct error *e)
{
	FD_OWNED memfd = parcel_take_fd(in, json_object_get(j, "fd"));
	struct attach_region reg = {.memfd = memfd,
				    .size = number(j, "bytes"),
				    .memfd_offset = number(j, "offset"),
				    .guest_addr = number(j, "guest-addr")};
	struct record_block rb = {.dev = number(j, "device"),
				  .ino = number(j, "inode"),
				  .memfd_offset = reg.memfd_offset,
				  .bytes = reg.size,
				  .first_unit = number(j, "first-unit"),
				  .guest_addr = reg.guest_addr,
				  .kind = (uint32_t)number(j, "kind"),
				  .minor = json_is_true(json_object_get(j, "minor"))};
	struct block *b;
	int r;

	if (copy_text(j, "id", reg.id, sizeof(reg.id)) ||
	    copy_text(j, "table", rb.table, sizeof(rb.table)))
		return bad(e, vm->name, "the name of a block is damaged");
	r = attachment_inherit_block(vm, &reg, &rb, &b, e);
	if (r)
		return r;
	if (import_pins(b, list(j, "pins")) || import_split(b, list(j, "split")))
		return bad(e, vm->name, "a block's pins or huge pages are damaged");
	return 0;
}

static int import_attachment(struct vm *vm, const json_t *j, struct parcel *in, struct error *e)
{
	struct attachment *att = NULL;
	json_t *item;
	size_t i;
	int uffd = parcel_take_fd(in, json_object_get(j, "uffd"));
	int pidfd = parcel_take_fd(in, json_object_get(j, "pidfd"));
	int r;

	if (uffd < 0 || pidfd < 0) {
		fd_close(&uffd);
		fd_close(&pidfd);
		return bad(e, vm->name, "a descriptor is missing");
	}
	r = attachment_inherit(vm, uffd, pidfd, (pid_t)number(j, "pid"), (uid_t)number(j, "uid"),
			       number(j, "serial"), json_is_true(json_object_get(j, "secondary")),
			       &att, e);
	for (i = 0; !r && (item = json_array_get(list(j, "mappings"), i)); i++) {
		struct record_mapping rm = {.host_addr = number(item, "host-addr"),
					    .first_unit = number(item, "first-unit"),
					    .units = number(item, "units")};

		r = copy_text(item, "id", rm.id, sizeof(rm.id))
			    ? bad(e, vm->name, "the name of a mapping is damaged")
			    : attachment_inherit_mapping(
				      att, text(item, "block"), &rm,
				      json_is_true(json_object_get(item, "primary")), e);
	}
	return r;
}

static void import_hist(struct hist *h, const json_t *j)
{
	json_t *item;
	size_t i;

	h->count = number(j, "count");
	h->sum = number(j, "sum");
	h->max = number(j, "max");
	json_array_foreach(list(j, "buckets"), i, item) {
		json_int_t at = json_integer_value(json_array_get(item, 0));

		if (at >= 0 && at < HIST_BUCKETS)
			h->bucket[at] = (uint64_t)json_integer_value(json_array_get(item, 1));
	}
}

static void import_numbers(struct vm *vm, const json_t *j)
{
	const json_t *a = json_object_get(j, "accounts"), *c = json_object_get(j, "counters");

	atomic_store(&vm->resident, (int64_t)number(a, "resident"));
	atomic_store(&vm->evicted, (int64_t)number(a, "evicted"));
	atomic_store(&vm->zero, (int64_t)number(a, "zero"));
	atomic_store(&vm->lost, (int64_t)number(a, "lost"));
	atomic_store(&vm->copies, (int64_t)number(a, "copies"));
	atomic_store(&vm->evicted_ever, number(a, "evicted-ever"));
	for (unsigned int t = 0; t < PE_TIERS; t++) {
		atomic_store(&vm->tier_units[t],
			     json_integer_value(json_array_get(json_object_get(a, "tiers"), t)));
		atomic_store(&vm->moved_out[t], (uint64_t)json_integer_value(json_array_get(
							json_object_get(a, "moved"), t)));
	}
#define COUNTER(name, json_name, help) \
	atomic_store(&vm->counter[COUNTER_##name], number(c, json_name));
#include "engine/counters.def"
#undef COUNTER
	import_hist(&vm->fault_latency, json_object_get(j, "fault-latency"));
}

static int import_settings(struct vm *vm, const json_t *j, struct error *e)
{
	const json_t *marks;
	json_t *item;
	size_t i;

	atomic_store(&vm->limit_bytes, number(j, "limit"));
	atomic_store(&vm->floor_bytes, number(j, "floor"));
	atomic_store(&vm->weight, (uint32_t)number(j, "weight"));
	if (copy_text(j, "granularity", vm->granularity, sizeof(vm->granularity)))
		return bad(e, vm->name, "a setting is damaged");
	json_array_foreach(list(j, "spaces"), i, item) {
		uint64_t t = number(item, "tier");
		int r;

		if (!t || t >= PE_TIERS)
			return bad(e, vm->name, "a tier is damaged");
		vm->space_ram_bytes[t] = number(item, "ram-bytes");
		import_key(list(item, "key"), vm->space_key[t]);
		r = backends_space(vm, (unsigned int)t);
		if (r)
			return error_set(e, -r, ERROR_GENERIC,
					 "VM %s: backend %s cannot take over: %s", vm->name,
					 vm->eng->slots[t].name, error_text(r));
	}
	json_array_foreach(list(j, "tiers"), i, item) {
		json_int_t t = json_integer_value(item);

		if (t < 1 || t >= PE_TIERS || i >= ENGINE_BACKENDS_MAX)
			return bad(e, vm->name, "its tiers are damaged");
		vm->tiers[vm->n_tiers++] = (unsigned int)t;
		marks = json_array_get(list(j, "tier-marks"), i);
		atomic_store(&vm->tier_high[t],
			     (uint64_t)json_integer_value(json_array_get(marks, 0)));
		atomic_store(&vm->tier_low[t],
			     (uint64_t)json_integer_value(json_array_get(marks, 1)));
	}
	vm_tiers_changed(vm);
	return 0;
}

/* What this daemon finds out by itself is not taken over. */
#define SUSPEND_OWN (SUSPEND_NO_GUARD | SUSPEND_COLLAPSE | SUSPEND_NEW | SUSPEND_PROBING)

static int import_vm(struct engine *eng, const json_t *j, struct parcel *in, struct error *e)
{
	char name[VM_NAME_MAX], uuid[40];
	struct attach_request no_files = {.n_regions = 0};
	bool orphaned = json_is_true(json_object_get(j, "orphaned"));
	struct vm *vm;
	json_t *item;
	size_t i;
	int r;

	if (copy_text(j, "name", name, sizeof(name)) || !name[0] ||
	    copy_text(j, "uuid", uuid, sizeof(uuid)))
		return bad(e, "?", "its name is damaged");
	vm = vm_new(eng, name, uuid, (uid_t)number(j, "uid"));
	if (!vm)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	atomic_store(&vm->orphaned, orphaned);
	vm->over = orphaned;
	r = attachment_link_vm(vm, &no_files, e); /* its blocks bring them */
	vm_put(vm);				  /* in the list it has a reference of its own */
	if (r)
		return r;
	vm->shelf = shelf_import(eng, json_object_get(j, "shelf"));
	vm->keep = json_is_true(json_object_get(j, "keep"));
	if (json_object_get(j, "shelf") && !vm->shelf)
		vm->keep = false; /* there is nobody to hold it for us */
	vm->tables_made = (unsigned int)number(j, "tables-made");
	vm->sweep_hand = number(j, "sweep-hand");
	atomic_store(&vm->units, number(j, "units"));
	atomic_store(&vm->suspended,
		     ((uint32_t)number(j, "suspended") & ~(uint32_t)SUSPEND_OWN) | SUSPEND_NEW);
	json_array_foreach(list(j, "peers"), i, item)
		if (vm->n_peers < VM_PEERS_MAX)
			vm->peers[vm->n_peers++] = (pid_t)json_integer_value(item);
	json_array_foreach(list(j, "huge-reserve"), i, item) {
		int fd = parcel_take_fd(in, item);

		huge_reserve_inherit(vm, fd);
	}
	r = import_stores(vm, j, in, e);
	json_array_foreach(list(j, "blocks"), i, item)
		if (!r)
			r = import_block(vm, item, in, e);
	json_array_foreach(list(j, "attachments"), i, item)
		if (!r)
			r = import_attachment(vm, item, in, e);
	if (!r && orphaned && orphan_inherit(vm))
		r = bad(e, vm->name, "what its back ends still map cannot be served");
	if (!r)
		r = import_settings(vm, json_object_get(j, "settings"), e);
	import_numbers(vm, j);
	vm_resize_recent(vm);
	return r;
}

int handover_import(struct engine *eng, struct parcel *in, struct error *e)
{
	json_t *item;
	size_t i;
	int r = 0;

	atomic_store(&eng->serial, number(in->body, "serial"));
	json_array_foreach(list(in->body, "vms"), i, item)
		if (!r)
			r = import_vm(eng, item, in, e);
	return r;
}

/* ---- taking over ---- */

void handover_take(struct engine *eng)
{
	handover_resume(eng);
	for (struct vm *vm = eng->vms; vm; vm = vm->next)
		for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
			struct attachment *att = atomic_load(&vm->attachments[i]);

			if (att && !att->stand_in)
				attachment_serve(att);
		}
}

void handover_settle(struct engine *eng, struct parcel *in)
{
	struct vm **vms = calloc(ENGINE_VMS_MAX, sizeof(*vms));
	unsigned int n = vms ? engine_vms_get(eng, vms, ENGINE_VMS_MAX) : 0;

	for (unsigned int i = 0; i < n; i++) {
		struct vm *vm = vms[i];
		const json_t *p = json_object_get(json_object_get(in->body, "policies"), vm->name),
			     *one;

		one = json_object_get(p, "reclaim");
		if (one)
			import_policy(vm, EBB_POLICY_RECLAIM, &vm->reclaim, one, in);
		one = json_object_get(p, "prefetch");
		if (one)
			import_policy(vm, EBB_POLICY_PREFETCH, &vm->prefetch, one, in);
		attachment_may_evict(vm);
		vm_put(vm);
	}
	free(vms);
	engine_go_on(eng);
}

struct attachment *handover_attachment(struct engine *eng, uint64_t serial,
				       const struct attach_client_ops *ops, void *client)
{
	struct attachment *att = attachment_by_serial(eng, serial);

	if (att) {
		att->ops = ops;
		att->client = client;
	}
	return att;
}

uint64_t handover_serial(const struct attachment *a)
{
	return a->serial;
}
