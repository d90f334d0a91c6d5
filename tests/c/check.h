/* SPDX-License-Identifier: Apache-2.0 */
/* check.h - the little that a C test needs: CHECK() stops at the first untruth, RUN() names each behaviour as it is shown. */
#ifndef KPOLL_TEST_CHECK_H
#define KPOLL_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(cond)                                                                          \
	do {                                                                                 \
		if (!(cond)) {                                                               \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond); \
			exit(1);                                                             \
		}                                                                            \
	} while (0)

#define CHECK_EQ(a, b)                                                                                             \
	do {                                                                                                       \
		long long a_ = (long long)(a), b_ = (long long)(b);                                                \
		if (a_ != b_) {                                                                                    \
			fprintf(stderr, "%s:%d: %s is %lld, not %s (%lld)\n", __FILE__, __LINE__, #a, a_, #b, b_); \
			exit(1);                                                                                   \
		}                                                                                                  \
	} while (0)

#define RUN(behaviour)                      \
	do {                                \
		printf("%s\n", #behaviour); \
		fflush(stdout);             \
		behaviour();                \
	} while (0)

#define SKIP(reason)                          \
	do {                                  \
		printf("skip: %s\n", reason); \
		exit(77);                     \
	} while (0)

#endif
