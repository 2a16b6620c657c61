/* SPDX-License-Identifier: BSD-3-Clause */
/* error.h: an error with a class and a sentence, for those who talk to people. */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stddef.h>

/*
 * Functions that can fail for a reason worth telling take a struct error * (never NULL), fill it
 * and return -errno. The class is one of the names below; control and attach sockets send both on
 * as {"error":{"class":...,"desc":...}}.
 */
struct error {
	const char *cls; /* static */
	char desc[400];
};

#define ERROR_GENERIC	  "GenericError"
#define ERROR_NOT_FOUND	  "NotFound" /* no VM, policy, backend ... of that name */
#define ERROR_COMMAND	  "CommandNotFound"
#define ERROR_ARGUMENT	  "InvalidArgument" /* missing, unknown, wrong type, out of range */
#define ERROR_PROTOCOL	  "ProtocolError"   /* not what the wire format says */
#define ERROR_EXISTS	  "AlreadyExists"
#define ERROR_BUSY	  "Busy"	 /* RAM with a userfaultfd already, job running */
#define ERROR_IN_USE	  "RegionsInUse" /* attach: the RAM belongs to a VM already attached */
#define ERROR_PERMISSION  "PermissionDenied"
#define ERROR_UNSUPPORTED "Unsupported"	  /* this kernel or build cannot */
#define ERROR_NO_SPACE	  "NoSpace"	  /* would not fit */
#define ERROR_LIMIT	  "LimitExceeded" /* more than one client may have */
#define ERROR_CANCELLED	  "Cancelled"

/* Fills e and returns -code (code is a positive errno). */
int error_set(struct error *e, int code, const char *cls, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* The text for an errno (positive or negative), without strerror's locking problems. */
const char *error_text(int code);

#endif
