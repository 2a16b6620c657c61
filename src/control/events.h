/* SPDX-License-Identifier: BSD-3-Clause */
/* events.h: the engine's events, from its threads into the control loop. */
#ifndef CONTROL_EVENTS_H
#define CONTROL_EVENTS_H

#include "engine/engine.h"

struct event_queue;
struct event_base;
struct control;

/* Made before the engine, freed after it. NULL when out of memory or descriptors. */
struct event_queue *event_queue_new(void);
void event_queue_free(struct event_queue *q);

/*
 * struct engine_config's event callback, with the queue as its context. Any thread; copies; never
 * waits for more than another push. What does not fit is counted and said so later.
 */
void event_queue_push(void *queue, const struct engine_event *ev);

/* From now on the loop of base takes what is in the queue to c's clients; and no longer. */
void event_queue_attach(struct event_queue *q, struct event_base *base, struct control *c);
void event_queue_detach(struct event_queue *q);
/*
 * Waits until the loop has dealt with all that was pushed before, so that a VM that has just been
 * attached has its settings; not longer than a second or two. Not from the loop.
 */
void event_queue_settle(void *queue);
/* Takes what is in the queue now. Loop only. */
void event_queue_drain(struct event_queue *q);

#endif
