/* SPDX-License-Identifier: BSD-3-Clause */
/* reference.c: exact LRU, Belady's optimum and the best fixed set over a sequence of touches. */
#include "sim/reference.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- LRU: a list through arrays; index `units` is its head ---- */

struct list {
	uint32_t *next, *prev;
	uint32_t head;
};

static void list_remove(struct list *l, uint32_t u)
{
	l->next[l->prev[u]] = l->next[u];
	l->prev[l->next[u]] = l->prev[u];
}

static void list_push(struct list *l, uint32_t u)
{
	l->next[u] = l->next[l->head];
	l->prev[u] = l->head;
	l->prev[l->next[u]] = u;
	l->next[l->head] = u;
}

static int run_lru(const struct sequence *s, uint64_t limit, struct reference *out)
{
	struct list l = {.next = calloc(s->units + 1, 4),
			 .prev = calloc(s->units + 1, 4),
			 .head = (uint32_t)s->units};
	uint8_t *state = calloc(s->units, 1); /* 1: touched, 2: resident */
	uint64_t resident = 0;
	int r = l.next && l.prev && state ? 0 : -ENOMEM;

	if (!r)
		l.next[l.head] = l.prev[l.head] = l.head;
	for (uint64_t k = 0; !r && k < s->n; k++) {
		uint32_t u = s->step[k].unit;

		if (state[u] & 2) {
			list_remove(&l, u);
		} else {
			out->first += !state[u];
			out->lru += state[u] == 1;
			if (resident == limit) {
				uint32_t last = l.prev[l.head];

				list_remove(&l, last);
				state[last] = 1;
			} else {
				resident++;
			}
			state[u] = 3;
		}
		list_push(&l, u);
	}
	free(l.next);
	free(l.prev);
	free(state);
	return r;
}

/* ---- Belady (IBM Systems Journal 1966): away with what is needed last ---- */

/* A heap of resident units, the one whose next touch is farthest on top. */
struct heap {
	uint32_t *unit;
	uint32_t *place; /* of a unit in the heap */
	const uint32_t *next_use;
	uint64_t n;
};

static void heap_put(struct heap *h, uint64_t at, uint32_t u)
{
	h->unit[at] = u;
	h->place[u] = (uint32_t)at;
}

static void heap_up(struct heap *h, uint64_t at)
{
	uint32_t u = h->unit[at];

	while (at && h->next_use[h->unit[(at - 1) / 2]] < h->next_use[u]) {
		heap_put(h, at, h->unit[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	heap_put(h, at, u);
}

static uint32_t heap_pop(struct heap *h)
{
	uint32_t top = h->unit[0], u = h->unit[--h->n];
	uint64_t at = 0;

	while (2 * at + 1 < h->n) {
		uint64_t child = 2 * at + 1;

		if (child + 1 < h->n &&
		    h->next_use[h->unit[child + 1]] > h->next_use[h->unit[child]])
			child++;
		if (h->next_use[h->unit[child]] <= h->next_use[u])
			break;
		heap_put(h, at, h->unit[child]);
		at = child;
	}
	if (h->n)
		heap_put(h, at, u);
	return top;
}

static int run_opt(const struct sequence *s, uint64_t limit, struct reference *out)
{
	uint32_t *next = malloc(s->n * 4), *last = malloc(s->units * 4);
	uint32_t *next_use = calloc(s->units, 4); /* of resident units */
	uint8_t *state = calloc(s->units, 1);
	struct heap h = {
		.unit = calloc(limit + 1, 4), .place = calloc(s->units, 4), .next_use = next_use};
	int r = next && last && next_use && state && h.unit && h.place ? 0 : -ENOMEM;

	if (!r) {
		memset(last, 0xff, s->units * 4);
		for (uint64_t k = s->n; k-- > 0;) {
			next[k] = last[s->step[k].unit];
			last[s->step[k].unit] = (uint32_t)k;
		}
	}
	for (uint64_t k = 0; !r && k < s->n; k++) {
		uint32_t u = s->step[k].unit;

		next_use[u] = next[k];
		if (state[u] & 2) {
			heap_up(&h, h.place[u]); /* its next touch can only be later */
			continue;
		}
		out->opt += state[u] == 1;
		if (h.n == limit)
			state[heap_pop(&h)] = 1;
		state[u] = 3;
		h.unit[h.n] = u;
		heap_up(&h, h.n++);
	}
	free(next);
	free(last);
	free(next_use);
	free(state);
	free(h.unit);
	free(h.place);
	return r;
}

/* ---- the best fixed set ---- */

static int more_first(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? 1 : x > y ? -1 : 0;
}

static int run_fixed(const struct sequence *s, uint64_t limit, struct reference *out)
{
	uint32_t *count = calloc(s->units, 4);

	if (!count)
		return -ENOMEM;
	for (uint64_t k = 0; k < s->n; k++)
		count[s->step[k].unit]++;
	qsort(count, s->units, 4, more_first);
	/* The first touch of a unit is no miss here either. */
	for (uint64_t u = limit; u < s->units && count[u]; u++)
		out->fixed += count[u] - 1;
	free(count);
	return 0;
}

int reference_run(const struct sequence *s, uint64_t limit, struct reference *out)
{
	int r;

	*out = (struct reference){0};
	r = run_lru(s, limit, out);
	if (!r)
		r = run_opt(s, limit, out);
	return r ? r : run_fixed(s, limit, out);
}
