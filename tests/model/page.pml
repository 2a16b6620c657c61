/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * page.pml: one unit of guest RAM under everything that is done to it, with the daemon's death at
 * any step of it.
 *
 * The threads do what src/engine does, in the same order (evict.c, fault.c, loader.c, regions.c,
 * unit.c, thp.c, takeover.c); between two steps of one anything of the others can happen. A change
 * of the entry is a go(FROM, TO). Which of those happened is printed at the end, and
 * test_page_model.py compares them with the edges of model/page_entry.c, both ways.
 *
 * Content is a number: 0 is zero, 1 and up what the guest wrote. `page` is what the page cache
 * holds, `copy` what the entry's handle leads to; GONE: nothing. Of the kernel: a write to a
 * protected page faults, any access to a missing page faults, who has faulted sleeps until woken,
 * and then tries again.
 *
 * -DBREAK_... takes a rule out; then a violation must be found (the list is in the test).
 */

/* As in enum page_state; the test looks whether they are. */
#define NONE	     0
#define RESIDENT     1
#define PROTECTED    2
#define UNPROTECTING 3
#define STORING	     4
#define PUNCHING     5
#define EVICTED	     6
#define LOADING	     7
#define PINNED	     8
#define LOST	     9
#define CLEARING     10

#define GONE	9
#ifndef WRITES
#define WRITES	2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef EVICTORS
#define EVICTORS 2
#endif
#ifdef BREAK_CLAIM
#define MINE true
#else
#define MINE (claim == me)
#endif
#define THREADS (EVICTORS + 2) /* of the daemon */

c_decl {
	static unsigned char taken[11][11], before_go;
	static void print_taken(void)
	{
		static const char *const names[] = {"none", "resident", "protected", "unprotecting",
			"storing", "punching", "evicted", "loading", "pinned", "lost", "clearing"};
		for (int f = 0; f < 11; f++)
			for (int t = 0; t < 11; t++)
				if (taken[f][t])
					printf("EDGE %s %s\n", names[f], names[t]);
	}
}

/* What outlives the daemon. */
byte entry = NONE;
byte claim;		 /* PROTECTED: whose */
bit wanted, away;
bit has_copy;		 /* tier and handle, or PE_COPY */
byte copy = GONE, page = GONE;
bit protected;		 /* in the page tables of the guest's process */
bit poisoned;

/* The guest and its VMM. */
byte written;		 /* what a read must find */
byte writes;
bit waiting;		 /* has faulted and sleeps */
bit queued;		 /* its fault is not read yet */
bit discarding;		 /* the VMM asked for a discard and has no answer */
bit discarded;		 /* it has had its discard (one is enough) */
bit pin, unpinned;	 /* once */

/* The world. */
bit broken;		 /* the store has lost what it held */
bit lost;		 /* ... and it was told */
bit alive = 1;
byte down;		 /* threads that have noticed that it is not */
byte crashes;
byte busy;		 /* threads that hold a fault or owe a wake */

/* Always within an atomic; what is noted of it is no part of the state. */
#define go(from, to) assert(entry == from); c_code { before_go = now.entry; }; entry = to; \
		     c_code { taken[before_go][now.entry] = 1; }
#define AWAY(s)	     (s == PUNCHING || s == EVICTED || s == LOST)
#define OWNED(s)     (s == UNPROTECTING || s == STORING || s == PUNCHING || s == LOADING || \
		      s == CLEARING)

/* page_table_leave(): the away bit, the entry, and then who waits is woken. */
inline leave(from, to, with_copy)
{
	away = AWAY(to);
	atomic {
		go(from, to);
		if :: with_copy :: else -> has_copy = 0; copy = GONE fi;
		if :: wanted -> wanted = 0; busy++; owes = 1 :: else fi
	};
	if
	:: owes -> atomic { waiting = 0; busy--; owes = 0 }
	:: else
	fi
}

inline settle(from, with_copy)
{
	if
	:: pin -> leave(from, PINNED, with_copy)
	:: else -> leave(from, RESIDENT, with_copy)
	fi
}

/* unit_cancel(): the protection is lifted, which wakes, while the unit is ours. */
inline cancel()
{
#ifdef BREAK_CANCEL
	settle(UNPROTECTING, has_copy);
	atomic { protected = 0; waiting = 0 }
#else
	atomic { protected = 0; waiting = 0 };
	settle(UNPROTECTING, has_copy)
#endif
}

/* A thread of the daemon that has noticed the daemon's death, and waits for the next one. */
inline rest()
{
	atomic { owes = 0; down++ };
	(alive && !down)
}

proctype Evictor(byte me)
{
	bit owes, kept, old;
	byte content, before;

again:
	{
	do
	:: atomic { alive && entry == RESIDENT -> go(RESIDENT, PROTECTED); claim = me;
		    old = has_copy; before = copy };
#ifndef BREAK_PROTECT
	   protected = 1; /* somebody may have taken the unit away by now; it is protected then */
#endif
	   if
	   :: atomic { entry == PROTECTED && MINE -> go(PROTECTED, STORING) }
	   :: atomic { entry == PROTECTED && claim == me -> go(PROTECTED, UNPROTECTING) };
	      cancel(); goto done /* in use by a device */
	   :: atomic { !(entry == PROTECTED && claim == me) -> goto done }
	   fi;
	   content = (page == GONE -> 0 : page);
#ifdef BREAK_ACKNOWLEDGED
	   page = GONE;
#endif
	   if
	   :: atomic { old && before == content -> kept = 1 }
	   :: kept = 0
	   :: atomic { go(STORING, UNPROTECTING) }; cancel(); goto done /* no store has room */
	   fi;
	   /* Acknowledged; committed if no fault has come meanwhile. */
	   if
	   :: atomic { !wanted -> go(STORING, PUNCHING); has_copy = 1; copy = content }
	   :: atomic { wanted -> go(STORING, UNPROTECTING) }; cancel(); goto done
	   fi;
#ifndef BREAK_AWAY
	   away = 1;
#endif
	   if
	   :: page = GONE
	   :: away = 0; /* it cannot be punched */
	      atomic { go(PUNCHING, UNPROTECTING); has_copy = old; copy = before };
	      cancel(); goto done
	   fi;
	   leave(PUNCHING, EVICTED, 1);
done:	   atomic { kept = 0; old = 0; content = 0; before = 0 }
	od
	} unless { !alive };
	rest();
	goto again
}

/* UFFDIO_COPY: fills a hole, lifts protection and wakes; finds a page and leaves it alone. */
inline fill(content)
{
	atomic {
		if :: page == GONE -> page = content; protected = 0 :: else fi;
		waiting = 0
	}
}

/* Nothing was there, so it is zero. */
inline zero(from)
{
	fill(0);
	settle(LOADING, 0)
}

proctype Fault()
{
	bit owes;
	byte content;

again:
	{
	do
	:: atomic { alive && queued -> queued = 0; busy++ };
	   if
	   :: atomic { entry == NONE && page == GONE -> go(NONE, LOADING) };
	      if
	      :: true -> zero(NONE)
	      :: true -> leave(LOADING, NONE, 0); waiting = 0 /* no memory for it: woken later */
	      fi
	   :: atomic { entry == NONE && page != GONE ->
		if :: pin -> go(NONE, PINNED) :: else -> go(NONE, RESIDENT) fi; waiting = 0 }
	   :: atomic { entry == RESIDENT && page != GONE && protected ->
		go(RESIDENT, UNPROTECTING) };
	      cancel()
	   :: atomic { entry == PINNED && page != GONE && protected -> go(PINNED, UNPROTECTING) };
	      cancel()
	   :: atomic { (entry == RESIDENT || entry == PINNED) && page != GONE && !protected ->
		waiting = 0 }
	   :: atomic { entry == RESIDENT && page == GONE -> go(RESIDENT, LOADING) }; zero(RESIDENT)
	   :: atomic { entry == PINNED && page == GONE -> go(PINNED, LOADING) }; zero(PINNED)
	   :: atomic { entry == PROTECTED -> go(PROTECTED, UNPROTECTING) }; cancel()
	   :: atomic { OWNED(entry) -> wanted = 1 }
	   :: atomic { entry == EVICTED -> go(EVICTED, LOADING) };
	      if
	      :: broken -> atomic { poisoned = 1; lost = 1; waiting = 0 }; leave(LOADING, LOST, 0)
	      :: !broken -> leave(LOADING, EVICTED, 1); waiting = 0 /* not now: woken later */
	      :: !broken ->
		 content = copy;
#ifdef BREAK_FREE_FIRST
		 copy = GONE;
#endif
		 fill(content);
		 if
		 :: true -> settle(LOADING, 0)
		 :: true -> settle(LOADING, 1) /* kept as a clean copy */
		 fi
	      fi
	   :: atomic { entry == LOST -> poisoned = 1; waiting = 0 }
	   fi;
	   atomic { busy--; content = 0 }
	od
	} unless { !alive };
	rest();
	goto again
}

/* What the VMM asks for: discards, pins; and thp_collapse(), which owns a unit for a moment. */
proctype Ops()
{
	bit owes;
	byte before;

again:
	{
	do
	:: atomic { alive && discarding && !OWNED(entry) ->
		before = entry;
		if
		:: entry == PROTECTED -> go(PROTECTED, UNPROTECTING)
		:: entry == NONE -> go(NONE, CLEARING)
		:: entry == RESIDENT -> go(RESIDENT, CLEARING)
		:: entry == PINNED -> go(PINNED, CLEARING)
		:: entry == EVICTED -> go(EVICTED, CLEARING)
		:: entry == LOST -> go(LOST, CLEARING)
		fi };
	   if
	   :: before == PROTECTED -> cancel()
	   :: before != PROTECTED ->
	      away = 0;
	      if /* it came too late, or it cannot be punched */
	      :: before == RESIDENT -> leave(CLEARING, RESIDENT, has_copy)
	      :: before == PINNED -> leave(CLEARING, PINNED, has_copy)
	      :: before == EVICTED -> leave(CLEARING, EVICTED, 1)
	      :: before == LOST -> leave(CLEARING, LOST, 0)
	      :: atomic { page = GONE; poisoned = 0; written = 0; lost = 0 };
		 leave(CLEARING, NONE, 0);
		 atomic { waiting = 0; discarding = 0; discarded = 1 }
	      fi
	   fi;
	   before = 0
	:: atomic { alive && pin && entry == RESIDENT -> go(RESIDENT, PINNED) }
	:: atomic { alive && !pin && entry == PINNED -> go(PINNED, RESIDENT) }
#ifdef COLLAPSE
	:: atomic { alive && entry == RESIDENT -> go(RESIDENT, UNPROTECTING) };
	   settle(UNPROTECTING, has_copy)
#endif
	od
	} unless { !alive };
	rest();
	goto again
}

active proctype Guest()
{
	do
	:: atomic { !waiting && !poisoned && page != GONE ->
		/* While a discard is asked for, the old content or none. */
		assert(page == written || (discarding && page == 0)) }
	:: atomic { !waiting && poisoned -> assert(lost) }
	:: atomic { !waiting && !poisoned && page == GONE -> waiting = 1; queued = 1 }
	:: atomic { !waiting && !poisoned && !discarding && page != GONE && writes < WRITES ->
		if
		:: protected -> waiting = 1; queued = 1
		:: else -> writes++; written = writes; page = writes
		fi }
	/* Its VMM: */
#ifdef DISCARDS
	:: atomic { !discarding && !discarded -> discarding = 1 }
#endif
#ifdef PINS
	:: atomic { !pin && !unpinned -> pin = 1 }
	:: atomic { pin -> pin = 0; unpinned = 1 }
#endif
#ifdef DROPS
	/* ... drops a page itself, which reads as zero then; of what is away nobody would hear */
	:: atomic { !discarding && page != GONE && (entry == RESIDENT || entry == PINNED) ->
		page = GONE; written = 0 }
	/* ... or another process makes a page of zeroes where there was none. */
	:: atomic { page == GONE && entry == NONE && !poisoned -> page = 0 }
#endif
#ifdef LOSSES
	:: atomic { !broken -> broken = 1 }
#endif
	od
}

/* takeover.c */
inline repair()
{
	atomic { wanted = 0; claim = 0 };
	if
	:: entry == RESIDENT || entry == PROTECTED || entry == UNPROTECTING || entry == STORING ->
	   to = RESIDENT; keep = has_copy
	:: entry == PINNED -> to = PINNED; keep = has_copy
	:: entry == PUNCHING && away -> page = GONE; to = EVICTED; keep = 1
	:: entry == PUNCHING && !away -> to = RESIDENT; keep = 0
	:: entry == LOADING && page != GONE -> to = RESIDENT; keep = 0
	:: entry == LOADING && page == GONE && away -> to = EVICTED; keep = 1
	:: entry == LOADING && page == GONE && !away -> to = NONE; keep = 0
	:: entry == CLEARING && away && has_copy -> to = EVICTED; keep = 1
	:: entry == CLEARING && away && !has_copy -> to = LOST; keep = 0
	:: entry == CLEARING && !away && page != GONE -> to = RESIDENT; keep = 0
	:: entry == CLEARING && !away && page == GONE -> to = NONE; keep = 0
	:: entry == NONE || entry == LOST -> to = entry; keep = 0
	:: entry == EVICTED -> to = EVICTED; keep = 1
	fi;
	away = AWAY(to);
	if /* cut off */
	:: atomic { crashes <= CRASHES -> crashes++; goto next }
	:: true
	fi;
	atomic { entry = to; if :: keep :: else -> has_copy = 0; copy = GONE fi }
}

active proctype Death()
{
	byte to;
	bit keep;

	do
	:: atomic { alive && crashes < CRASHES -> crashes++; alive = 0; busy = 0 };
	   (down == THREADS);
next:	   repair();
#ifndef BREAK_WAKE
	   waiting = 0;
#endif
	   if
	   :: atomic { crashes <= CRASHES -> crashes++; goto next } /* and again, right then */
	   :: atomic { down = 0; alive = 1; to = 0; keep = 0 }
	   fi
	od
}

/* At any instant the page or an acknowledged copy exists; nobody waits for what nobody does. */
active proctype Monitor()
{
	atomic {
		!(page == written || (has_copy && copy == written) || written == 0 || lost ||
		  discarding) ||
		(alive && waiting && !queued && !busy && !OWNED(entry)) ->
		assert(false)
	}
}

init {
	c_code { atexit(print_taken); };
	atomic {
		run Evictor(1);
#if EVICTORS > 1
		run Evictor(2);
#endif
		run Fault();
		run Ops()
	}
}
