/* SPDX-License-Identifier: BSD-3-Clause */
/* json.c: reads and writes the little JSON that the library needs, in place. */
#include "client/json.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define JSON_DEPTH_MAX 16

static const char *skip_value(const char *p, const char *end, int depth);

static const char *skip_space(const char *p, const char *end)
{
	while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
		p++;
	return p;
}

static bool is_digit(char ch)
{
	return ch >= '0' && ch <= '9';
}

static int hex_value(char ch)
{
	if (is_digit(ch))
		return ch - '0';
	if (ch >= 'a' && ch <= 'f')
		return ch - 'a' + 10;
	if (ch >= 'A' && ch <= 'F')
		return ch - 'A' + 10;
	return -1;
}

/* The four hex digits at p, or -1. */
static int hex4(const char *p, const char *end)
{
	int value = 0;

	if (end - p < 4)
		return -1;
	for (int i = 0; i < 4; i++) {
		int digit = hex_value(p[i]);

		if (digit < 0)
			return -1;
		value = value << 4 | digit;
	}
	return value;
}

static const char *skip_string(const char *p, const char *end)
{
	for (p++; p < end && *p != '"'; p++) {
		if ((unsigned char)*p < 0x20)
			return NULL;
		if (*p != '\\')
			continue;
		if (++p == end)
			return NULL;
		if (*p == 'u') {
			if (hex4(p + 1, end) < 0)
				return NULL;
			p += 4;
		} else if (!strchr("\"\\/bfnrt", *p) || !*p) {
			return NULL;
		}
	}
	return p < end ? p + 1 : NULL;
}

static const char *skip_digits(const char *p, const char *end)
{
	const char *start = p;

	while (p < end && is_digit(*p))
		p++;
	return p > start ? p : NULL;
}

static const char *skip_number(const char *p, const char *end)
{
	if (p < end && *p == '-')
		p++;
	if (p + 1 < end && *p == '0' && is_digit(p[1]))
		return NULL;
	p = skip_digits(p, end);
	if (p && p < end && *p == '.')
		p = skip_digits(p + 1, end);
	if (p && p < end && (*p == 'e' || *p == 'E')) {
		p++;
		if (p < end && (*p == '+' || *p == '-'))
			p++;
		p = skip_digits(p, end);
	}
	return p;
}

static const char *skip_word(const char *p, const char *end, const char *word)
{
	size_t len = strlen(word);

	return (size_t)(end - p) >= len && !memcmp(p, word, len) ? p + len : NULL;
}

static const char *skip_list(const char *p, const char *end, int depth)
{
	bool object = *p == '{';
	char close = object ? '}' : ']';

	p = skip_space(p + 1, end);
	if (p < end && *p == close)
		return p + 1;
	while (p && p < end) {
		if (object) {
			if (*p != '"')
				return NULL;
			p = skip_string(p, end);
			p = p ? skip_space(p, end) : NULL;
			if (!p || p == end || *p++ != ':')
				return NULL;
		}
		p = skip_value(p, end, depth - 1);
		if (!p || p == end)
			return NULL;
		if (*p == close)
			return p + 1;
		if (*p++ != ',')
			return NULL;
		p = skip_space(p, end);
	}
	return NULL;
}

/* Behind one value and the white space around it; NULL when there is no valid one. */
static const char *skip_value(const char *p, const char *end, int depth)
{
	p = skip_space(p, end);
	if (p == end || !depth)
		return NULL;
	switch (*p) {
	case '{':
	case '[':
		p = skip_list(p, end, depth);
		break;
	case '"':
		p = skip_string(p, end);
		break;
	case 't':
		p = skip_word(p, end, "true");
		break;
	case 'f':
		p = skip_word(p, end, "false");
		break;
	case 'n':
		p = skip_word(p, end, "null");
		break;
	default:
		p = skip_number(p, end);
	}
	return p ? skip_space(p, end) : NULL;
}

static struct json_span trim(const char *from, const char *to)
{
	from = skip_space(from, to);
	while (to > from && strchr(" \t\r\n", to[-1]))
		to--;
	return (struct json_span){from, (size_t)(to - from)};
}

int json_parse(const char *text, size_t len, struct json_span *out)
{
	const char *end = text + len;

	if (memchr(text, 0, len) || skip_value(text, end, JSON_DEPTH_MAX) != end)
		return -EINVAL;
	*out = trim(text, end);
	return 0;
}

bool json_member(struct json_span object, const char *name, struct json_span *out)
{
	const char *p = object.p, *end = object.p + object.len;

	if (!object.len || *p != '{')
		return false;
	p = skip_space(p + 1, end);
	while (p < end && *p == '"') {
		const char *key = p + 1, *value;
		size_t key_len;

		p = skip_string(p, end);
		key_len = (size_t)(p - key - 1);
		value = skip_space(p, end) + 1;
		p = skip_value(value, end, JSON_DEPTH_MAX);
		if (key_len == strlen(name) && !memcmp(key, name, key_len)) {
			*out = trim(value, p);
			return true;
		}
		if (*p == ',')
			p = skip_space(p + 1, end);
	}
	return false;
}

bool json_next(struct json_span array, struct json_span *at)
{
	const char *end = array.p + array.len;
	const char *p = at->p ? skip_space(at->p + at->len, end) : array.p;
	const char *start;

	if (!array.len || *array.p != '[' || *p == ']')
		return false;
	start = skip_space(p + 1, end);
	if (*start == ']')
		return false;
	*at = trim(start, skip_value(start, end, JSON_DEPTH_MAX));
	return true;
}

static char unescape(char ch)
{
	switch (ch) {
	case 'b':
		return '\b';
	case 'f':
		return '\f';
	case 'n':
		return '\n';
	case 'r':
		return '\r';
	case 't':
		return '\t';
	default:
		return ch;
	}
}

int json_string(struct json_span value, char *buf, size_t bytes)
{
	const char *p = value.p + 1, *end = value.p + value.len - 1;
	size_t n = 0;

	if (value.len < 2 || *value.p != '"' || !bytes)
		return -EINVAL;
	for (; p < end && n + 1 < bytes; p++) {
		int code;

		if (*p != '\\') {
			buf[n++] = *p;
			continue;
		}
		if (*++p != 'u') {
			buf[n++] = unescape(*p);
			continue;
		}
		/* Only for messages to people: what is not ASCII shows as '?'. */
		code = hex4(p + 1, end);
		buf[n++] = code >= 0x20 && code < 0x7f ? (char)code : '?';
		p += 4;
	}
	buf[n] = '\0';
	return 0;
}

int json_u64(struct json_span value, uint64_t *out)
{
	uint64_t n = 0;

	if (!value.len)
		return -EINVAL;
	for (size_t i = 0; i < value.len; i++) {
		if (!is_digit(value.p[i]))
			return -EINVAL;
		if (__builtin_mul_overflow(n, UINT64_C(10), &n) ||
		    __builtin_add_overflow(n, (uint64_t)(value.p[i] - '0'), &n))
			return -ERANGE;
	}
	*out = n;
	return 0;
}

void json_add(struct json_text *t, const char *fmt, ...)
{
	size_t room = t->cap - t->len;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->buf + t->len, room, fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= room)
		t->over = true;
	else
		t->len += (size_t)n;
}

void json_add_string(struct json_text *t, const char *s)
{
	json_add(t, "\"");
	for (; *s; s++) {
		unsigned char ch = (unsigned char)*s;

		if (ch == '"' || ch == '\\')
			json_add(t, "\\%c", ch);
		else if (ch < 0x20)
			json_add(t, "\\u%04x", ch);
		else
			json_add(t, "%c", ch);
	}
	json_add(t, "\"");
}
